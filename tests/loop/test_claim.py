"""A run folder has one writer, and nothing of a run outlives its process group."""

import weakref

import pytest
from accelerate import Accelerator

from tests.support.tiny_base import options, write_conversations, write_labels
from train import finetune, finetune_classifier, pretrain
from train.loop.claim import claimed, lock, open_run_folder
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


@pytest.mark.parametrize("command", [pretrain, finetune, finetune_classifier], ids=lambda command: command.__name__)
def test_a_run_is_gone_when_its_process_group_ends(recipe, base, tmp_path, monkeypatch, command):
    """A model that outlives the process group can hang in its destructor."""
    runs, alive = [], []
    real_build, real_end = command.build_run, Accelerator.end_training

    def build(*args):
        run = real_build(*args)
        runs.append(weakref.ref(run))
        return run

    def end(accelerator):
        alive.extend(run() is not None for run in runs)
        real_end(accelerator)

    monkeypatch.setattr(command, "build_run", build)
    monkeypatch.setattr(Accelerator, "end_training", end)
    assert command.main(command_line(command, recipe, base, tmp_path)) == 0
    assert alive == [False]
