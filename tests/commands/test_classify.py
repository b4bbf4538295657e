"""`classify`: labels of texts from every source, against the model's own probabilities, and the mistakes it refuses."""

import csv
import io
import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from hf_scratch_gpt import ScratchGPTForSequenceClassification
from tests.support.tiny_base import COLOURS, TEXTS, options, write_labels
from train import classify, finetune_classifier
from train.settings.command import run_command


@pytest.fixture(scope="module")
def run(tmp_path_factory, base):
    """A run with an adapter, and the model it was merged into."""
    folder = tmp_path_factory.mktemp("classifier")
    table = write_labels(folder / "rows.csv")
    line = options(model=base, train_file=table, output_dir=folder / "run", trainable="lora", learning_rate=0.05,
                   max_steps=20)  # fmt: skip
    assert run_command(finetune_classifier.main, line) == 0
    return folder / "run"


@pytest.fixture
def table(tmp_path):
    return write_labels(tmp_path / "rows.csv", count=12)


def printed(capsys, *line):
    capsys.readouterr()
    assert run_command(classify.main, list(map(str, line))) == 0
    return capsys.readouterr().out.splitlines()


def expected(model):
    """The label and probability of each text, one by one."""
    loaded = pipeline("text-classification", model=str(model), device="cpu")
    return [(one["label"], one["score"]) for one in (loaded(text)[0] for text in TEXTS[:12])]


def test_labels_and_probabilities_are_those_of_the_model(run, table, capsys):
    lines = printed(capsys, "--model", run / "model", "--file", table, "--micro_batch_size", 5)
    assert len(lines) == 14
    assert max(map(len, lines)) <= 80
    right = 0
    for line, (label, probability), text in zip(lines, expected(run / "model"), TEXTS, strict=False):
        found, shown, *rest = line.split()
        assert found == label
        assert float(shown) == pytest.approx(probability, abs=2e-4)
        assert " ".join(rest) == text
        right += label == text.split()[-1].strip(".")
    assert lines[12].split() == ["accuracy", f"{right / 12:.2%}", "of", "12", "texts"]
    assert lines[13].split() == ["majority", "rate", "33.33%", "(red)"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_is_written_with_all_its_columns(run, table, tmp_path, capsys, suffix):
    output = tmp_path / "new" / f"labels{suffix}"
    lines = printed(capsys, "--model", run / "model", "--file", table, "--output_file", output)
    assert len(lines) == 2  # the accuracy
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file)) if suffix == ".csv" else [json.loads(line) for line in file]
    assert list(rows[0]) == ["text", "label", "predicted_label", "probability"]
    for row, text, (label, probability) in zip(rows, TEXTS, expected(run / "model"), strict=False):
        assert (row["text"], row["predicted_label"]) == (text, label)
        assert float(row["probability"]) == pytest.approx(probability, abs=2e-4)


def test_texts_and_lines_of_standard_input(run, capsys, monkeypatch):
    texts = printed(capsys, "--model", run / "model", "--text", *TEXTS[:3])
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n".join(TEXTS[:3]) + "\n"))
    assert printed(capsys, "--model", run / "model") == texts
    assert len(texts) == 3


def test_an_adapter_knows_its_labels(run, table, capsys):
    names = [printed(capsys, "--model", run / folder, "--file", table) for folder in ("model", "adapter")]
    assert names[0] == names[1]


def test_an_adapter_of_another_program_has_numbered_labels(run, tmp_path, table, capsys):
    folder = tmp_path / "adapter"
    shutil.copytree(run / "adapter", folder)
    (folder / "base_model.json").unlink()
    found = {
        line.split()[0] for line in printed(capsys, "--model", folder, "--file", table, "--label_column", "text")[:12]
    }
    assert found <= {"LABEL_0", "LABEL_1", "LABEL_2"}


def test_a_table_without_header_in_another_encoding(run, tmp_path, capsys):
    (tmp_path / "rows.csv").write_bytes("The a number 1 is r\u00e9d.,red\n".encode("latin-1"))
    line = [
        "--model",
        run / "model",
        "--file",
        tmp_path / "rows.csv",
        "--encoding",
        "latin-1",
        "--columns",
        "text",
        "label",
    ]
    assert "The a number 1 is r\u00e9d." in printed(capsys, *line)[0]


def test_long_texts_are_truncated_as_in_training(run, capsys):
    line = ["--model", str(run / "model"), "--text", TEXTS[0] + " more" * 100, "--max_length", "5"]
    assert run_command(classify.main, line) == 0
    assert "warning: truncated 1 text to 5 tokens" in capsys.readouterr().err


def test_control_tokens_in_a_text_are_text(run, capsys):
    text = "The a<|pad|> number<|end|>"
    (line,) = printed(capsys, "--model", run / "model", "--text", text)
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer(text, split_special_tokens=True, return_tensors="pt")["input_ids"]
    assert not set(ids[0].tolist()) & set(tokenizer.all_special_ids)
    probabilities = ScratchGPTForSequenceClassification.from_pretrained(run / "model")(ids).logits.softmax(-1)
    assert float(line.split()[1]) == pytest.approx(float(probabilities.max().detach()), abs=2e-4)


def test_labels_that_the_model_does_not_know_are_listed(run, table, capsys):
    table.write_text("text,label\nThe a number 1 is red.,purple\nThe b.,red\n")
    lines = printed(capsys, "--model", run / "model", "--file", table)
    assert lines[-1] == "unknown labels  purple"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--text", "a", "--file", "b.csv"], "--text and --file exclude each other"),
        (["--text", "a", "--text_column", "b"], "--text_column (b) requires --file"),
        (["--text", "a", "--output_file", "b.txt"], "--output_file b.txt: the suffix must be one of .csv, .jsonl"),
        (["--text", " "], "--text 1: column 'text' must be non-empty text"),
        (["--text", "a", "--max_length", "65"], "--max_length is 65, but the model reads at most 64 tokens"),
        (["--text", "a", "--micro_batch_size", "0"], "--micro_batch_size is 0"),
        (["--file", "{table}", "--text_column", "body"], "has no column 'body'; its columns are text, label"),
        (["--file", "{table}", "--label_column", "body"], "has no column 'body'; its columns are text, label"),
        (["--file", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_refuses(run, table, capsys, line, message):
    line = [option.replace("{table}", str(table)) for option in line]
    assert run_command(classify.main, ["--model", str(run / "model"), *line]) == 2
    assert message in capsys.readouterr().err


def test_refuses_nothing_and_columns_that_it_would_overwrite(run, tmp_path, capsys, monkeypatch):
    for stdin in (io.StringIO(""), None):  # empty and closed
        monkeypatch.setattr("sys.stdin", stdin)
        assert run_command(classify.main, ["--model", str(run / "model")]) == 2
        assert "there is no text to classify" in capsys.readouterr().err
    table = tmp_path / "rows.csv"
    table.write_text("text,probability\na,1\n")
    line = ["--model", str(run / "model"), "--file", str(table), "--output_file", str(tmp_path / "out.csv")]
    assert run_command(classify.main, line) == 2
    assert "already has a column 'probability'" in capsys.readouterr().err


def test_refuses_a_regression_and_damaged_weights(run, tmp_path, capsys):
    for change, message in (
        ("nan", "are not finite: its weights are damaged"),
        ("regression", "is a model for regression"),
    ):
        folder = tmp_path / change
        shutil.copytree(run / "model", folder)
        model = ScratchGPTForSequenceClassification.from_pretrained(folder)
        if change == "nan":
            with torch.no_grad():
                model.score.weight[0, 0] = float("nan")
        else:
            model.config.problem_type = change
        model.save_pretrained(folder)
        assert run_command(classify.main, ["--model", str(folder), "--text", "x"]) == 2
        assert message in capsys.readouterr().err


def test_the_labels_of_the_run_are_colours(run):
    assert json.loads((run / "adapter" / "base_model.json").read_text())["labels"] == sorted(COLOURS)
