"""`evaluate`: its metrics against a calculation by hand, and the mistakes it refuses."""

import json
import math
import re
import shutil

import evaluate as evaluate_library
import numpy as np
import pytest
import torch

from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTTokenizer
from tests.support.tiny import tiny_config
from train import evaluate
from train.data.blocks import open_data
from train.metrics import text_scores
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


def printed_scores(capsys):
    """The cells of each line of the table, by the name of the text and of the column."""
    printed = capsys.readouterr().out
    lines = printed[printed.index("text  ") :].splitlines()
    assert max(map(len, lines)) <= 80, lines
    lines = [line for line in printed.splitlines() if re.search(r"\d\.\d{4} ", line)]
    rows = {}
    for line in lines:
        name, (tokens, *values) = line[:19].strip(), line[19:].split()
        values = values if len(values) == 5 else [values[0], "nan", *values[1:]]
        numbers = [float(value.replace(",", "")) for value in (tokens, *values)]
        rows[name] = dict(zip(("tokens", "loss", "error", "perplexity", "bits", "accuracy"), numbers, strict=True))
    return rows, printed


def test_windows_predict_each_token_once():
    stream = [np.arange(4), np.arange(4, 5), np.arange(5, 18)]
    windows = list(evaluate.windows_of(stream, block_size=5))
    assert [len(window) for window in windows] == [6, 6, 6, 3]
    assert np.concatenate([window[1:] for window in windows]).tolist() == list(range(1, 18))


def test_loss_of_a_text_matches_its_tokens_scored_one_by_one(model_folder, text_file, capsys):
    assert (
        run_command(evaluate.main, ["--model", str(model_folder), "--text", str(text_file), "--block_size", "16"]) == 0
    )
    rows, printed = printed_scores(capsys)
    scores = rows["text.txt"]

    tokenizer = ScratchGPTTokenizer.from_pretrained(model_folder)
    model = ScratchGPTForCausalLM.from_pretrained(model_folder)
    ids = [tokenizer.eos_token_id, *tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]
    nats, hits, windows = 0.0, 0, []
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        log_probabilities = model(torch.tensor([window])).logits[0].detach().log_softmax(-1)
        windows.append(
            (-sum(float(log_probabilities[i, window[i + 1]]) for i in range(len(window) - 1)), len(window) - 1)
        )
        nats += windows[-1][0]
        hits += int((log_probabilities[:-1].argmax(-1) == torch.tensor(window[1:])).sum())
    loss = nats / (len(ids) - 1)
    squares = sum((found - loss * length) ** 2 for found, length in windows)
    error = math.sqrt(squares * len(windows) / (len(windows) - 1)) / (len(ids) - 1)
    assert scores["loss"] == pytest.approx(loss, abs=2e-4)
    assert scores["error"] == pytest.approx(error, abs=2e-4)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-3)
    assert scores["bits"] == pytest.approx(nats / math.log(2) / len(TEXT.encode()), abs=2e-4)
    assert scores["accuracy"] == pytest.approx(hits / (len(ids) - 1), abs=1e-4)
    assert scores["tokens"] == len(ids) - 1
    assert f"{len(TEXT.encode()):,} bytes of text, " in printed
    assert f"over {len(windows)} windows" in printed
    assert "block size  16 tokens\n" in printed


def test_several_texts_have_a_line_each_and_a_total(model_folder, text_file, tmp_path, capsys):
    folder = tmp_path / "a folder with a name that is much too long"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.txt").write_text("def two(x):\n" * (30 + number))
    options = ["--model", str(model_folder), "--text", str(text_file), str(folder), "--block_size", "16"]
    assert run_command(evaluate.main, options) == 0
    rows, _ = printed_scores(capsys)
    first, second = (row for name, row in rows.items() if name != "total")
    total = rows["total"]
    assert total["tokens"] == first["tokens"] + second["tokens"]
    mean = (first["loss"] * first["tokens"] + second["loss"] * second["tokens"]) / total["tokens"]
    assert total["loss"] == pytest.approx(mean, abs=2e-4)


def test_the_sums_of_two_texts_are_those_of_both():
    generator = torch.Generator().manual_seed(0)
    parts = [-torch.rand(windows, length, generator=generator) for windows, length in ((3, 8), (2, 5))]
    scores = [text_scores.TextScores() for _ in parts]
    both = text_scores.TextScores()
    for one, log_probs in zip(scores, parts, strict=True):
        for target in (one, both):
            target.add_windows(log_probs, log_probs > -0.5, num_bytes=7)
    assert scores[0] + scores[1] == both
    assert math.isnan(text_scores.TextScores(1, 2, 3, 1, 1.0, 1.0, 4.0, 2.0).loss_error)


def test_metrics_leave_no_files(model_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_library.config, "HF_METRICS_CACHE", str(tmp_path / "home"))
    assert run_command(evaluate.main, ["--model", str(model_folder), "--text", str(text_file)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_pairs_need_no_text(model_folder, pairs_file, capsys):
    assert run_command(evaluate.main, ["--model", str(model_folder), "--pairs", str(pairs_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    lines = lines[lines.index("") + 1 :]
    assert [line.split()[0] for line in lines[:3]] == ["file", lines[1].split()[0], "all"]

    tokenizer = ScratchGPTTokenizer.from_pretrained(model_folder)
    model = ScratchGPTForCausalLM.from_pretrained(model_folder)
    num_correct = 0
    for row in map(json.loads, pairs_file.read_text().splitlines()):
        losses = []
        for sentence in (row["sentence_good"], row["sentence_bad"]):
            ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(sentence)["input_ids"]]])
            losses.append(float(model(ids, labels=ids).loss.detach()) * (ids.shape[1] - 1))
        num_correct += losses[0] < losses[1]
    assert lines[2].split()[2:4] == ["3", f"{num_correct / 3:.4f}"]


def test_pairs_and_a_text(model_folder, text_file, pairs_file, capsys):
    options = ["--model", str(model_folder), "--text", str(text_file), "--pairs", str(pairs_file)]
    assert run_command(evaluate.main, options) == 0
    printed = capsys.readouterr().out
    assert "nats per token" in printed
    assert "guessing gives 0.5" in printed
    assert "all pairs" in printed


@pytest.fixture
def prepared(model_folder, text_file, tmp_path):
    """Prepared data with blocks of 16 tokens."""
    options = {"tokenizer": model_folder, "output_dir": tmp_path / "data", "text": text_file}
    prepare_data([f"--{name}={path}" for name, path in options.items()] + FORTY_PERCENT)
    return tmp_path / "data"


def loss_on(model_folder, data):
    blocks = open_data(data).validation
    rows = blocks.rows(range(len(blocks)))
    model = ScratchGPTForCausalLM.from_pretrained(model_folder)
    return float(model(rows[:, :-1], labels=rows[:, 1:], shift_labels=rows[:, 1:].contiguous()).loss.detach())


def test_validation_split_of_prepared_data_with_its_block_size(model_folder, prepared, capsys):
    capsys.readouterr()
    assert run_command(evaluate.main, ["--model", str(model_folder), "--data_dir", str(prepared)]) == 0
    rows, printed = printed_scores(capsys)
    assert next(iter(rows.values()))["loss"] == pytest.approx(loss_on(model_folder, prepared), abs=2e-4)
    assert "block size  16 tokens, as in the data" in printed


def test_a_model_in_its_run_is_evaluated_on_the_data_of_the_run(model_folder, text_file, prepared, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(model_folder, run / "model")
    (run / "recipe.yaml").write_text(f"data_dir: {prepared}\n")
    capsys.readouterr()
    assert run_command(evaluate.main, ["--model", str(run / "model")]) == 0
    rows, _ = printed_scores(capsys)
    assert next(iter(rows.values()))["loss"] == pytest.approx(loss_on(model_folder, prepared), abs=2e-4)
    assert run_command(evaluate.main, ["--model", str(run / "model"), "--text", str(text_file)]) == 0
    assert "block size  16 tokens, as in training" in capsys.readouterr().out
    (prepared / "data.json").write_text("{")
    assert run_command(evaluate.main, ["--model", str(run / "model"), "--text", str(text_file)]) == 0
    assert "block size  64 tokens\n" in capsys.readouterr().out
    shutil.rmtree(prepared)
    assert run_command(evaluate.main, ["--model", str(run / "model")]) == 2
    assert "there is nothing to evaluate on: give --text" in capsys.readouterr().err


def test_data_of_another_tokenizer_of_equal_size_is_refused(model_folder, prepared, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert run_command(evaluate.main, ["--model", str(other), "--data_dir", str(prepared)]) == 2
    assert "was encoded with another tokenizer than that of the model: 2 tokens differ" in capsys.readouterr().err


@pytest.fixture
def evaluate_changed(model_folder, text_file, tmp_path):
    """Evaluate a copy of the model, changed by a function of its last norm's weights; returns the exit code."""

    def evaluate_changed(change):
        model = ScratchGPTForCausalLM.from_pretrained(model_folder)
        with torch.no_grad():
            change(model.model.norm.weight)
        shutil.copytree(model_folder, tmp_path / "model")
        model.save_pretrained(tmp_path / "model")
        return run_command(evaluate.main, ["--model", str(tmp_path / "model"), "--text", str(text_file)])

    return evaluate_changed


def test_a_loss_above_guessing_is_pointed_out(evaluate_changed, capsys):
    assert evaluate_changed(lambda weight: weight.mul_(-50)) == 0  # the right tokens become improbable
    assert "warning: the loss is worse than guessing (ln 280 = 5.6348)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is nothing to evaluate on: give --text, --dataset_name, --data_dir"),
        (["--text_column", "body"], "--text_column (body) requires --text or --dataset_name"),
        (["--data_dir", "x", "--text_column", "body"], "--text_column (body) requires --text or --dataset_name"),
        (["--text", "a", "--validation_fraction", "0.4"], "--validation_fraction (0.4) has no effect: --text is evalu"),
        (["--text", "a", "--validation_text", "b"], "--validation_text (['b']) has no effect: --text is evaluated in"),
    ],
)
def test_refuses_options_without_effect(model_folder, capsys, options, message):
    assert run_command(evaluate.main, ["--model", str(model_folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_refuses_damaged_weights(evaluate_changed, capsys):
    assert evaluate_changed(lambda weight: weight[0].fill_(math.nan)) == 2
    assert "not finite: its weights are damaged" in capsys.readouterr().err


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
