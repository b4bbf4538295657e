"""Rows of tables and datasets, divided into parts."""

import json

import datasets
import pytest

from tests.support.tiny_base import write_rows
from train.data.rows import read_parts
from train.settings.finetuning import LabelArguments, RowsArguments


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


def test_a_part_with_its_own_file_is_read_in_order(table):
    parts = read_parts(RowsArguments(train_file=[table, table], validation_file=[table]), {"validation": 0.1}, seed=0)
    assert texts(parts["train"]) == [str(i) for i in range(40)] * 2
    assert texts(parts["validation"]) == [str(i) for i in range(40)]
    assert parts["train"][3].place == f"{table}:4"


def test_class_numbers_of_a_dataset_become_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    datasets.DatasetDict({"train": rows, "dev": rows.select([0])}).save_to_disk(tmp_path / "saved")
    settings = RowsArguments(dataset_name=str(tmp_path / "saved"), validation_split="dev")
    parts = read_parts(settings, {"validation": 0.1}, 0, ["label"])
    assert [row.cells for row in parts["train"]] == [{"label": "yes"}, {"label": "no"}, {"label": None}]
    assert [row.cells for row in parts["validation"]] == [{"label": "yes"}]
    with pytest.raises(ValueError, match="has no column 'colour'; its columns are text, label"):
        read_parts(settings, {"validation": 0.1}, 0, ["colour"])


def test_parts_must_not_use_up_the_rows(table):
    settings = RowsArguments(train_file=[table], validation_fraction=0.5)
    with pytest.raises(ValueError, match=r"--validation_fraction \(0\.5\) and --test_fraction \(0\.6\) leave no row"):
        read_parts(LabelArguments(**vars(settings), test_fraction=0.6), {"validation": 0.1, "test": 0.1}, seed=0)
    with pytest.raises(ValueError, match=r"no rows for validation: 0\.001 of 40 rows is none\. Give more"):
        read_parts(RowsArguments(train_file=[table]), {"validation": 0.001}, seed=0)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_files_that_are_not_there_are_named_with_their_option(table, tmp_path, part):
    for path, message in ((tmp_path / "gone.csv", "does not exist"), (tmp_path, "is a folder: give the tables")):
        settings = LabelArguments(**({"train_file": [table]} | {f"{part}_file": [str(path)]}))
        with pytest.raises((ValueError, FileNotFoundError), match=f"--{part}_file {path} {message}"):
            read_parts(settings, {"validation": 0.1, "test": 0.1}, seed=0)


def test_tables_of_other_programs(tmp_path):
    path = tmp_path / "a.CSV"
    path.write_bytes("ham,Café\r\nspam,naïve\r\n".encode("cp1252"))
    held_out = tmp_path / "b.csv"
    held_out.write_bytes("ham,Müller\r\n".encode("cp1252"))
    settings = LabelArguments(
        train_file=[str(path)], validation_file=[str(held_out)], columns=["label", "text"], encoding="cp1252"
    )
    parts = read_parts(settings, {"validation": 0.1}, 0, ["text", "label"])
    assert texts(parts["train"]) == ["Café", "naïve"]
    assert parts["train"][1].place == f"{path}:2"
    assert texts(parts["validation"]) == ["Müller"]
    with pytest.raises(ValueError, match=r"--encoding \(cp1252\) requires --train_file"):
        RowsArguments(dataset_name="x", encoding="cp1252")
    RowsArguments(dataset_name="x", validation_file=["b.csv"], encoding="cp1252")


def test_a_json_list_of_instructions(tmp_path):
    rows = [{"instruction": "Add 1 and 2.", "input": "", "output": "3"}] * 20
    path = tmp_path / "instruction-data.json"
    path.write_text(json.dumps(rows, indent=4))
    parts = read_parts(RowsArguments(train_file=[str(path)]), {"validation": 0.1}, seed=0)
    assert [len(some) for some in parts.values()] == [18, 2]
    assert parts["train"][0].cells == rows[0]
    assert {row.place for some in parts.values() for row in some} == {f"{path}, row {i}" for i in range(20)}


def test_line_ends_of_windows_in_a_dataset(tmp_path):
    rows = datasets.Dataset.from_dict({"messages": [[{"role": "user", "content": "a\r\nb"}]] * 4})
    rows.save_to_disk(tmp_path / "saved")
    for keep in (False, True):
        settings = RowsArguments(dataset_name=str(tmp_path / "saved"), validation_split="x", keep_crlf=keep)
        row = read_parts(settings, {"validation": 0.1}, 0)["train"][0]
        assert row.cells["messages"][0]["content"] == ("a\r\nb" if keep else "a\nb")
