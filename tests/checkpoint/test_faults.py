"""Faults at file-system calls: the model of a disk without power, and a small part of the campaign of benchmarks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.disk import Disk, Outcome, read_tree, write_tree
from benchmarks.faults.operations import differences, fingerprint
from benchmarks.faults.shim import Call, Kind, is_available

ROOT = "/run"
NEW_FILE = os.O_CREAT | os.O_TRUNC


def call(kind, path="", *, fd=-1, other="", data=b"", flags=0, error=0, offset=0):
    names = [f"{ROOT}/{name}" if name else "" for name in (path, other)]
    is_change = kind not in (Kind.OPEN, Kind.READ, Kind.STAT, Kind.LIST)
    return Call(kind, fd, flags, error, 1, is_change, offset, *names, data)


def open_folder(path, fd):
    name = f"{ROOT}/{path}" if path else ROOT
    return Call(Kind.OPEN, fd, 0, 0, 1, False, 0, name, "", b"")


def written(path, data, *, is_flushed=False, fd=3):
    """The calls that write a new file."""
    calls = [call(Kind.CREATE, path, fd=fd, flags=NEW_FILE), call(Kind.WRITE, fd=fd, data=data)]
    return [*calls, *([call(Kind.FSYNC, fd=fd)] if is_flushed else []), call(Kind.CLOSE, fd=fd)]


def flushed_folder(path="", fd=4):
    return [open_folder(path, fd), call(Kind.FSYNC, fd=fd), call(Kind.CLOSE_READ, fd=fd)]


def after_power_loss(calls, before=None):
    """The possible folders, by outcome."""
    disk = Disk.after(ROOT, before or {}, calls)
    return {outcome: disk.tree(len(calls), outcome) for outcome in Outcome}


def test_the_log_of_calls_gives_the_folder_at_every_moment():
    calls = [
        *written("a", b"one"),
        call(Kind.MKDIR, "d"),
        call(Kind.RENAME, "a", other="d/b"),
        call(Kind.UNLINK, "old"),
    ]
    disk = Disk.after(ROOT, {"old": b"x"}, calls)
    assert [disk.tree(number) for number in range(len(calls) + 1)] == [
        {"old": b"x"},
        {"old": b"x", "a": b""},
        {"old": b"x", "a": b"one"},
        {"old": b"x", "a": b"one"},
        {"old": b"x", "a": b"one", "d": None},
        {"old": b"x", "d": None, "d/b": b"one"},
        {"d": None, "d/b": b"one"},
    ]


def test_a_file_that_was_not_flushed_may_be_gone_empty_zero_or_half():
    found = after_power_loss(written("a", b"1234"))
    assert found == {
        Outcome.NOTHING: {},
        Outcome.NAMES: {"a": b""},
        Outcome.ZEROS: {"a": b"\0\0\0\0"},
        Outcome.HALF: {"a": b"12"},
        Outcome.CONTENT: {},
        Outcome.REMOVALS: {},
    }


def test_only_fsync_of_the_file_and_of_its_folder_together_keep_a_new_file():
    whole = {outcome: {"a": b"1234"} for outcome in Outcome}
    assert after_power_loss([*written("a", b"1234", is_flushed=True), *flushed_folder()]) == whole
    without_name = after_power_loss(written("a", b"1234", is_flushed=True))
    assert without_name[Outcome.NOTHING] == {}
    assert without_name[Outcome.NAMES] == {"a": b"1234"}
    without_content = after_power_loss([*written("a", b"1234"), *flushed_folder()])
    assert without_content[Outcome.NOTHING] == without_content[Outcome.NAMES] == {"a": b""}


def test_a_rename_without_flush_may_leave_the_old_file_or_an_empty_new_one():
    calls = [*written("new", b"2"), call(Kind.RENAME, "new", other="file")]
    found = after_power_loss(calls, {"file": b"1"})
    assert found[Outcome.NOTHING] == found[Outcome.CONTENT] == {"file": b"1"}
    assert found[Outcome.NAMES] == {"file": b""}


def test_a_removal_may_be_on_the_disk_before_what_replaces_it():
    calls = [*written("new", b"2", is_flushed=True), call(Kind.UNLINK, "old")]
    assert after_power_loss(calls, {"old": b"1"})[Outcome.REMOVALS] == {}


def test_a_failed_call_changes_nothing():
    calls = [call(Kind.CREATE, "a", flags=NEW_FILE, error=28), call(Kind.UNLINK, "old", error=13)]
    assert Disk.after(ROOT, {"old": b"1"}, calls).tree(2) == {"old": b"1"}


def test_writes_that_the_shim_cannot_see_are_refused():
    with pytest.raises(ValueError, match="memory map"):
        Disk.after(ROOT, {}, [call(Kind.MAP_SHARED_WRITE, fd=3)])


def test_a_tree_is_written_as_it_was_read(tmp_path):
    tree = {"a": b"1", "d": None, "d/b": b""}
    write_tree(tmp_path / "x", tree)
    assert read_tree(tmp_path / "x") == tree


def test_times_do_not_count_as_differences_but_leftovers_do():
    one = {"out/.lock": b"", "out/status.json": b'{"state": "complete", "time": "1"}', "out/model": None}
    other = one | {"out/status.json": b'{"time": "2", "state": "complete"}'}
    assert differences(one, one | {"out/status.json": b'{"state": "running", "time": "1"}'})
    assert fingerprint(one) == fingerprint(one | {"out/status.json": b'{"state": "complete", "time": "2"}'})
    assert fingerprint(one) != fingerprint(other | {"out/status.json": b'{"state": "failed", "time": "2"}'})
    assert differences(one, one | {"out/model/.tmpabc123": b""}) == (
        "out/model/.tmp?????? is left over, out/model/.tmp?????? is shipped"
    )
    assert differences(one, one | {"out/damaged-checkpoint-00000002": None}) == ""


@pytest.mark.slow
@pytest.mark.skipif(not is_available(), reason="needs Linux on x86-64 and cc")
def test_faults_lose_nothing():
    """A small part of the campaign `python -m benchmarks.faults`, which tries every call."""
    command = [sys.executable, "-m", "benchmarks.faults", "--operations", "pretrain", "prepare_data", "--every", "47"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "| pretrain | checkpoint |" in done.stdout
    print(done.stdout)
