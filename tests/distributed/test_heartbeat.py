"""Heartbeats tell which process has ended, and why, and which one is silent."""

import json
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from train.distributed import heartbeat as module
from train.distributed.heartbeat import (
    EndedError,
    Heartbeat,
    SilentError,
    check_alive,
    find_lost,
    heartbeat,
    is_alive,
    whoami,
)


@pytest.fixture
def own(tmp_path):
    """The heartbeat of process 0 of three."""
    return Heartbeat(tmp_path, 0, 3, timeout=15.0)


def beat(own, process, age=0.0, **facts):
    own.path(process).write_text(json.dumps(whoami() | facts))
    os.utime(own.path(process), (time.time() - age,) * 2)


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_all_alive(own, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.05)
    beat(own, 1)
    assert own.lost() == ""  # process 2 has not started yet
    assert "all of them are alive, so one was more than 15 s slower (--ddp_timeout)" in find_lost(own)


def test_a_process_that_was_killed_has_ended(own, dead):
    beat(own, 1, pid=dead)
    assert own.lost() == f"process 1 (pid {dead} on {whoami()['host']}) has ended"


def test_a_process_of_another_machine_or_container_is_not_looked_up(own, dead):
    beat(own, 1, pid=dead, host="elsewhere")
    beat(own, 2, pid=dead, namespace="pid:[7]")
    assert own.lost() == ""


def test_the_reason_of_a_process_that_has_ended_is_said(own):
    beat(own, 2, pid=7, host="node", ended="with the error: out of memory")
    assert own.lost() == "process 2 (pid 7 on node) has ended with the error: out of memory"


def test_a_silent_process_is_named(own):
    beat(own, 1, age=60, pid=71, host="node")
    assert own.lost() == "process 1 (pid 71 on node) has been silent for 60 s"


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', "null"])
def test_a_damaged_file_is_no_reason_to_fail(own, content):
    own.path(1).write_text(content)
    assert own.lost() == ""


def test_a_dead_child_that_nobody_has_waited_for_is_not_alive():
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 20
    while is_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(process.pid)
    process.wait()
    assert is_alive(os.getpid())


def test_waiting_ends_when_the_other_process_does(own, dead, monkeypatch):
    monkeypatch.setattr(module, "_current", [own])
    beat(own, 1)
    check_alive(1, waiting_for=9999)  # it may take as long as it takes
    beat(own, 1, age=16)
    with pytest.raises(SilentError, match=r"process 1 .* has been silent for 16 s"):
        check_alive(1, waiting_for=1)
    beat(own, 1, pid=dead)
    with pytest.raises(EndedError, match=r"process 1 .* has ended"):
        check_alive(1, waiting_for=1)
    check_alive(2, waiting_for=14)
    with pytest.raises(SilentError, match="process 2 did not answer within 16 s"):
        check_alive(2, waiting_for=16)


def accelerator(process=0):
    return SimpleNamespace(num_processes=2, process_index=process)


def test_the_error_of_a_broken_connection_names_who_ended_and_keeps_its_own_text(tmp_path, dead):
    def lose():
        with heartbeat(tmp_path, accelerator(), 15.0):
            beat(Heartbeat(tmp_path / ".heartbeat", 0, 2, 15.0), 1, pid=dead)
            raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1\nmore")

    with pytest.raises(ValueError, match=rf"process 1 \(pid {dead} on .*\) has ended \(\[pair.cc:553\] Connection clo"):
        lose()
    facts = json.loads((tmp_path / ".heartbeat" / "0.json").read_text())
    assert facts["ended"].startswith("with the error: [pair.cc:553] Connection closed")


def test_other_errors_pass_and_are_told_to_the_others(tmp_path):
    with pytest.raises(RuntimeError, match="sizes differ"), heartbeat(tmp_path, accelerator(1), 15.0):
        raise RuntimeError("sizes differ")
    facts = json.loads((tmp_path / ".heartbeat" / "1.json").read_text())
    assert (facts["pid"], facts["ended"]) == (os.getpid(), "with the error: sizes differ")


def test_a_full_disk_does_not_silence_a_heartbeat(own, monkeypatch):
    """The file is touched, not written again."""
    monkeypatch.setattr(module, "SECONDS", 0.01)
    stop = threading.Event()
    own.start(stop)
    os.utime(own.path(0), (1, 1))
    monkeypatch.setattr(type(own.path(0)), "write_text", lambda *args, **kwargs: 1 / 0)
    deadline = time.monotonic() + 20
    while own.path(0).stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    assert own.path(0).stat().st_mtime > 1
