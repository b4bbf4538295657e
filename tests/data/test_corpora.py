import json
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from train.data.corpora import Document, open_corpora, python_corpus, split_corpus, text_corpus
from train.settings.corpus import CorpusArguments


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def library(tmp_path) -> Path:
    root = tmp_path / "lib"
    for name in ("zebra.py", "json/decoder.py", "json/empty.py"):
        write(root / name, f"# {name}\n" * ("empty" not in name))
    write(root / "latin.py", b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    for name in ("test/a.py", "json/tests/b.py", "site-packages/c.py", "__pycache__/d.py", "pydoc_data/topics.py"):
        write(root / name, "skipped")
    write(root / "config-3.11-x86_64/python-config.py", "skipped")
    write(root / "_sysconfigdata__linux.py", "skipped")
    return root


def names(corpus) -> list[str]:
    return [document.name for document in corpus]


def test_python_corpus_has_sources_and_topics_in_order(library):
    documents = list(python_corpus(library))
    sources = [document for document in documents if not document.name.startswith("pydoc_data.topics/")]
    assert [document.name for document in sources] == ["json/decoder.py", "latin.py", "zebra.py"]
    assert sources[1].text.endswith("'é'\n")
    topics = [document.name for document in documents[3:]]
    assert "pydoc_data.topics/lambda" in topics
    assert topics == sorted(topics)


def test_python_corpus_of_this_python():
    corpus = python_corpus()
    documents = list(corpus)
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in corpus.description
    assert len(set(names(corpus))) == len(documents) > 500
    size = sum(len(document.text.encode()) for document in documents)
    assert 5e6 < size < 50e6
    assert corpus.num_bytes == pytest.approx(size, rel=0.05)
    parts = {part for name in names(corpus) for part in name.split("/")}
    assert not parts & {"", "test", "tests", "idle_test", "site-packages", "__pycache__", "pydoc_data"}


def test_python_without_sources_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no library sources in .*: give a corpus with --text"):
        python_corpus(tmp_path)


def test_corpus_is_read_again_in_the_same_order(library):
    corpus = python_corpus(library)
    first, second = iter(corpus), iter(corpus)
    assert next(first) == next(second) == Document("json/decoder.py", "# json/decoder.py\n")
    assert list(corpus) == list(corpus)


def test_fingerprint_changes_with_content_only(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    before = text_corpus([path]).fingerprint
    write(path, "one")
    assert text_corpus([path]).fingerprint == before
    write(path, "two")
    assert text_corpus([path]).fingerprint != before


def test_folder_gives_known_suffixes_and_rows(tmp_path):
    root = tmp_path / "texts"
    write(root / "b.txt", "b\r\n")
    write(root / "a/c.md", "\ufeffc")
    write(root / "rows.jsonl", '{"text": "r1"}\n\n{"text": "r3", "more": 1}\n{"text": null}\n')
    write(root / "rows.csv", 'text,n\n"x, ""y""\nz",1\nlast,2\n')
    write(root / "rows.tsv", 'n\ttext\n1\t"Hi", he said\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["p0", "p1"], "n": [1, 2]}), root / "rows.parquet")
    for hidden in (".hidden.txt", ".git/x.txt", "image.png", "code.py"):
        write(root / hidden, "skipped")
    write(root / "empty.txt", "")
    assert [(document.name, document.text) for document in text_corpus([root])] == [
        ("texts/a/c.md", "c"),
        ("texts/b.txt", "b\n"),
        ("texts/rows.csv:3", 'x, "y"\nz'),
        ("texts/rows.csv:4", "last"),
        ("texts/rows.jsonl:1", "r1"),
        ("texts/rows.jsonl:3", "r3"),
        ("texts/rows.parquet:0", "p0"),
        ("texts/rows.parquet:1", "p1"),
        ("texts/rows.tsv:2", '"Hi", he said'),
    ]


def test_named_file_may_have_any_suffix(tmp_path):
    assert names(text_corpus([write(tmp_path / "code.py", "x = 1")])) == ["code.py"]


def test_large_csv_field(tmp_path):
    path = write(tmp_path / "a.csv", "text\n" + "x" * 200_000 + "\n")
    assert len(next(iter(text_corpus([path]))).text) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\n\xff\xfe", r"a\.txt is not UTF-8 text: byte 5 is 0xff"),
        ("a.txt", b"good\nab\0c", r"a\.txt is not text: byte 7 is NUL"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": \n', r"a\.jsonl:2: column 1?\d: not JSON"),
        ("a.jsonl", b'{"text": "ok"}\n["x"]\n', r"a\.jsonl:2: must be a JSON object, not list"),
        ("a.jsonl", b'{"body": "ok", "id": 1}\n', r"a\.jsonl:1 has no column 'text'; its columns are body, id"),
        ("a.jsonl", b'{"text": 7}\n', r"a\.jsonl:1: column 'text' has the value 7 of type int.*--text_column"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\xff"}\n', r"a\.jsonl is not UTF-8 text: byte 25 is 0xff"),
        ("a.csv", b"body,id\nx,1\n", r"a\.csv has no column 'text'; its columns are body, id"),
        ("a.csv", b'text\n"open\n', r"a\.csv:2: not CSV"),
        ("a.parquet", b"not parquet", r"a\.parquet is not a readable \.parquet file"),
    ],
)
def test_unreadable_file_is_named_with_the_place(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        list(text_corpus([write(tmp_path / name, content)]))


def test_missing_parquet_column(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["p0"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'text'; its columns are body"):
        list(text_corpus([tmp_path / "a.parquet"]))
    assert [document.text for document in text_corpus([tmp_path / "a.parquet"], "body")] == ["p0"]


def test_unusable_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        text_corpus([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"empty\.txt is empty \(0 bytes\)"):
        text_corpus([write(tmp_path / "empty.txt", "")])
    write(tmp_path / "folder/picture.png", "x")
    with pytest.raises(ValueError, match=r"folder contains no \.txt, \.md, \.jsonl, \.csv, \.tsv, \.parquet file"):
        text_corpus([tmp_path / "folder"])


def test_two_documents_with_the_same_name_are_refused(tmp_path):
    first, second = write(tmp_path / "x/a.txt", "1"), write(tmp_path / "y/a.txt", "2")
    with pytest.raises(ValueError, match=r"Two documents would have the name 'a\.txt'.*x/a\.txt.*y/a\.txt"):
        text_corpus([first, second])
    assert names(text_corpus([tmp_path])) == [f"{tmp_path.name}/x/a.txt", f"{tmp_path.name}/y/a.txt"]


def folder_of(root: Path, count: int) -> Path:
    for number in range(count):
        write(root / f"{number:03}.txt", f"document {number}")
    return root


def test_split_by_hash_is_complete_disjoint_and_stable(tmp_path):
    corpus = text_corpus([folder_of(tmp_path / "texts", 200)])
    train, validation = split_corpus(corpus, 0.1)
    assert sorted(names(train) + names(validation)) == names(corpus)
    assert 10 <= len(names(validation)) <= 30
    # on every machine and in every version, or prepared data could not be made again
    assert names(validation)[:4] == [f"texts/{number}.txt" for number in ("012", "020", "025", "028")]
    assert train.fingerprint != validation.fingerprint != corpus.fingerprint
    assert list(train) == list(train)
    write(tmp_path / "texts/new.txt", "more")  # the others stay in their part
    grown = split_corpus(text_corpus([tmp_path / "texts"]), 0.1)
    assert set(names(train)) <= set(names(grown[0]))
    assert set(names(validation)) <= set(names(grown[1]))


def test_split_of_few_documents_holds_out_the_smallest_hash(tmp_path):
    train, validation = split_corpus(text_corpus([folder_of(tmp_path / "texts", 3)]), 0.01)
    assert (len(names(train)), len(names(validation))) == (2, 1)
    assert "smallest hash" in validation.description
    train, validation = split_corpus(text_corpus([tmp_path / "texts"]), 0.999)
    assert (len(names(train)), len(names(validation))) == (2, 1)


def test_a_single_document_is_split_at_the_same_character_as_in_nanogpt(tmp_path):
    text = "".join(chr(97 + number % 26) for number in range(1005))
    train, validation = split_corpus(text_corpus([write(tmp_path / "book.txt", text)]), 0.1, "end")
    assert [document.text for document in train] == [text[: int(1005 * 0.9)]]
    assert [document.text for document in validation] == [text[int(1005 * 0.9) :]]
    assert names(train) == ["book.txt#0"]
    assert names(validation) == ["book.txt#904"]
    assert "last 10 % of its only document" in validation.description


def test_corpus_without_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"corpus \(a\.jsonl\) is empty"):
        split_corpus(text_corpus([write(tmp_path / "a.jsonl", '{"text": ""}\n')]), 0.1)


def test_explicit_validation_text(tmp_path):
    train_path, validation_path = write(tmp_path / "t.txt", "train"), write(tmp_path / "v.txt", "valid")
    settings = CorpusArguments(text=[str(train_path)], validation_text=[str(validation_path)])
    train, validation = open_corpora(settings)
    assert [document.text for corpus in (train, validation) for document in corpus] == ["train", "valid"]
    with pytest.raises(ValueError, match=r"v\.txt is in --text and in --validation_text"):
        open_corpora(replace(settings, text=[str(tmp_path)]))


def test_the_default_is_the_text_of_python():
    train, validation = open_corpora(CorpusArguments())
    assert "standard library" in train.description
    assert 0 < validation.num_bytes < train.num_bytes


@pytest.fixture
def saved(tmp_path) -> Path:
    rows = datasets.Dataset.from_dict({"text": ["one", "two", "", "four"], "n": [1, 2, 3, 4]})
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_saved_dataset(saved):
    train, validation = open_corpora(CorpusArguments(dataset_name=str(saved), validation_fraction=0.4))
    assert sorted(document.text for corpus in (train, validation) for document in corpus) == ["four", "one", "two"]
    assert set(names(train) + names(validation)) == {"saved/train:0", "saved/train:1", "saved/train:3"}
    single = open_corpora(CorpusArguments(dataset_name=str(saved / "test"), validation_fraction=0.4))
    assert [document.text for document in single[0]] == ["o", "e"]


def test_saved_dataset_errors(saved):
    with pytest.raises(ValueError, match="no split 'dev'; choose one of train, test"):
        open_corpora(CorpusArguments(dataset_name=str(saved), dataset_split="dev"))
    with pytest.raises(ValueError, match="no column 'body'; its columns are text, n"):
        open_corpora(CorpusArguments(dataset_name=str(saved), text_column="body"))
    with pytest.raises(ValueError, match="column 'n' has the value 1 of type int"):
        open_corpora(CorpusArguments(dataset_name=str(saved), text_column="n"))


@pytest.mark.parametrize("streaming", [False, True])
def test_dataset_by_name(tmp_path, monkeypatch, streaming):
    """`load_dataset` on a local folder of files is read like a dataset on the Hub."""
    rows = [json.dumps({"text": f"row {number}"}) for number in range(6)]
    write(tmp_path / "hub/train.jsonl", "\n".join(rows))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    arguments = CorpusArguments(dataset_name=str(tmp_path / "hub"), streaming=streaming, validation_fraction=0.3)
    train, validation = open_corpora(arguments)
    assert sorted(document.text for corpus in (train, validation) for document in corpus) == [
        f"row {number}" for number in range(6)
    ]
    assert list(train) == list(train)


def test_unknown_dataset_is_named(monkeypatch):
    with pytest.raises(OSError, match="no-such-thing"):
        open_corpora(CorpusArguments(dataset_name="somebody/no-such-thing"))
