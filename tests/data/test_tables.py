import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from train.data.tables import load_split, read_rows
from train.data.text_files import read_text
from train.settings.reading import Reading

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


# Lists in .json


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", [".json", ".JSON", ".json.gz"])
def test_a_json_list_gives_its_items(tmp_path, monkeypatch, indent, suffix):
    rows = [*TYPED, {"text": 'brackets ]}[{" and \\ "', "label": 3}, {"text": "é\u2028", "more": [1, {"a": []}]}]
    content = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
    path = write(tmp_path / f"a{suffix}", gzip.compress(content) if suffix.endswith(".gz") else content)
    for size in (1 << 20, 1, 7, 64):  # values that span chunks
        monkeypatch.setattr("train.data.text_files.CHUNK_SIZE", size)
        assert list(read_rows(path)) == list(enumerate(rows))
    assert [row for _, row in read_rows(path, ["text"])] == [{"text": row["text"]} for row in rows]


def test_a_json_file_may_have_one_row_after_the_other(tmp_path):
    path = write(tmp_path / "a.json", '{"text": "a"}\n\n{"text": "b"} {"text": "c"}\n')
    assert [row for _, row in read_rows(path)] == [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    assert list(read_rows(write(tmp_path / "a.json", " [ ] \n"))) == []
    assert list(read_rows(write(tmp_path / "a.json", ""))) == []
    with pytest.raises(ValueError, match=r"a\.json, row 0 has no column 'text'; its columns are data, version"):
        list(read_rows(write(tmp_path / "a.json", '{"data": [{"text": "a"}], "version": 1}'), ["text"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"text": "a"},\n {"text": }]',
            r"a\.json:2: column 11: not JSON \(Expecting value\)\. A \.json file contains",
        ),
        ('[{"text": "a"},\n {"text": "b"', r"a\.json:2: column 1\d: not JSON"),
        ('[{"text": "a"}\n {"text": "b"}]', r"a\.json:2: column 2: not JSON \(a comma or the end of the list"),
        ('[{"text": "a"},]', r"a\.json:1: column 16: not JSON \(a comma without a row"),
        ('[{"text": "a"}]\n]', r"a\.json:2: column 1: not JSON \(text after the end"),
        ('[{"text": "a"', r"a\.json:1: column 14: not JSON"),
        ('[{"text": "a"}', r"a\.json:1: .*not JSON \(a comma or the end"),
        ('[{"text": "a}]', r"a\.json:1: column 11: not JSON \(Unterminated string"),
        ('[{"text": "a"}, 5]', r"a\.json, row 1: must be a JSON object, not int"),
        ('["a"]', r"a\.json, row 0: must be a JSON object, not str"),
    ],
)
def test_broken_json_is_named_with_line_and_column(tmp_path, monkeypatch, content, message):
    path = write(tmp_path / "a.json", content)
    for size in (1 << 20, 3):
        monkeypatch.setattr("train.data.text_files.CHUNK_SIZE", size)
        with pytest.raises(ValueError, match=message):
            list(read_rows(path))


def test_a_json_list_named_jsonl_gets_a_hint(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .*; let the name of a JSON list end in \.json\."):
        list(read_rows(write(tmp_path / "a.jsonl", '[\n{"text": "a"}\n]\n')))


# Compressed tables, other encodings and line ends


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.json"])
def test_tables_of_windows(tmp_path, name):
    contents = {
        ".jsonl": '{"text": "é", "more": "x\\r\\ny"}\r\n{"text": "b"}\r\n',
        ".json": '[{"text": "é", "more": "x\\r\\ny"},\r\n{"text": "b"}]',
        ".csv": 'text,more\r\né,"x\r\ny"\r\nb,\r\n',
        ".tsv": "text\tmore\r\né\tx\r\nb\t\r\n",
    }
    content = contents[Path(name).suffix].encode("cp1252")
    for path in (write(tmp_path / name, content), write(tmp_path / f"{name.upper()}.GZ", gzip.compress(content))):
        (_, first), (_, second) = read_rows(path, reading=Reading(encoding="cp1252"))
        assert (first["text"], second["text"]) == ("é", "b")
        assert first["more"] == ("x" if ".tsv" in path.name.lower() else "x\ny")
        with pytest.raises(ValueError, match=r"is not UTF-8 text.*--encoding latin-1"):
            list(read_rows(path))
        if ".tsv" not in path.name.lower():
            kept = next(read_rows(path, reading=Reading(encoding="cp1252", keep_crlf=True)))[1]
            assert kept["more"] == "x\r\ny"


def test_line_ends_in_messages_and_in_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"messages": [[{"content": "a\r\nb"}]]}), tmp_path / "a.PARQUET")
    assert list(read_rows(tmp_path / "a.PARQUET")) == [(0, {"messages": [{"content": "a\nb"}]})]
    with pytest.raises(ValueError, match=r"\.parquet files are compressed already"):
        list(read_rows(write(tmp_path / "a.parquet.gz", b"")))


# Headers


def test_columns_name_those_of_a_table_without_header(tmp_path):
    path = write(tmp_path / "a.tsv", "ham\tGo now\nspam\tWin!\n")
    with pytest.raises(
        ValueError, match=r"no column 'text'; its columns are ham, Go now\. .*name all columns with --co"
    ):
        list(read_rows(path, ["text"]))
    rows = list(read_rows(path, ["text", "label"], reading=Reading(columns=("label", "text"))))
    assert rows == [(1, {"text": "Go now", "label": "ham"}), (2, {"text": "Win!", "label": "spam"})]
    with pytest.raises(ValueError, match=r"a\.tsv:1: 2 fields, but --columns names 3 columns\. Correct --columns"):
        list(read_rows(path, reading=Reading(columns=("label", "text", "more"))))
    with pytest.raises(ValueError, match=r"has no column 'text'.*They come from --columns"):
        list(read_rows(path, ["text"], reading=Reading(columns=("a", "b"))))
    with pytest.raises(
        ValueError, match=r"--columns names the columns of \.csv and \.tsv files, but .*a\.jsonl names its"
    ):
        read_rows(tmp_path / "a.jsonl", reading=Reading(columns=("text",)))


def test_a_missing_column_does_not_print_the_whole_first_row(tmp_path):
    path = write(tmp_path / "a.csv", ",".join(["x" * 5000, *(f"c{i}" for i in range(1200))]) + "\n")
    with pytest.raises(ValueError, match=r"x\.\.\., c0, c1, c2, c3, \.\.\. \(1,201 in all\)") as error:
        list(read_rows(path, ["text"]))
    assert len(str(error.value)) < 500
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        with pytest.raises(ValueError, match=f"It seems to separate columns by {name}"):
            list(read_rows(write(tmp_path / "a.csv", f"text{separator}label\n"), ["text"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,text,label\nfirst,second,a\n", r"a\.csv:1: two columns have the name 'text'"),
        ("a.tsv", "label\tlabel\na\tb\n", r"a\.tsv:1: two columns have the name 'label'"),
        ("a.jsonl", '{"text": "a"}\n{"text": "a", "text": "b"}\n', r"a\.jsonl:2: .*the key 'text' is there twice"),
        ("a.json", '[{"m": [{"role": "a", "role": "b"}]}]', r"a\.json:1: .*the key 'role' is there twice"),
    ],
)
def test_a_column_that_is_there_twice_is_refused(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        list(read_rows(write(tmp_path / name, content)))


def test_columns_without_name_may_be_there_twice(tmp_path):
    assert list(read_rows(write(tmp_path / "a.csv", "text,,\na,,\n"), ["text"])) == [(2, {"text": "a"})]
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: two columns have the name 'text'"):
        list(read_rows(tmp_path / "a.parquet"))


# Values that are valid JSON, but not data


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (r'"bad \ud800 here"', r"column 'more' has a lone surrogate \(U\+D800\) at character 4"),
        (r'[{"content": "\uDC00"}]', r"column 'more' has a lone surrogate \(U\+DC00\) at character 0"),
        (r'{"\ud800": 1}', r"column 'more' has a lone surrogate"),
        ("[" * 100_000 + "]" * 100_000, "recursion|nested too deeply"),
        ("9" * 5000, "4300 digits"),
    ],
)
def test_values_that_no_command_could_use_are_named(tmp_path, name, value, message):
    lines = ['{"text": "good"}'] * 50 + [f'{{"text": "x", "more": {value}}}']
    path = write(tmp_path / name, "\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]")
    place = r"a\.jsonl:51: " if name == "a.jsonl" else r"a\.json(, row 50|:1): "
    with pytest.raises(ValueError, match=f"{place}.*({message})"):
        list(read_rows(path))


def test_surrogate_pairs_are_characters(tmp_path):
    path = write(tmp_path / "a.jsonl", r'{"text": "\ud83d\ude00 \\ud800"}')
    assert list(read_rows(path)) == [(1, {"text": "\U0001f600 \\ud800"})]
