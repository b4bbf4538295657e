"""status.json has the state of a run, because launchers do not pass on exit codes."""

import pytest

from tests.support.tiny_run import records
from train import pretrain
from train.loop import status
from train.loop import train as loop
from train.loop.finish import STOPPED
from train.loop.status import read_status, write_status
from train.settings.command import run_command


def test_a_finished_run_is_complete(recipe, tmp_path):
    pretrain.main([recipe()])
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"], status["max_steps"]) == ("complete", 6, 6)
    assert status["checkpoint"] == "checkpoint-00000006"
    before = (tmp_path / "run" / "status.json").read_text()
    pretrain.main([recipe()])
    assert (tmp_path / "run" / "status.json").read_text() == before  # nothing was done


def test_it_says_running_until_then_and_why_it_failed(recipe, tmp_path, monkeypatch):
    seen = []

    def step(run, state, **kwargs):
        seen.append(read_status(run.folder)["state"])
        if state.step == 4:
            raise ValueError("the reason")
        return loop_step(run, state, **kwargs)

    loop_step = loop.train_step
    monkeypatch.setattr(loop, "train_step", step)
    assert run_command(pretrain.main, [recipe()]) == 2
    status = read_status(tmp_path / "run")
    assert seen == ["running"] * 5
    assert (status["state"], status["reason"], status["step"]) == ("failed", "the reason", 4)
    assert status["checkpoint"] == "checkpoint-00000003"


def test_a_mistake_before_training_leaves_the_status_of_the_run(recipe, tmp_path):
    pretrain.main([recipe()])
    assert run_command(pretrain.main, [recipe(), "--seed=7"]) == 2
    assert read_status(tmp_path / "run")["state"] == "complete"


def test_a_run_that_was_asked_to_stop_is_stopped(recipe, tmp_path, monkeypatch):
    real_step = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda run, state, **kw: real_step(run, state, wants_stop=state.step == 1))
    assert pretrain.main([recipe()]) == STOPPED
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("stopped", 2)
    assert records(tmp_path / "run")[-1]["step"] == 2


def test_no_status_is_none(tmp_path):
    assert read_status(tmp_path) == {}
    (tmp_path / "status.json").write_text('{"sta')
    assert read_status(tmp_path) == {}


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_the_file_is_replaced_whole(tmp_path, state):
    write_status(tmp_path, state, step=3)
    assert read_status(tmp_path)["state"] == state
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_mistake_before_the_first_step_is_recorded(recipe, tmp_path):
    """The exit code and the file agree."""
    assert run_command(pretrain.main, [recipe(), "--micro_batch_size=4", "--tp_size=3"]) == 2
    status = read_status(tmp_path / "run")
    assert (status["state"], "tp_size (3)" in status["reason"]) == ("failed", True)


def test_a_second_interrupt_stops_a_run(recipe, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_step", interrupted)
    assert run_command(pretrain.main, [recipe()]) == STOPPED
    assert read_status(tmp_path / "run")["state"] == "stopped"


def test_a_full_disk_does_not_hide_the_first_error(recipe, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        monkeypatch.setattr(status, "replace_text", full)
        raise ValueError("the reason")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "train_step", fail)
    assert run_command(pretrain.main, [recipe()]) == 2
    assert "error: the reason" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[]", '"complete"', '{"state": 3}', '{"state": "complete", "step": "x"}', "[" * 9999]
)
def test_a_status_of_another_shape_is_none(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path) == {}
