"""Bytes per token, bits per byte, and the log files."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from train.loop.log import JsonLines, RunLog, TrainingDisplay
from train.metrics.perplexity import bits_per_byte, perplexity, token_byte_lengths

TEXTS = ["def naïve(): return '€ 10'\n" * 3, "the 東京 thing, the thing\n" * 3]


def byte_level_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<end>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.add_tokens(["Größe"])
    return fast


def character_tokenizer():
    vocab = {character: i for i, character in enumerate(sorted(set("".join(TEXTS))))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("build", [byte_level_tokenizer, character_tokenizer])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(build):
    tokenizer = build()
    lengths = token_byte_lengths(tokenizer)
    assert lengths.shape == (len(tokenizer),)
    for text in TEXTS:
        assert lengths[torch.tensor(tokenizer(text)["input_ids"])].sum() == len(text.encode())


def test_special_tokens_stand_for_no_text_and_added_words_for_theirs():
    tokenizer = byte_level_tokenizer()
    lengths = token_byte_lengths(tokenizer)
    assert lengths[tokenizer.convert_tokens_to_ids(["<end>", "<pad>"])].tolist() == [0, 0]
    assert lengths[tokenizer.convert_tokens_to_ids("Größe")] == 7
    assert (lengths == 0).sum() == 2


def test_bits_per_byte_of_a_coin_per_byte():
    assert bits_per_byte(10 * math.log(2), 10) == pytest.approx(1)
    assert bits_per_byte(1.0, 0) == math.inf


def test_perplexity():
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e9) == math.inf


def test_cutting_back_leaves_what_was_written_until_that_step(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.cut_back(0)
    for step in (1, 2, 2, 3):
        log.write({"step": step, "text": "ä\n\x85\u2028"})  # line ends to str.splitlines, not to JSON lines
    with log.path.open("a") as file:
        file.write('{"step": 2, "torn')
    log.cut_back(2)
    assert [record["step"] for record in log.read()] == [1, 2, 2]
    assert log.path.read_text(encoding="utf-8").count("\n") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl"]


def test_progress_is_one_plain_line_per_log_where_there_is_no_terminal(capsys):
    progress = TrainingDisplay(10, 1000)
    progress.update(20, "loss 1.0")
    progress.close()
    shown = capsys.readouterr()
    assert re.fullmatch(r"step   20/1000 \| loss 1.0 \| 0:0\d:\d\d left\n", shown.out)
    assert shown.err == ""


def test_only_one_process_shows_progress(capsys):
    progress = TrainingDisplay(0, 10, is_shown=False)
    progress.update(1, "loss 1.0")
    progress.print("text")
    assert capsys.readouterr().out == ""


def test_a_run_log_writes_to_files_tracker_and_screen(tmp_path, capsys):
    tracked = []
    accelerator = SimpleNamespace(is_main_process=True, log=lambda figures, step: tracked.append((step, figures)))
    log = RunLog(tmp_path, accelerator, first_step=0, last_step=4, peak_tokens_per_second=1600.0)
    log.count(tokens=600, seconds=1.0)
    log.count(tokens=600, seconds=2.0)
    state = SimpleNamespace(step=2, tokens_seen=1200)
    log.write_step(state, {"loss": 3.0, "grad_norm": 1.0, "learning_rate": 0.1})
    log.write_evaluation(state, {"eval_loss": 2.0, "eval_confusion": [[1]]}, "1.1000 bits per byte")
    log.write_samples(2, [("def ", "f(x)\n")])
    log.close(2)
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == {
        "step": 2, "tokens_seen": 1200, "loss": 3.0, "grad_norm": 1.0, "learning_rate": 0.1,
        "tokens_per_second": 400.0, "mfu": 0.25,
    }  # fmt: skip
    assert second["eval_loss"] == 2.0
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {
        "step": 2, "prompt": "def ", "text": "f(x)\n",
    }  # fmt: skip
    assert [step for step, _ in tracked] == [2, 2]
    shown = capsys.readouterr().out
    assert "400 tokens/s" in shown
    assert "1.1000 bits per byte" in shown
    assert "'def ' -> 'f(x)\\n'" in shown
    assert "stopped after step 2 and saved: the same command continues" in shown


def test_processes_but_the_first_write_no_files(tmp_path):
    accelerator = SimpleNamespace(is_main_process=False, log=lambda figures, step: None)
    log = RunLog(tmp_path, accelerator, first_step=0, last_step=4)
    log.write_step(SimpleNamespace(step=2, tokens_seen=1), {"loss": 3.0, "grad_norm": 1.0, "learning_rate": 0.1})
    assert list(tmp_path.iterdir()) == []
