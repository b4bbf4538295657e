"""Saving in the background, and what a continued run says of what has changed."""

import json
import threading

import pytest
import torch

from tests.support.tiny_loop import assert_same_weights, start, weights
from train.checkpoint import checkpointer
from train.checkpoint.manifest import seal_of
from train.checkpoint.settings_check import changed_settings
from train.checkpoint.state import TrainState
from train.loop import train as loop


def test_a_checkpoint_in_the_background_holds_the_weights_of_its_step(build, monkeypatch):
    """Training goes on while it is written, and changes nothing in it."""
    plain, background = build("plain", max_steps=4), build("background", max_steps=4, async_save=True)
    start(plain)
    trained, real_save = threading.Event(), checkpointer.write_checkpoint
    threads = []

    def slow_save(*args):
        threads.append(threading.current_thread())
        if len(threads) == 1:  # the checkpoint of step 2 waits for step 3
            assert trained.wait(20)
        real_save(*args)

    real_step = loop.train_step

    def step(run, state, **kwargs):
        result = real_step(run, state, **kwargs)
        if state.step == 2:
            trained.set()
        return result

    monkeypatch.setattr(checkpointer, "write_checkpoint", slow_save)
    monkeypatch.setattr(loop, "train_step", step)
    start(background)
    assert threading.main_thread() not in threads
    for name in ("checkpoint-00000002", "checkpoint-00000004"):
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (plain.folder / name / file).read_bytes() == (background.folder / name / file).read_bytes()


def test_an_error_in_the_background_ends_the_run(build, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointer, "write_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        start(build(async_save=True, max_steps=4))


def test_a_run_that_was_saved_in_the_background_continues(build):
    whole = build("whole", max_steps=4)
    start(whole)
    first = build("parts", max_steps=4, async_save=True)
    state = first.checkpoints.restore()
    first.arguments.max_steps = 2
    loop.train(first, state)
    second = build("parts", max_steps=4, async_save=True)
    state = second.checkpoints.restore()
    assert state.step == 2
    loop.train(second, state)
    assert_same_weights(weights(whole), weights(second))


def test_other_versions_and_processes_are_said(build, capsys):
    run = build(max_steps=2)
    start(run)
    path = run.folder / "checkpoint-00000002" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["seal"]
    manifest["versions"]["torch"] = "1.0"
    manifest["num_processes"] = 4
    path.write_text(json.dumps(manifest | {"seal": seal_of(manifest)}))
    capsys.readouterr()
    build(max_steps=2).checkpoints.restore()
    shown = capsys.readouterr().out
    assert f"torch: was 1.0, now {torch.__version__}. The run continues with the same examples, but" in shown
    assert "processes: was 4, now 1." in shown
    assert "transformers" not in shown


def test_changed_settings_are_listed_with_both_values():
    old = {"seed": 1, "rate": 0.1, "model": {"heads": 2, "layers": (3, 3)}, "gone": 1}
    new = {"seed": 1, "rate": 0.2, "model": {"heads": 4, "layers": [3, 3]}, "new": None}
    assert changed_settings(old, new) == {
        "gone": "gone: was 1, now None",
        "model.heads": "model.heads: was 2, now 4",
        "rate": "rate: was 0.1, now 0.2",
    }


def test_progress_survives_a_checkpoint(build):
    run = build(max_steps=2)
    state = TrainState(2, 96, 3.5, 2, 1, [[4.0, 1.0], [3.9, 0.5]])
    run.checkpoints.save(state)
    assert build(max_steps=2).checkpoints.restore() == state


@pytest.mark.parametrize(("before", "after"), [("muon", "adamw"), ("adamw", "muon")])
def test_another_optimizer_starts_with_a_new_state_where_the_old_one_does_not_fit(build, capsys, before, after):
    start(build(max_steps=2, optimizer=before))
    run = build(max_steps=4, optimizer=after, warmup_steps=0)
    state = run.checkpoints.restore()
    shown = capsys.readouterr().out
    assert "optimizer: the state of 14 parameters was made by another optimizer, so it starts anew: " in shown
    assert len(run.checkpoints.optimizers[0].state) > 0  # embeddings and norms have always had AdamW
    assert loop.train(run, state)
    for optimizer in run.checkpoints.optimizers:
        names = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}[type(optimizer).__name__]
        assert all(set(values) == names for values in optimizer.state.values())


def test_the_same_optimizer_keeps_its_state_without_a_word(build, capsys):
    start(build(max_steps=2))
    build(max_steps=2).checkpoints.restore()
    assert "starts anew" not in capsys.readouterr().out
