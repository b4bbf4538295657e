"""The terminal of a run: the bar fits and moves at each step, the time left counts pauses, a pipe gets plain lines."""

import os
import re
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest

from train.loop import display
from train.loop.display import Pace, TrainingDisplay, fitted, indented, wrapped


@pytest.fixture
def terminal(monkeypatch):
    """Replaces stdout by a terminal of 80 columns; returns a function that closes it and returns what was written."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")

    def terminal():
        controller, other_end = pty.openpty()
        termios.tcsetwinsize(other_end, (24, 80))
        written = []

        def read():
            with suppress(OSError):  # at the end, Linux reports an error, macOS returns nothing
                while data := os.read(controller, 65536):
                    written.append(data)

        reader = threading.Thread(target=read)
        reader.start()
        monkeypatch.setattr(sys, "stdout", os.fdopen(other_end, "w", encoding="utf-8"))

        def close():
            sys.stdout.close()
            monkeypatch.undo()
            reader.join(10)
            os.close(controller)
            return b"".join(written).decode()

        return close

    return terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless a test moves it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def steps(display, clock, count, seconds=1.0):
    for _ in range(count):
        clock.now += seconds
        display.count(tokens=500, seconds=seconds)


def frames(text):
    """The states of the bar: what stands between two returns to the beginning of the line."""
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


def test_the_bar_moves_at_each_step_and_fits_into_80_columns(terminal, clock):
    close = terminal()
    progress = TrainingDisplay(0, Pace(100000, eval_steps=250), best=2.5)
    progress.loss, progress.validation = 3.25, 2.75
    steps(progress, clock, 12)
    progress.close()
    shown = frames(close())
    for step in range(13):
        assert any(frame.startswith(f"step {step}/100000") for frame in shown), step
    assert all(len(frame) <= 80 for frame in shown)
    assert re.fullmatch(
        r"step 11/100000 +loss 3.250  val 2.750 \(best 2.500\)  500 tok/s  27:46:29 left",
        next(frame for frame in shown if frame.startswith("step 11/")),
    )


def test_the_bar_says_what_it_waits_for(terminal, clock):
    close = terminal()
    progress = TrainingDisplay(0, Pace(10, eval_steps=2, save_steps=2))
    steps(progress, clock, 2)
    progress.show_evaluation(2.0, "validation loss 2.0000 | perplexity 7.39 | " + "x" * 40)
    progress.show_samples([("a", "b")])
    steps(progress, clock, 1)
    progress.close()
    shown = frames(close())
    waits = [next(word for word in ("evaluating", "saving", "left") if word in frame)
             for frame in shown if frame.startswith("step 2/")]  # fmt: skip
    assert waits == sorted(waits)  # evaluating, then saving
    assert set(waits) == {"evaluating", "saving"}
    assert "step 2: validation loss 2.0000 (best) | perplexity 7.39" in shown
    assert "| b" in shown
    assert "took 00:03" in shown[-1]


def test_an_error_after_the_bar_begins_on_a_new_line(terminal, clock):
    close = terminal()
    progress = TrainingDisplay(0, Pace(10))
    progress.close()
    assert close().endswith("\n")


def test_without_a_terminal_progress_is_one_plain_line_per_log(capsys, clock):
    progress = TrainingDisplay(10, Pace(1000))
    steps(progress, clock, 10)
    progress.show_step(1.0, "loss 1.0")
    progress.close()
    shown = capsys.readouterr()
    assert shown.out == "step   20/1000 | loss 1.0 | 16:20 left\n"
    assert shown.err == ""


@pytest.mark.parametrize("is_terminal", [False, True])
def test_only_one_process_shows_progress(is_terminal, capsys, clock, request):
    shown = request.getfixturevalue("terminal")() if is_terminal else lambda: capsys.readouterr().out
    progress = TrainingDisplay(0, Pace(10), is_shown=False)
    steps(progress, clock, 1)
    progress.show_step(1.0, "loss 1.0")
    progress.show_evaluation(1.0, "validation loss 1.0")
    progress.show_samples([("a", "b")])
    progress.print("text")
    progress.close()
    assert shown() == ""


def test_the_best_validation_loss_is_marked(capsys, clock):
    progress = TrainingDisplay(0, Pace(10), best=2.0)
    for loss in (2.5, 1.5, 1.75):
        progress.show_evaluation(loss, f"validation loss {loss} | more")
    assert capsys.readouterr().out.splitlines() == [
        "step 0: validation loss 2.5 (best 2.0000) | more",
        "step 0: validation loss 1.5 (best) | more",
        "step 0: validation loss 1.75 (best 1.5000) | more",
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Time left
# ----------------------------------------------------------------------------------------------------------------------


def test_the_time_left_is_unknown_before_the_first_step():
    assert Pace(10).seconds_left(0) is None


def test_the_first_step_counts_only_while_it_is_the_only_one():
    pace = Pace(10)
    pace.count(100, 50.0)  # compiles
    assert pace.seconds_left(1) == 9 * 50
    pace.count(100, 2.0)
    assert pace.seconds_left(2) == 8 * 2
    assert pace.tokens_per_second == 50


def test_one_slow_step_hardly_changes_the_time_left():
    pace = Pace(1000)
    for _ in range(101):
        pace.count(100, 1.0)
    pace.count(100, 5.0)
    assert pace.seconds_left(102) == pytest.approx(898, rel=0.07)


@pytest.mark.parametrize(
    ("step", "evaluations"),
    [(0, 4), (2, 4), (3, 3), (8, 2), (9, 1), (10, 0)],  # after 3, 6, 9 and 10
)
def test_evaluations_and_checkpoints_to_come_count(step, evaluations):
    pace = Pace(10, eval_steps=3, save_steps=0)
    pace.count(1, 1.0)
    pace.pauses["evaluating"].append(20.0)
    pace.pauses["saving"].append(100.0)
    assert pace.seconds_left(step) == (10 - step) + 20 * evaluations + (100 if step < 10 else 0)


def test_pauses_are_measured(clock, capsys):
    progress = TrainingDisplay(0, Pace(12, eval_steps=3, save_steps=3))
    steps(progress, clock, 3)
    clock.now += 20
    progress.show_evaluation(1.0, "")
    progress.show_samples([])
    clock.now += 7  # saving
    steps(progress, clock, 1)
    assert progress.pace.seconds_left(4) == 8 * 1 + 3 * (20 + 7)


# ----------------------------------------------------------------------------------------------------------------------
# Text
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (60, "step 1/9  {bar}  loss 3.0  val 4.0  9k tok/s  00:08 left"),
        (54, "step 1/9  loss 3.0  val 4.0  9k tok/s  00:08 left"),
        (45, "step 1/9  {bar}  loss 3.0  val 4.0  00:08 left"),
        (30, "step 1/9  loss 3.0  00:08 left"),
        (5, "step 1/9  00:08 left"),
    ],
)
def test_narrow_terminals_keep_the_most_important_fields(width, line):
    assert fitted("step 1/9", ["00:08 left", "loss 3.0", "val 4.0", "9k tok/s"], width) == line


def test_long_lines_break_between_fields():
    assert wrapped(["aaa", "bbb", "ccc"], 9) == "aaa | bbb\n    ccc"
    assert wrapped(["aaa", "bbb", "ccc"], None) == "aaa | bbb | ccc"


def test_samples_are_text_of_a_few_lines():
    assert indented("def f():\n\treturn 1\n", "| ") == "| def f():\n|     return 1"
    assert indented("\n".join("abcdefgh"), "") == "a\nb\nc\nd\ne\nf\n..."
    assert indented("x" * 500, "> ") == "> " + "x" * 94 + " ..."
    assert len(indented("x" * 500, "    | ", 80)) == 80


def test_samples_cannot_control_the_terminal():
    assert indented("a\x1b[2Jb\r\x07é", "") == r"a\x1b[2Jb\r\x07é"
