"""The datasets that the examples make from the standard library: the rows, and their division into splits."""

import ast
import csv
import json
import re
import shutil
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from examples.python_assistant import make_data as assistant
from examples.swapped_lines import make_data as swapped
from train.data.corpora import python_corpus, split_corpus

STDLIB = Path(sysconfig.get_path("stdlib"))
MAKERS = pytest.mark.parametrize("maker", [swapped, assistant], ids=["swapped", "assistant"])


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """Three packages and some modules of the standard library, read in two seconds."""
    root = tmp_path_factory.mktemp("library")
    for package in ("asyncio", "email", "xml"):
        shutil.copytree(STDLIB / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in STDLIB.glob("[a-hs]*.py"):
        shutil.copy(path, root)
    return root


@pytest.fixture(scope="module")
def made(library, tmp_path_factory) -> dict[str, Path]:
    """The folder written by each maker."""
    folders = {}
    for maker in (swapped, assistant):
        folders[maker.__name__] = tmp_path_factory.mktemp("made")
        maker.main(["--library", str(library), "--output_dir", str(folders[maker.__name__])])
    return folders


@pytest.fixture(scope="module")
def tables(made) -> dict[str, list[dict[str, str]]]:
    return {split: read_table(made[swapped.__name__] / f"{split}.csv") for split in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def chats(made) -> dict[str, list[list[dict[str, str]]]]:
    return {split: read_chats(made[assistant.__name__] / f"{split}.jsonl") for split in ("train", "validation")}


def read_table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_chats(path):
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# Swapped lines


def in_order(row):
    return row["label"] == "in order"


def test_both_rows_of_a_pair_have_the_same_lines(tables):
    for rows in tables.values():
        pairs = {}
        for row in rows:
            pairs.setdefault(row["place"], []).append(row)
        for pair in pairs.values():
            assert len({tuple(sorted(row["text"].split("\n"))) for row in pair}) == 1
            assert len({row["text"] for row in pair}) == len(pair)
            assert sum(map(in_order, pair)) == 1
        assert 2 * sum(map(in_order, rows)) == len(rows) >= 2 * swapped.MIN_PAIRS


def test_every_row_is_one_function_that_fits(tables):
    for row in tables["train"]:
        (function,) = ast.parse(row["text"]).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert len(row["text"]) <= swapped.MAX_CHARACTERS


def test_no_function_and_no_file_is_in_two_splits(tables):
    for key in (lambda row: row["text"], lambda row: row["place"].rpartition(":")[0]):
        found = [{key(row) for row in rows} for rows in tables.values()]
        assert sum(map(len, found)) == len(set.union(*found))


def test_pretraining_has_not_read_the_files_of_validation_and_test(tables, library):
    read, _ = split_corpus(python_corpus(library), 0.2)
    names = {document.name for document in read}
    for split, rows in tables.items():
        assert all((row["place"].rpartition(":")[0] in names) == (split == "train") for row in rows)


# Questions and answers


def test_every_conversation_ends_with_an_answer_and_fits(chats):
    for row in chats["train"] + chats["validation"]:
        assert [message["role"] for message in row] == ["user", "assistant"] * (len(row) // 2)
        assert all(message["content"].strip() == message["content"] != "" for message in row)
        assert sum(len(message["content"]) for message in row) <= 600
        assert row[-1]["content"][-1] in "`.!?"
    assert 0.1 < sum(len(row) == 4 for row in chats["train"]) / len(chats["train"]) < 0.5


def test_no_package_and_no_description_is_in_both_splits(chats):
    train, validation = ({message["content"] for row in rows for message in row[1::2]} for rows in chats.values())
    assert not train & validation
    packages_of = [
        {answer.split(".")[0] for answer in answers if answer.startswith("`")} for answers in (train, validation)
    ]
    assert len(packages_of[1]) >= 5
    assert not packages_of[0] & packages_of[1]
    rows = [json.dumps(row) for split in chats.values() for row in split]
    assert len(set(rows)) == len(rows)


def test_a_tenth_is_held_out(chats):
    fraction = len(chats["validation"]) / sum(map(len, chats.values()))
    assert 0.07 < fraction <= 0.11
    assert sum(map(len, chats.values())) > 1000


LIBRARY_MODULE = '''
def plain(a, b=1, /, *args, c, d: int = 2, **rest) -> str:
    """Does one thing :func:`~x.other` and ``another``

    More about it.
    """

async def nothing():
    """Wait for nothing at all."""

def _private():
    """This is not for users."""

if True:
    class Thing:
        """A thing of some kind. """
        def __init__(self, size): ...
        def grow(self, by):
            """Make the thing larger."""
        @staticmethod
        def make(kind):
            """Make a new thing."""
        @classmethod
        def load(cls, path):
            """Read a thing from a file."""
        def swallow(*args):
            """Take whatever is given."""
        @property
        def size(self):
            """How large it is."""
        @size.setter
        def size(self, value):
            """Change how large it is."""
'''


def test_entries_are_named_described_and_called_as_the_source_says():
    document = assistant.Document("box/tools.py", LIBRARY_MODULE)
    listed = assistant.without_copies(assistant.entries([document]))  # the setter is a copy of its property
    found = {entry.name.removeprefix("box.tools."): entry for entry in listed}
    found = {name: (entry.kind, entry.signature) for name, entry in found.items()}
    start = "box.tools."
    assert found == {
        "plain": ("function", f"{start}plain(a, b=1, /, *args, c, d: int=2, **rest)"),
        "nothing": ("function", f"{start}nothing()"),
        "Thing": ("class", f"{start}Thing(size)"),
        "Thing.grow": ("method", f"{start}Thing.grow(by)"),
        "Thing.make": ("method", f"{start}Thing.make(kind)"),
        "Thing.load": ("method", f"{start}Thing.load(path)"),
        "Thing.swallow": ("method", f"{start}Thing.swallow(*args)"),
        "Thing.size": ("property", None),
    }


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        ("Return the\n    larger one.\n\n    More.", "Return the larger one."),
        ("Return the larger one", "Return the larger one."),
        ("Calls :func:`~os.walk` with ``top``.", "Calls `os.walk` with `top`."),
        ("undo what was done", "undo what was done."),
        (f"First sentence here. {'long ' * 60}end.", "First sentence here."),
        (f"{'long ' * 60}end.", None),
        ("Too short.", None),
        ("", None),
        ("f(x) -> the larger one", None),
        ("f(x, y): the larger of two", None),
        ("These are known:", None),
        ("One of these:\n- the first thing\n- the second", None),
        ("Called like this\n    name value", "Called like this name value."),
        ("Called like this\nname value\n    indented text", None),
        ("alias [name [command]] makes one", None),
        (">>> Some example code here", None),
    ],
)
def test_summary_is_the_first_paragraph_if_it_is_prose(docstring, summary):
    assert assistant.summary_of(docstring) == summary


def entry(name, summary="It does a thing.", signature=None, kind="function"):
    return assistant.Entry(name.rpartition(".")[0], name, kind, summary, signature)


@pytest.mark.parametrize("name", ["_box/tools.py", "box/_tools.py", "box/__main__.py", "idlelib/tools.py", "topics/if"])
def test_private_modules_and_programs_have_no_entries(name):
    assert list(assistant.entries([assistant.Document(name, LIBRARY_MODULE)])) == []


def test_the_name_of_a_package_is_that_of_its_folder():
    document = assistant.Document("box/__init__.py", LIBRARY_MODULE)
    assert next(assistant.entries([document])).name == "box.plain"


def test_copies_of_names_and_descriptions_are_dropped():
    found = [
        entry("a.f"),
        entry("a.f", "Another thing it does."),
        entry("b.g", "IT does a thing."),
        entry("b.h", "New."),
    ]
    assert assistant.without_copies(found) == [found[0], found[3]]


def test_conversations_ask_for_description_parameters_and_name():
    rows = [row for number in range(40) for row in assistant.conversations(entry(f"a.f{number}", signature="a.f(x)"))]
    answers = Counter(tuple(message["content"] for message in row[1::2]) for row in rows)
    names = Counter("name" if answer[0].startswith("`a.f") and answer[0][-2] != ")" else answer for answer in answers)
    assert set(names) == {
        *("name", ("It does a thing.",), ("`a.f(x)`",)),
        *(("It does a thing.", "`a.f(x)`"), ("`a.f(x)`", "It does a thing.")),
    }
    phrasings = {re.sub(r"a\.f\d+", "", row[0]["content"]) for row in rows}
    assert len(phrasings) == sum(map(len, (assistant.DESCRIBE["function"], assistant.PARAMETERS, assistant.WHICH)))


def test_conversation_says_that_there_are_no_parameters():
    rows = [row for number in range(20) for row in assistant.conversations(entry(f"a.f{number}", signature="a.f()"))]
    assert any(row[-1]["content"] == "`a.f()` takes no parameters." for row in rows)


def test_a_long_conversation_is_skipped():
    long = entry("a.f", "word " * 130)
    assert assistant.conversations(long) == []


def test_small_packages_with_the_smallest_hashes_are_held_out():
    large = [entry(f"large.f{number}") for number in range(60)]
    small = [entry(f"m{number}.f") for number in range(40)]
    found = large + small
    splits = assistant.split_by_package(found)
    held_out = [one.package for one in splits["validation"]]
    assert set(held_out) == set(sorted((one.package for one in small), key=assistant.hash_of)[:10])
    assert splits["train"] == [one for one in found if one.package not in held_out]
    backwards = assistant.split_by_package(found[::-1])
    assert [one.package for one in backwards["validation"]] == held_out[::-1]


def test_a_package_is_in_one_split():
    found = [entry(f"m{package}.f{number}") for package in range(100) for number in range(2)]
    splits = assistant.split_by_package(found)
    assert list(Counter(one.package for one in splits["validation"]).values()) == [2] * 10
    assert len(splits["train"]) == 180


def test_hashes_are_the_same_on_every_machine():
    """Those of Python's `hash` differ from process to process; the SHA-256 of "abc" is an example of FIPS 180-2."""
    assert assistant.hash_of("abc") == 0xBA7816BF8F01CFEA


@pytest.mark.parametrize("sizes", [[60], 20 * [5]], ids=["one", "all large"])
def test_a_library_of_large_packages_only_cannot_be_split(sizes):
    found = [entry(f"m{package}.f{number}") for package, size in enumerate(sizes) for number in range(size)]
    with pytest.raises(ValueError, match=rf"documented objects in {len(sizes)} packages: too few to hold out"):
        assistant.split_by_package(found)


def test_the_order_of_conversations_does_not_depend_on_that_of_the_entries():
    rows = [row for number in range(20) for row in assistant.conversations(entry(f"a.f{number}"))]
    mixed = assistant.mixed(rows)
    assert mixed == assistant.mixed(rows[::-1])
    assert mixed not in (rows, rows[::-1])
    assert sorted(map(str, mixed)) == sorted(map(str, rows))


# Both


@MAKERS
def test_the_same_library_gives_the_same_bytes(maker, made, library, tmp_path, capsys):
    maker.main(["--library", str(library), "--output_dir", str(tmp_path)])
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (made[maker.__name__], tmp_path)
    )
    assert first == second
    out = capsys.readouterr().out
    assert all(name in out for name in first)


@MAKERS
def test_a_folder_without_sources_is_refused(maker, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"--library {folder} contains no .py files"):
            maker.main(["--library", str(folder), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@MAKERS
def test_a_library_that_is_too_small_is_refused_before_anything_is_written(maker, tmp_path):
    write(tmp_path / "library/box/tools.py", LIBRARY_MODULE)
    with pytest.raises(ValueError, match="Omit --library"):
        maker.main(["--library", str(tmp_path / "library"), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@MAKERS
def test_a_file_that_is_not_python_is_named(maker, tmp_path):
    write(tmp_path / "library/box/broken.py", "x = 1\nprint 'two'\n")
    with pytest.raises(ValueError, match=r"box/broken\.py:2 is not Python 3"):
        maker.main(["--library", str(tmp_path / "library"), "--output_dir", str(tmp_path / "out")])
