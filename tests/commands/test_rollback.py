"""`rollback`: newer checkpoints are renamed, and the continued run skips the chosen steps."""

import json

import pytest

from tests.support.tiny_run import records
from train import pretrain, rollback
from train.loop.status import read_status
from train.settings.command import run_command


@pytest.fixture
def run(recipe, tmp_path):
    """A finished run of six steps with checkpoints of steps 2, 4 and 6."""
    pretrain.main([recipe(save_steps=2, save_total_limit=3)])
    return tmp_path / "run"


def rollback_to(run, *options):
    return run_command(rollback.main, [f"--output_dir={run}", *options])


def steps_of(run):
    return sorted(int(path.name[-8:]) for path in run.glob("checkpoint-*"))


def test_newer_checkpoints_are_renamed_and_the_run_continues_from_the_target(run, recipe):
    assert rollback_to(run, "--to_step=2") == 0
    assert steps_of(run) == [2]
    assert {path.name for path in run.glob("rolled-back-*")} == {
        "rolled-back-checkpoint-00000004", "rolled-back-checkpoint-00000006", "rolled-back-model"
    }  # fmt: skip
    status = read_status(run)
    assert (status["state"], status["step"]) == ("stopped", 2)
    before = [line for line in records(run) if "loss" in line]
    assert pretrain.main([recipe(save_steps=2, save_total_limit=3)]) == 0
    again = [line for line in records(run) if "loss" in line]
    assert [line["loss"] for line in again] == [line["loss"] for line in before]
    assert (run / "model").exists()


def test_the_continued_run_skips_steps(run, recipe):
    assert rollback_to(run, "--to_step=2", "--skip_steps", "3", "4") == 0
    pretrain.main([recipe(save_steps=2, save_total_limit=3)])
    lines = records(run)
    assert [line["step"] for line in lines if line.get("skipped") == "on request"] == [3, 4]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 5, 6]
    assert rollback_to(run, "--to_step=4", "--skip_steps", "6", "6") == 0
    assert json.loads((run / "skipped_steps.json").read_text()) == [[3, 4], [6, 6]]


def test_without_options_a_complete_run_stays_complete(run):
    assert rollback_to(run) == 0
    assert (run / "model").exists()
    assert read_status(run)["state"] == "complete"
    assert steps_of(run) == [2, 4, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to_step=3"], "--to_step 3 has no checkpoint; there are checkpoints of steps 2, 4, 6"),
        (["--to_step=4", "--skip_steps", "3", "4"], "--skip_steps 3 4 is before step 4, which is done"),
        (["--skip_steps", "9"], "it takes a first and a last step"),
        (["--skip_steps", "9", "8"], "it takes a first and a last step"),
        (["--skip_steps", "0", "8"], "counted from 1"),
    ],
)
def test_refused_options_change_nothing(run, capsys, options, message):
    assert rollback_to(run, *options) == 2
    assert message in capsys.readouterr().err
    assert steps_of(run) == [2, 4, 6]
    assert (run / "model").exists()


def test_a_folder_without_checkpoints_is_refused(tmp_path, capsys):
    assert rollback_to(tmp_path) == 2
    assert f"{tmp_path} has no checkpoint" in capsys.readouterr().err


def test_a_damaged_target_is_refused(run, capsys):
    (run / "checkpoint-00000002" / "config.json").write_text("{}")
    assert rollback_to(run, "--to_step=2") == 2
    assert "config.json" in capsys.readouterr().err
    assert steps_of(run) == [2, 4, 6]


def test_an_adapter_is_renamed_with_its_model(run):
    (run / "adapter").mkdir()
    assert rollback_to(run, "--to_step=2") == 0
    assert (run / "rolled-back-adapter").is_dir()
    assert not (run / "adapter").exists()
