"""`evaluate`: its metrics against a calculation by hand, and the mistakes it refuses."""

import json
import math

import evaluate as evaluate_library
import numpy as np
import pytest
import torch

from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTTokenizer
from tests.support.tiny import tiny_config
from train import evaluate
from train.data.blocks import open_data
from train.prepare_data import main as prepare_data
from train.settings.command import run_command

FORTY_PERCENT = ["--block_size=16", "--validation_fraction=0.4"]
TEXT = "def one(x):\n    return x + 1\n\n" * 30


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = ScratchGPTTokenizer.train_from_texts([TEXT], 280, show_progress=False)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ScratchGPTForCausalLM(tiny_config(vocab_size=len(tokenizer), initializer_range=0.5)).save_pretrained(folder)
    return folder


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"sentence_good": f"def {name}(x)", "sentence_bad": f"def {name}(x("} for name in ("one", "two", "three")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def printed_metrics(capsys):
    return {line[:16].strip(): line[16:] for line in capsys.readouterr().out.splitlines()}


def test_windows_predict_each_token_once():
    stream = [np.arange(4), np.arange(4, 5), np.arange(5, 18)]
    windows = list(evaluate.windows_of(stream, block_size=5))
    assert [len(window) for window in windows] == [6, 6, 6, 3]
    assert np.concatenate([window[1:] for window in windows]).tolist() == list(range(1, 18))


def test_loss_of_a_text_matches_its_tokens_scored_one_by_one(model_folder, text_file, capsys):
    assert (
        run_command(evaluate.main, ["--model", str(model_folder), "--text", str(text_file), "--block_size", "16"]) == 0
    )
    printed = printed_metrics(capsys)

    tokenizer = ScratchGPTTokenizer.from_pretrained(model_folder)
    model = ScratchGPTForCausalLM.from_pretrained(model_folder)
    ids = [tokenizer.eos_token_id, *tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]
    nats, hits = 0.0, 0
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        log_probabilities = model(torch.tensor([window])).logits[0].detach().log_softmax(-1)
        nats -= sum(float(log_probabilities[i, window[i + 1]]) for i in range(len(window) - 1))
        hits += int((log_probabilities[:-1].argmax(-1) == torch.tensor(window[1:])).sum())
    loss = nats / (len(ids) - 1)
    assert float(printed["loss"].split()[0]) == pytest.approx(loss, abs=2e-4)
    assert float(printed["perplexity"]) == pytest.approx(math.exp(loss), rel=1e-3)
    assert float(printed["bits per byte"]) == pytest.approx(nats / math.log(2) / len(TEXT.encode()), abs=2e-4)
    assert float(printed["token accuracy"]) == pytest.approx(hits / (len(ids) - 1), abs=1e-4)
    assert printed["text"].startswith(f"{len(TEXT.encode()):,} bytes, {len(ids) - 1:,} tokens, ")


def test_metrics_leave_no_files(model_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_library.config, "HF_METRICS_CACHE", str(tmp_path / "home"))
    assert run_command(evaluate.main, ["--model", str(model_folder), "--text", str(text_file)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_pairs_need_no_text(model_folder, pairs_file, capsys):
    assert run_command(evaluate.main, ["--model", str(model_folder), "--pairs", str(pairs_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["file", str(pairs_file), "mean", "all"]

    tokenizer = ScratchGPTTokenizer.from_pretrained(model_folder)
    model = ScratchGPTForCausalLM.from_pretrained(model_folder)
    num_correct = 0
    for row in map(json.loads, pairs_file.read_text().splitlines()):
        losses = []
        for sentence in (row["sentence_good"], row["sentence_bad"]):
            ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(sentence)["input_ids"]]])
            losses.append(float(model(ids, labels=ids).loss.detach()) * (ids.shape[1] - 1))
        num_correct += losses[0] < losses[1]
    assert lines[1].split()[1:] == ["3", f"{num_correct / 3:.4f}"]


def test_pairs_and_a_text(model_folder, text_file, pairs_file, capsys):
    options = ["--model", str(model_folder), "--text", str(text_file), "--pairs", str(pairs_file)]
    assert run_command(evaluate.main, options) == 0
    printed = capsys.readouterr().out
    assert "nats per token" in printed
    assert "all pairs" in printed


def test_validation_split_of_prepared_data(model_folder, text_file, tmp_path, capsys):
    data = tmp_path / "data"
    options = {"tokenizer": model_folder, "output_dir": data, "text": text_file}
    prepare_data([f"--{name}={path}" for name, path in options.items()] + FORTY_PERCENT)
    capsys.readouterr()
    assert (
        run_command(evaluate.main, ["--model", str(model_folder), "--data_dir", str(data), "--block_size", "16"]) == 0
    )
    printed = printed_metrics(capsys)
    rows = open_data(data).validation.rows(range(len(open_data(data).validation)))
    model = ScratchGPTForCausalLM.from_pretrained(model_folder)
    expected = model(rows[:, :-1], labels=rows[:, 1:], shift_labels=rows[:, 1:].contiguous()).loss.detach()
    assert float(printed["loss"].split()[0]) == pytest.approx(float(expected), abs=2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--block_size", "65"], "--block_size is 65, but the model reads at most 64 tokens"),
        (["--micro_batch_size", "0"], "--micro_batch_size is 0"),
        (["--data_dir", "somewhere"], "--data_dir (somewhere) excludes --text and --dataset_name"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--pairs", "/nowhere"], "--pairs /nowhere does not exist"),
    ],
)
def test_refuses(model_folder, text_file, capsys, options, message):
    arguments = ["--model", str(model_folder), "--text", str(text_file), *options]
    assert run_command(evaluate.main, arguments) == 2
    assert message in capsys.readouterr().err


def test_refuses_a_table_without_text(model_folder, tmp_path, capsys):
    (tmp_path / "table.jsonl").write_text('{"text": ""}\n')
    arguments = ["--model", str(model_folder), "--text", str(tmp_path / "table.jsonl")]
    assert run_command(evaluate.main, arguments) == 2
    assert "The text has no token to predict" in capsys.readouterr().err


def test_refuses_another_models_tokenizer(model_folder, text_file, tmp_path, capsys):
    ScratchGPTTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path)
    ScratchGPTForCausalLM(tiny_config()).save_pretrained(tmp_path)
    assert run_command(evaluate.main, ["--model", str(tmp_path), "--text", str(text_file)]) == 2
    assert "but the model has only 97: it is another model's tokenizer" in capsys.readouterr().err
