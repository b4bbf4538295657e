"""Standard input: what is read from it, and what a person is told meanwhile."""

import io
import os
import threading

import pytest

from train.settings import standard_input
from train.settings.standard_input import read_stdin


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_reads_up_to_the_end(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    assert read_stdin("a text", "give --text") == "a\nb\n"
    assert capsys.readouterr().err == ""


def test_tells_a_person_what_to_type(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Terminal("a"))
    assert read_stdin("a text", "give --text") == "a"
    assert capsys.readouterr().err == "Type a text. Ctrl-D ends the input.\n"


def test_says_what_it_waits_for_if_nobody_closes_a_pipe(monkeypatch):
    read_end, write_end = os.pipe()
    said, has_said = [], threading.Event()

    def hint(*texts, **_settings):
        said.extend(texts)
        has_said.set()

    def close_after_the_hint():
        has_said.wait(5)
        os.close(write_end)

    monkeypatch.setattr(standard_input, "PATIENCE", 0.01)
    monkeypatch.setattr(standard_input, "print", hint, raising=False)
    closing = threading.Thread(target=close_after_the_hint)
    closing.start()
    with os.fdopen(read_end) as pipe:
        monkeypatch.setattr("sys.stdin", pipe)
        assert read_stdin("a prompt", "give --prompt") == ""
    closing.join()
    assert said == ["waiting for a prompt on standard input, up to its end; otherwise, give --prompt"]


def test_closed_input_is_empty(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert read_stdin("a text", "give --text") == ""


def test_other_encodings_are_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    with pytest.raises(ValueError, match="standard input is not UTF-8 text"):
        read_stdin("a text", "give --text")
