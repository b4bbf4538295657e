"""A folder is written completely or not at all, whoever is killed and whoever writes it too."""

import os
import signal
import subprocess
import sys

import pytest

from train.data.new_folder import written_whole

WRITER = """
import sys, time
from pathlib import Path
from train.data.new_folder import written_whole
with written_whole(Path(sys.argv[1])) as partial:
    (partial / "a.txt").write_text("from another process")
    print(partial, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def start():
    """Start a process that writes a folder until it gets a line; returns it and its temporary folder."""
    processes = []

    def start(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def write(folder, text="mine"):
    with written_whole(folder) as partial:
        (partial / "inner").mkdir()
        (partial / "inner/a.txt").write_text(text)


def test_the_folder_appears_when_it_is_complete(tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(OSError, match="full"), written_whole(folder):
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()  # an empty one is replaced
    write(folder)
    assert (folder / "inner/a.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert oct(folder.stat().st_mode) == oct(tmp_path.joinpath("data/inner").stat().st_mode)


def test_what_a_killed_process_left_is_removed_but_not_what_another_one_writes(tmp_path, start):
    folder = tmp_path / "data"
    killed, left = start(folder)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert os.path.exists(left)
    (tmp_path / ".tmp-data").mkdir()  # as earlier versions named it
    (tmp_path / ".tmp-data-mining").mkdir()
    _running, partial = start(folder)
    with written_whole(tmp_path / "datum"):
        pass
    with written_whole(folder) as mine:
        assert not os.path.exists(left)
        assert not (tmp_path / ".tmp-data").exists()
        assert os.path.exists(partial)
        assert mine.name != partial


def test_the_first_to_finish_wins(tmp_path, start):
    folder = tmp_path / "data"
    other, _ = start(folder)
    with pytest.raises(FileExistsError, match="was written by another process in the meantime"), written_whole(folder):
        other.communicate("\n")
    assert (folder / "a.txt").read_text() == "from another process"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_everything_is_flushed_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_rename(source, target):
        events.append("RENAMED")
        rename(source, target)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("names of open files are only known on Linux")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr("pathlib.os.rename", noted_rename)
    write(tmp_path / "data")
    assert events[:2] == ["a.txt", "inner"]
    assert events[2].startswith(".tmp-data-")
    assert events[3:] == ["RENAMED", tmp_path.name]
