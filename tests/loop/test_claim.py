"""A run folder has one writer, and nothing of a run outlives its process group."""

import gc
import weakref
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.support.tiny_base import options, write_conversations, write_labels
from train import finetune, finetune_classifier, pretrain
from train.loop.claim import claimed, lock, open_run_folder, release
from train.settings.training import TrainArguments


def test_a_run_has_one_writer(tmp_path):
    with lock(tmp_path), pytest.raises(ValueError, match="another process is training"):
        lock(tmp_path)
    lock(tmp_path).close()


def test_the_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(TrainArguments(str(tmp_path / "run"), precision="fp32")):
        raise ZeroDivisionError
    lock(tmp_path / "run").close()


def test_a_run_folder_is_recognized(tmp_path):
    folder = open_run_folder(tmp_path / "a" / "run")
    (folder / "metrics.jsonl").write_text("")
    assert open_run_folder(folder) == folder


def command_line(command, recipe, base, tmp_path):
    if command is pretrain:
        return [recipe(max_steps=1, warmup_steps=0)]
    write, name = (write_conversations, "rows.jsonl") if command is finetune else (write_labels, "rows.csv")
    return options(model=base, train_file=write(tmp_path / name), output_dir=tmp_path / "run", max_steps=1)


def alive_at_the_end(monkeypatch, command, name, line, part_of=lambda result: result, collect=lambda: None):
    """Whether a part of each result of the command's function `name` is still there when its process group ends."""
    parts, alive = [], []
    real_function, real_end = getattr(command, name), Accelerator.end_training

    def function(*args, **kwargs):
        result = real_function(*args, **kwargs)
        parts.append(weakref.ref(part_of(result)))
        return result

    def end(accelerator):
        collect()
        alive.extend(part() is not None for part in parts)
        real_end(accelerator)

    monkeypatch.setattr(command, name, function)
    monkeypatch.setattr(Accelerator, "end_training", end)
    assert command.main(line) == 0
    return alive


@pytest.mark.parametrize("command", [pretrain, finetune, finetune_classifier], ids=lambda command: command.__name__)
def test_a_run_is_gone_when_its_process_group_ends(recipe, base, tmp_path, monkeypatch, command):
    """A model that outlives the process group can hang in its destructor."""
    line = command_line(command, recipe, base, tmp_path)
    assert alive_at_the_end(monkeypatch, command, "build_run", line) == [False]


@pytest.mark.parametrize("command", [finetune, finetune_classifier], ids=lambda command: command.__name__)
def test_the_base_model_is_gone_when_the_process_group_ends(recipe, base, tmp_path, monkeypatch, command):
    line = command_line(command, recipe, base, tmp_path)
    alive = alive_at_the_end(monkeypatch, command, "load_base", line, lambda loaded: loaded.model, gc.collect)  # cycles
    assert alive == [False]


def test_a_folder_that_another_process_is_creating_is_a_run_folder(tmp_path, monkeypatch):
    """It may have looked empty, or contain only the lock."""
    folder = tmp_path / "run"
    folder.mkdir()
    real_iterdir = Path.iterdir

    def created_meanwhile(path):
        yield from real_iterdir(path)
        if path == folder:
            (folder / ".lock").touch()
            (folder / ".heartbeat").mkdir()
            yield folder / ".heartbeat"

    monkeypatch.setattr(Path, "iterdir", created_meanwhile)
    assert open_run_folder(folder) == folder


@pytest.mark.parametrize("name", ["thesis.txt", ".hidden"])
def test_a_folder_of_something_else_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="is not empty and not a run folder"):
        open_run_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ValueError, match="is a file: choose a new folder"):
        open_run_folder(tmp_path / name)


def test_heartbeats_of_an_earlier_launch_are_removed(tmp_path):
    (tmp_path / "run" / ".heartbeat").mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".heartbeat" / "1.json").write_text('{"pid": 1, "host": "x", "namespace": "", "ended": "y"}')
    with claimed(TrainArguments(str(tmp_path / "run"), precision="fp32")):
        assert not (tmp_path / "run" / ".heartbeat").exists()


def test_an_error_while_the_folder_is_released_changes_no_outcome():
    class Broken:
        def close(self):
            raise OSError(5, "Input/output error")

    release(Broken())
