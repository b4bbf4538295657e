"""Rows of tables and datasets, cut into parts; and how long a tuning run is."""

import datasets
import pytest

from tests.support.tiny_base import write_rows
from train.data.rows import read_parts
from train.settings.finetuning import BaseArguments, RowsArguments, TuneArguments


@pytest.fixture
def table(tmp_path):
    return str(write_rows(tmp_path / "rows.jsonl", [{"text": str(i)} for i in range(40)]))


def texts(rows):
    return [row.cells["text"] for row in rows]


def test_held_out_rows_are_random_and_disjoint(table):
    parts = read_parts(RowsArguments(train_file=[table]), {"validation": 0.1}, seed=0)
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 36, "validation": 4}
    assert sorted(texts(parts["train"]) + texts(parts["validation"]), key=int) == [str(i) for i in range(40)]
    again = read_parts(RowsArguments(train_file=[table]), {"validation": 0.1}, seed=0)
    other = read_parts(RowsArguments(train_file=[table]), {"validation": 0.1}, seed=1)
    assert parts == again
    assert texts(parts["validation"]) != texts(other["validation"])
    half = read_parts(RowsArguments(train_file=[table], validation_fraction=0.5), {"validation": 0.1}, seed=0)
    assert len(half["validation"]) == 20


def test_parts_with_files_of_their_own_stay_as_they_are(table):
    parts = read_parts(RowsArguments(train_file=[table, table], validation_file=[table]), {"validation": 0.1}, seed=0)
    assert texts(parts["train"]) == [str(i) for i in range(40)] * 2
    assert texts(parts["validation"]) == [str(i) for i in range(40)]
    assert parts["train"][3].place == f"{table}:4"


def test_classes_of_a_dataset_have_their_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    datasets.DatasetDict({"train": rows, "dev": rows.select([0])}).save_to_disk(tmp_path / "saved")
    settings = RowsArguments(dataset_name=str(tmp_path / "saved"), validation_split="dev")
    parts = read_parts(settings, {"validation": 0.1}, 0, ["label"])
    assert [row.cells for row in parts["train"]] == [{"label": "yes"}, {"label": "no"}, {"label": None}]
    assert [row.cells for row in parts["validation"]] == [{"label": "yes"}]
    with pytest.raises(ValueError, match="has no column 'colour'; its columns are text, label"):
        read_parts(settings, {"validation": 0.1}, 0, ["colour"])


@pytest.mark.parametrize(
    ("settings", "steps", "every"),
    [
        ({}, 75, 8),  # 3 epochs of 200 / 8 steps
        ({"num_train_epochs": 0.5}, 13, 2),
        ({"max_steps": 7}, 7, 1),
        ({"max_steps": 100, "eval_steps": 30}, 100, 30),
    ],
)
def test_the_length_of_a_run_follows_from_its_examples(settings, steps, every):
    arguments = TuneArguments("run", global_batch_size=8, micro_batch_size=8, **settings).for_examples(200)
    assert (arguments.max_steps, arguments.eval_steps, arguments.save_steps) == (steps, every, every)
    assert arguments.num_warmup_steps == steps // 10
    assert arguments.for_examples(999) == arguments


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TuneArguments, {"num_train_epochs": 0.0}, "--num_train_epochs is 0.0: it must be a positive number"),
        (TuneArguments, {"num_train_epochs": float("inf")}, "--num_train_epochs is inf"),
        (
            TuneArguments,
            {"global_batch_size": 6, "micro_batch_size": 4},
            r"--global_batch_size \(6\) must be a multiple",
        ),
        (TuneArguments, {"max_steps": 0}, "--max_steps is 0: it must be a number of at least 1"),
        (BaseArguments, {"trainable": "lora", "lora_dropout": 1.0}, "--lora_dropout is 1.0: it must lie below 1"),
        (
            BaseArguments,
            {"trainable": "layers", "num_trainable_layers": 0},
            "--num_trainable_layers is 0: it must be a number of at least 1",
        ),
    ],
)
def test_settings_out_of_range(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind("x", **settings)
