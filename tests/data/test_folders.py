"""Which files of a folder are read, and that the others are counted."""

import os

import pytest

from train.data.corpora import open_corpora, text_corpus
from train.data.folders import files_of
from train.settings.corpus import CorpusArguments
from train.settings.reading import FOLDER_SUFFIXES, Reading


@pytest.fixture
def folder(tmp_path):
    """Files of every kind, each with its own name as text."""
    root = tmp_path / "corpus"
    for name in ("a.txt", "UPPER.TXT", "deep/b.md", "code.py", "page.rst", "README", ".hidden.txt", ".git/c.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "empty.txt").touch()
    return root


def names(corpus):
    return [document.name for document in corpus]


def test_upper_case_suffixes_are_read_and_all_else_is_counted(folder, capsys):
    assert names(text_corpus([folder])) == ["corpus/UPPER.TXT", "corpus/a.txt", "corpus/deep/b.md"]
    said = capsys.readouterr().err
    assert said == (
        f"note: --text {folder}: left out 1 hidden folder, 1 hidden file, 1 empty file, 3 files with other suffixes "
        "(1 without suffix, 1 .py, 1 .rst): --suffixes chooses what is read.\n"
    )


def test_suffixes_choose_the_files(folder, capsys):
    for given in ((".py", ".rst"), ("py", "*.RST")):
        settings = CorpusArguments(text=[str(folder)], suffixes=list(given))
        assert names(text_corpus(settings.text, reading=settings.reading)) == ["corpus/code.py", "corpus/page.rst"]
    with pytest.raises(ValueError, match=r"contains no \.tex file: name others with --suffixes.*6 files with other"):
        text_corpus([folder], reading=Reading(suffixes=(".tex",)))


def test_linked_folders_are_followed_once(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/z.txt").write_text("linked")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "deep/loop").symlink_to(folder)
    (folder / "0-deep-again").symlink_to(folder / "deep")  # before "deep" in the alphabet
    (folder / "again.txt").symlink_to(folder / "a.txt")
    (folder / "broken.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    found = files_of(folder, FOLDER_SUFFIXES)
    assert sorted(str(path.relative_to(folder)) for path in found.files) == [
        "UPPER.TXT", "a.txt", "deep/b.md", "link/z.txt",
    ]  # fmt: skip
    assert found.left_out["duplicate link"] == 3
    assert found.left_out["broken link"] == found.left_out["special file"] == 1
    assert "3 duplicate links, 1 broken link" in found.note


def test_a_file_name_that_is_not_utf_8_is_named(folder):
    name = os.fsencode(folder) + b"/caf\xe9.txt"
    try:
        with open(name, "w") as file:
            file.write("text")
    except OSError:
        pytest.skip("this file system allows no such names")
    with pytest.raises(ValueError, match=r"caf\\xe9\.txt is not UTF-8: rename it"):
        text_corpus([folder])
    with pytest.raises(ValueError, match=r"caf\\xe9\.txt is not UTF-8: rename it"):
        text_corpus([os.fsdecode(name)])


def test_an_unreadable_folder_is_an_error(folder):
    if os.geteuid() == 0:
        pytest.skip("root reads every folder")
    (folder / "deep").chmod(0)
    with pytest.raises(PermissionError, match="deep"):
        text_corpus([folder])


def test_options_of_files_require_files():
    for name, value in {"encoding": "cp1252", "columns": ["a"], "suffixes": [".py"], "strip_gutenberg": True}.items():
        with pytest.raises(ValueError, match=rf"--{name} \(.*\) requires --text"):
            CorpusArguments(dataset_name="x", **{name: value})
    with pytest.raises(ValueError, match="--columns has 'a' twice"):
        CorpusArguments(text=["x"], columns=["a", "b", "a"])


def test_the_same_file_through_a_link_is_not_in_both_parts(folder, tmp_path):
    (tmp_path / "link.txt").symlink_to(folder / "a.txt")
    with pytest.raises(ValueError, match=r"a\.txt is in --text and in --validation_text"):
        open_corpora(CorpusArguments(text=[str(folder)], validation_text=[str(tmp_path / "link.txt")]))
