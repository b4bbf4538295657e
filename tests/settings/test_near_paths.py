"""Paths that do not exist: which one was meant."""

from pathlib import Path

import pytest

from train.settings.near_paths import check_exists, near_paths


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("texts/letters.txt", "data/train.csv", "data/test.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("text/letters.txt", ": did you mean texts/letters.txt?"),
        ("text/other.txt", ": did you mean texts?"),
        ("texts/leters.txt", ": did you mean texts/letters.txt?"),
        ("data/tran.csv", ": did you mean data/train.csv or data/test.csv?"),
        ("zzz", " in {place}."),
        ("/zzz/zzz", "."),
    ],
)
def test_the_path_that_was_probably_meant_is_named(place, path, hint):
    with pytest.raises(FileNotFoundError) as error:
        check_exists("--text", Path(path))
    assert str(error.value) == f"--text {path} does not exist{hint.format(place=place)}"


def test_a_file_is_not_offered_for_a_folder(place):
    assert near_paths(place / "texts/letters", only_folders=True) == []
    assert near_paths(place / "texts/letters.txt/model") == []
