import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from train.data.tables import load_split, read_rows
from train.data.text_files import read_text

TYPED = [
    {"text": "a", "label": 1, "weight": 0.5, "tags": ["x"], "turn": {"role": "user"}, "more": None},
    {"text": "b", "label": 2, "weight": 1.0, "tags": [], "turn": {"role": "system"}, "more": True},
]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_typed(path: Path) -> Path:
    if path.suffix == ".jsonl":
        return write(path, "".join(f"{json.dumps(row)}\n" for row in TYPED))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TYPED), path)
    return path


@pytest.mark.parametrize(("name", "first"), [("a.jsonl", 1), ("a.parquet", 0)])
def test_cells_keep_their_type(tmp_path, name, first):
    path = write_typed(tmp_path / name)
    assert list(read_rows(path)) == list(enumerate(TYPED, start=first))
    (_, row), _ = read_rows(path, ["label", "text"])
    assert list(row.items()) == [("label", 1), ("text", "a")]


def test_cells_of_csv_and_tsv_are_strings(tmp_path):
    for name, content in (("a.csv", "text,label\na,1\n"), ("a.tsv", "text\tlabel\r\na\t1\r\n")):
        path = write(tmp_path / name, content)
        assert list(read_rows(path)) == [(2, {"text": "a", "label": "1"})]
        assert list(read_rows(path, ["label"])) == [(2, {"label": "1"})]


def test_csv_cells_are_quoted_and_counted_by_their_last_line(tmp_path):
    path = write(tmp_path / "a.csv", '\ufefftext,label\n"x, ""y""\nz",1\n\nlast,2\n')
    assert list(read_rows(path)) == [(3, {"text": 'x, "y"\nz', "label": "1"}), (5, {"text": "last", "label": "2"})]


def test_quotation_marks_are_characters_in_tsv(tmp_path):
    texts = ['"Hi', "it's", 'say ""', '"whole"', "a, b", ""]
    path = write(tmp_path / "a.tsv", "label\ttext\n" + "".join(f"ham\t{text}\n" for text in texts))
    assert [row["text"] for _, row in read_rows(path)] == texts
    assert [number for number, _ in read_rows(path)] == [2, 3, 4, 5, 6, 7]


def test_empty_lines_of_jsonl_are_skipped_but_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", '\n{"text": "a"}\n\n \t\r\n{"text": "b"}\n\n')
    assert list(read_rows(path)) == [(2, {"text": "a"}), (5, {"text": "b"})]


def test_rows_of_jsonl_may_differ(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "n": 1}\n{"text": "b"}\n')
    assert [row for _, row in read_rows(path)] == [{"text": "a", "n": 1}, {"text": "b"}]
    with pytest.raises(ValueError, match=r"a\.jsonl:2 has no column 'n'; its columns are text\."):
        list(read_rows(path, ["text", "n"]))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_missing_column_names_place_columns_and_option(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    rows = {".jsonl": '{"text": "a", "kind": "b"}\n', ".csv": "text,kind\na,b\n", ".tsv": "text\tkind\na\tb\n"}
    if suffix in rows:
        write(path, rows[suffix])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "kind": ["b"]}), path)
    place = rf"a\{suffix}:1" if suffix == ".jsonl" else rf"a\{suffix}"
    message = rf"{place} has no column 'label'; its columns are text, kind\. Name one of them with --label_column\."
    with pytest.raises(ValueError, match=message):
        list(read_rows(path, ["text", "label"], "--label_column"))


def test_missing_column_of_an_empty_table(tmp_path):
    assert list(read_rows(write(tmp_path / "a.csv", ""))) == []
    with pytest.raises(ValueError, match=r"its columns are none.*--text_column"):
        list(read_rows(tmp_path / "a.csv", ["text"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,label\na,1\n"open,2\n', r"a\.csv:3: not CSV \(unexpected end of data\)"),
        ("a.csv", 'text,label\n"a"b,1\n', r"a\.csv:2: not CSV \("),
        ("a.csv", "text,label\na,1\nb\n", r"a\.csv:3: 1 field, but the first line names 2 columns"),
        ("a.csv", "text,label\na,1\nb,c,2\n", r"a\.csv:3: 3 fields, but the first line names 2 columns"),
        ("a.tsv", "text\tlabel\na\tb\t1\n", r"a\.tsv:2: 3 fields, but the first line names 2 columns"),
        ("a.tsv", "text\tlabel\ra\t1\r", r"a\.tsv:1: not TSV \(new-line character"),
        ("a.tsv", b"text\tlabel\na\t\xff\n", r"a\.tsv is not UTF-8 text: byte 13 is 0xff"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl:2: column 1?\d: not JSON"),
        ("a.jsonl", '"text"\n', r"a\.jsonl:1: must be a JSON object, not str"),
        ("a.parquet", "not parquet", r"a\.parquet is not a readable \.parquet file"),
    ],
)
def test_broken_table_is_named_with_the_line(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(path, ["text"] if name == "a.csv" else None))


def test_rows_before_the_broken_line_are_read(tmp_path):
    rows = read_rows(write(tmp_path / "a.csv", "text,label\na,1\nb\n"))
    assert next(rows) == (2, {"text": "a", "label": "1"})
    with pytest.raises(ValueError, match="1 field,"):
        next(rows)


def test_parquet_reads_only_the_columns_asked_for(tmp_path):
    """The bytes of the other column are destroyed, so reading them fails."""
    path = tmp_path / "a.parquet"
    texts = [f"text {number}" for number in range(1000)]
    table = pyarrow.table({"text": texts, "other": [f"other {number}" for number in range(1000)]})
    pyarrow.parquet.write_table(table, path, use_dictionary=False)
    chunk = pyarrow.parquet.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    begin = chunk.data_page_offset
    content[begin : begin + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    write(path, bytes(content))
    assert list(read_rows(path, ["text"])) == [(number, {"text": text}) for number, text in enumerate(texts)]
    with pytest.raises(ValueError, match=r"a\.parquet is not a readable \.parquet file"):
        list(read_rows(path))


def test_suffix_decides_what_a_table_is(tmp_path):
    path = write(tmp_path / "a.txt", "text,label\n")
    with pytest.raises(ValueError, match=r"a\.txt is not a table: .* \.json, .* \.parquet, or these with \.gz\."):
        read_rows(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_table_that_is_not_there(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"{name}"):
        list(read_rows(tmp_path / name))


def test_text_is_read_exactly_without_the_byte_order_mark(tmp_path):
    assert read_text(write(tmp_path / "a.txt", "\ufeffa\n\n\u2028b\rc\ufeff")) == "a\n\n\u2028b\rc\ufeff"


def test_only_a_line_feed_ends_a_row_of_jsonl(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a\u2028b\x85c"}\r\n{"text": "d"}')
    assert list(read_rows(path)) == [(1, {"text": "a\u2028b\x85c"}), (2, {"text": "d"})]


def test_load_split_of_saved_folders(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "label": [0, 1]})
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "saved")
    assert load_split(str(tmp_path / "saved"), None, "test")[:] == {"text": ["two"], "label": [1]}
    assert len(load_split(str(tmp_path / "saved" / "train"), None, "whatever")) == 2
    with pytest.raises(ValueError, match=r"saved has no split 'dev'; choose one of train, test\."):
        load_split(str(tmp_path / "saved"), None, "dev")


@pytest.mark.parametrize("streaming", [False, True])
def test_load_split_of_a_folder_of_files(tmp_path, monkeypatch, streaming):
    """`load_dataset` on a local folder of files is read like a dataset on the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub/test.jsonl", '{"text": "a", "label": 1}\n')
    rows = load_split(str(tmp_path / "hub"), None, "test", ["text"], streaming)
    assert isinstance(rows, datasets.IterableDataset if streaming else datasets.Dataset)
    assert list(rows) == [{"text": "a", "label": 1}]
    with pytest.raises(ValueError, match=r"hub \(test\) has no column 'body'; its columns are text, label\..*--body"):
        load_split(str(tmp_path / "hub"), None, "test", ["label", "body"], streaming, option="--body")
