"""JSON files are validated when they are read, and the errors name file, place and reason."""

from typing import Any

import pytest

from train.settings.json_files import DamagedFileError, mismatch, read_json

SHAPE = {"step": int, "loss?": float | None, "recent": [[float]], "files": {str: {"size": int}}}
GOOD = {"step": 3, "loss": None, "recent": [[1, 2.5]], "files": {"a": {"size": 1, "more": []}}, "other": "x"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"loss": 1}, ""),
        ({"loss": "1"}, "loss: expected a number or null, not text ('1')"),
        ({"step": True}, "step: expected a whole number, not true or false (True)"),
        ({"step": 1.5}, "step: expected a whole number, not a number (1.5)"),
        ({"step": None}, "step: expected a whole number, not null"),
        ({"recent": {}}, "recent: expected a list, not an object"),
        ({"recent": [[1], [2, "x"]]}, "recent[1][1]: expected a number, not text ('x')"),
        ({"files": []}, "files: expected an object, not a list"),
        ({"files": {"a": {"size": 1}, "b": {}}}, "files.b.size is missing"),
    ],
)
def test_a_value_is_compared_with_its_shape(changes, message):
    assert mismatch(GOOD | changes, SHAPE) == message


def test_required_entries_must_be_there():
    assert mismatch({"recent": [], "files": {}}, SHAPE) == "step is missing"
    assert mismatch([], SHAPE) == "expected an object, not a list"
    assert mismatch({"a": object}, Any) == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"step": ' + b"1" * 9000 + b"}", "not valid JSON"),
        (b"[]", "expected an object, not a list"),
        (b"null", "expected an object, not null"),
        (b'{"step": "x"}', r"step: expected a whole number, not text \('x'\)"),
    ],
)
def test_a_damaged_file_is_named_with_its_reason_and_the_remedy(tmp_path, content, reason):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"file\.json is damaged: {reason}.*\. Remove it\.$"):
        read_json(path, {"step": int}, "Remove it.")
