"""Training on datasets from a Hub."""

import json

import datasets
import pytest
from datasets import load_dataset

from tests.support.tiny_base import options, write_labels
from train import finetune_classifier, prepare_data
from train.settings.command import run_command


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def colours(request, hub, tmp_path):
    """alice/colours: a private dataset of texts with a label each."""
    suffix = request.param
    table = datasets.Dataset.from_csv(str(write_labels(tmp_path / "rows.csv")), cache_dir=str(tmp_path / "cache"))
    getattr(table, f"to_{suffix.replace('jsonl', 'json')}")(tmp_path / f"train.{suffix}")
    hub.create("alice/colours", kind="dataset", private=True)
    hub.commit("alice/colours", {f"train.{suffix}": (tmp_path / f"train.{suffix}").read_bytes()}, kind="dataset")
    yield list(table)
    viewer = "a client looked for datasets-server.127.0.0.1"  # a separate service, which is optional
    hub.errors[:] = [error for error in hub.errors if error != viewer]


def test_rows_arrive_as_they_are(colours):
    assert list(load_dataset("alice/colours", split="train")) == colours
    assert list(load_dataset("alice/colours", split="train", streaming=True)) == colours


def test_others_do_not_see_a_private_dataset(colours, hub, monkeypatch, base, tmp_path, capsys):
    monkeypatch.setenv("HF_TOKEN", hub.token("bob"))
    line = ["--tokenizer", str(base), "--output_dir", str(tmp_path / "data"), "--dataset_name", "alice/colours"]
    assert run_command(prepare_data.main, line) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: Dataset 'alice/colours' doesn't exist on the Hub or cannot be accessed.")


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_corpus_from_the_hub(streaming, colours, base, tmp_path, capsys):
    line = [
        "--tokenizer",
        base,
        "--output_dir",
        tmp_path / "data",
        "--dataset_name",
        "alice/colours",
        "--block_size",
        16,
    ]
    line += ["--validation_fraction", 0.2, "--streaming", streaming]
    assert run_command(prepare_data.main, list(map(str, line))) == 0, capsys.readouterr().err
    manifest = json.loads((tmp_path / "data/data.json").read_text())
    assert sum(split["num_documents"] for split in manifest["splits"].values()) == len(colours)
    assert {json.dumps(split["origin"]) for split in manifest["splits"].values()} == {
        json.dumps({"dataset": "alice/colours", "config": None, "split": "train"})
    }


@pytest.mark.parametrize("colours", ["parquet"], indirect=True)
def test_a_classifier_learns_the_same_from_the_hub_and_from_a_table(colours, base, tmp_path, capsys):
    """And so the rows are the same, in the same order."""
    losses = []
    for name, source in (("hub", {"dataset_name": "alice/colours"}), ("table", {"train_file": tmp_path / "rows.csv"})):
        line = options(model=base, output_dir=tmp_path / name, max_new_tokens=None, **source)
        assert run_command(finetune_classifier.main, line) == 0, capsys.readouterr().err
        losses.append(json.loads((tmp_path / name / "test_results.json").read_text())["test_loss"])
    assert losses[0] == losses[1]
