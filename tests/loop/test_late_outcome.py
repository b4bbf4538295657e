"""With a GPU, the host reads the outcome of a step during the next one. Nothing of a run may depend on that."""

import math

import pytest
import torch

from tests.support.stopped import killed_after, signalled_after
from tests.support.tiny_loop import assert_same_weights, records, start, weights
from train.checkpoint.optimizer_state import optimizer_tensors
from train.checkpoint.state import TrainState
from train.data.sampler import StepSampler
from train.loop import spikes
from train.loop import train as loop
from train.loop.outcome import HostCopy, StepResult, is_harmful, judge
from train.loop.resume import resume
from train.loop.run import Run


@pytest.fixture
def late(monkeypatch):
    """Treat the CPU as a GPU."""
    return lambda: monkeypatch.setattr(Run, "reads_late", True)


def spoil(monkeypatch, run, factors):
    """Multiply the loss of some steps, counted from 1, by a factor; a step has two micro-batches."""
    real_loss, calls = run.objective.loss, iter(range(1000))

    def loss(*args, **kwargs):
        factor = factors.get(next(calls) // 2 + 1, 1) if run.model.training else 1
        return real_loss(*args, **kwargs) * factor

    monkeypatch.setattr(run.objective, "loss", loss)


def assert_same_optimizers(one, other):
    first, second = (optimizer_tensors(run.bare_model, run.checkpoints.optimizers) for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("factors", [{}, {1: math.nan, 4: math.inf}, {7: 100.0, 8: 100.0, 11: math.nan}])
def test_a_run_is_the_same_bit_for_bit(build, monkeypatch, late, optimizer, factors):
    monkeypatch.setattr(spikes, "MIN_UPDATES", 4)
    settings = {"optimizer": optimizer, "max_steps": 12, "eval_steps": 5, "save_steps": 3}
    states, runs = [], []
    for name in ("early", "late"):
        runs.append(build(name, **settings))
        spoil(monkeypatch, runs[-1], factors)
        states.append(start(runs[-1]))
        late()
    assert states[0] == states[1]
    assert {record["step"] for record in records(runs[1]) if "skipped" in record} >= factors.keys()
    assert records(runs[0]) == records(runs[1])
    assert_same_weights(weights(runs[0]), weights(runs[1]))
    assert_same_optimizers(*runs)


def test_a_killed_run_continues_as_if_it_had_not_stopped(build, late):
    whole = build("whole")
    start(whole)
    late()
    with killed_after(5):
        start(build("parts"))
    second = build("parts")
    state = resume(second, recipe="")
    assert state.step == 4
    assert loop.train(second, state)
    assert_same_weights(weights(whole), weights(second))
    assert records(whole) == records(second)


def test_a_signal_saves_the_step_that_it_ends_with(build, late):
    late()
    with signalled_after(1, 15):
        state = start(build(save_steps=0, eval_steps=0, max_steps=9))
    assert state.step == 4  # all processes learn of it while the next step is queued
    assert len(state.recent) == 4
    assert resume(build(save_steps=0, eval_steps=0, max_steps=9), recipe="") == state


def test_a_run_that_diverges_ends_before_the_next_update(build, monkeypatch, late):
    late()
    run = build(eval_steps=0, max_skipped=2, max_steps=9)
    spoil(monkeypatch, run, dict.fromkeys((4, 5), math.nan))
    with pytest.raises(ValueError, match=r"2 updates in a row .* step 5 \(loss is nan\)"):
        start(run)
    assert [record["step"] for record in records(run) if "skipped" in record] == [4, 5]
    (steps,) = {state["step"].item() for state in run.checkpoints.optimizers[0].state.values()}
    assert steps == 3


def test_steps_skipped_on_request_and_steps_without_targets(build, late):
    class NoLabels(StepSampler):
        def micro_batches(self, step):
            for number, batch in super().micro_batches(step):
                yield (
                    number,
                    batch | ({"shift_labels": torch.full_like(batch["shift_labels"], -100)} if step == 4 else {}),
                )

    late()
    run = build(sampler=NoLabels, eval_steps=0, save_steps=0)
    run.skip_windows = [(2, 3)]
    with pytest.raises(ValueError, match="step 5 has nothing to predict"):
        loop.train(run, TrainState())
    assert [record["step"] for record in records(run) if "skipped" in record] == [2, 3]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_the_device_decides_as_the_host_does_up_to_the_last_bit(build, name):
    run, column = build(), ["loss", "grad_norm"].index(name)
    state = TrainState(recent=[[2.0 + i % 2 / 7, 1.0 + i % 3 / 7] for i in range(spikes.MIN_UPDATES)])
    limit = spikes.limits(state, 6.0)[column]
    for value, is_skipped in (
        (limit, False), (math.nextafter(limit, 9), True), (math.nextafter(limit, 0), False), (math.nan, True),
        (math.inf, True), (-math.inf, True),
    ):  # fmt: skip
        values = [2.0, 1.0]
        values[column] = value
        losses = torch.tensor(values, dtype=torch.float64)
        result = StepResult(65, HostCopy(losses), HostCopy(torch.ones(3)))
        again = TrainState(recent=list(state.recent))
        assert is_harmful(losses, again, 6.0) == judge(run, again, result) == is_skipped


@pytest.mark.parametrize(("skipped", "loss", "expected"), [(1, 2.1, True), (2, 2.1, False), (2, 9.0, True)])
def test_the_device_knows_how_many_updates_were_skipped_in_a_row(build, skipped, loss, expected):
    state = TrainState(recent=[[2.0 + i % 2 / 7, 1.0 + i % 3 / 7] for i in range(spikes.MIN_UPDATES)])
    state.skipped_in_a_row = skipped
    losses = torch.tensor([loss, 9.0], dtype=torch.float64)
    is_skipped = bool(is_harmful(losses, state, 6.0))
    assert is_skipped == judge(build(), state, StepResult(65, HostCopy(losses), HostCopy(torch.ones(3)))) == expected


def test_the_next_batch_is_read_while_the_device_computes(build, late, monkeypatch):
    late()
    run, events = build(eval_steps=0, save_steps=0, max_steps=3), []
    real_read, real_update = StepSampler.micro_batches, loop.update
    monkeypatch.setattr(StepSampler, "micro_batches", lambda self, step: events.append(step) or real_read(self, step))
    monkeypatch.setattr(loop, "update", lambda *args: events.append("update") or real_update(*args))
    start(run)
    assert events == [0, 1, "update", 2, "update", "update"]
