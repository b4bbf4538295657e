"""Harmful updates are skipped, and a run that does not recover ends."""

import math

import pytest
import torch

from tests.support.tiny_loop import BLOCK, assert_same_weights, records, start, weights
from train.checkpoint.state import TrainState
from train.loop import spikes
from train.loop import train as loop
from train.loop.language_modeling import LanguageModeling
from train.loop.log import RunLog
from train.loop.resume import resume


def spoil(monkeypatch, run, bad_steps, factor=math.nan):
    """Multiply the loss of some steps, counted from 1; a step has two micro-batches."""
    real_loss, calls = run.objective.loss, iter(range(1000))

    def loss(*args, **kwargs):
        is_bad = run.model.training and next(calls) // 2 + 1 in bad_steps
        return real_loss(*args, **kwargs) * (factor if is_bad else 1)

    monkeypatch.setattr(run.objective, "loss", loss)


def test_an_update_that_is_not_finite_is_skipped_and_recorded(build, monkeypatch):
    run = build(eval_steps=0)
    before = {}
    real_skip = RunLog.write_skip
    monkeypatch.setattr(RunLog, "write_skip", lambda *args: before.update(weights(run)) or real_skip(*args))
    spoil(monkeypatch, run, {4})
    steps = iter(range(100))
    (adamw, _) = run.checkpoints.optimizers
    monkeypatch.setattr(adamw, "step", lambda real=adamw.step: (next(steps), real()))
    state = start(run)
    assert (state.step, state.skipped_in_a_row) == (6, 0)
    assert next(steps) == 5  # updates
    assert [record["skipped"] for record in records(run) if "skipped" in record] == ["loss is nan"]
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_a_run_that_does_not_recover_stops_with_the_last_good_checkpoint(build, monkeypatch):
    run = build(eval_steps=0, max_skipped=2)
    spoil(monkeypatch, run, {4, 5, 6})
    with pytest.raises(ValueError, match=r"2 updates in a row .* step 5 \(loss is nan\).*checkpoint-00000002"):
        start(run)
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_skips_are_counted_across_a_restart(build, monkeypatch):
    run = build(eval_steps=0, save_steps=1, max_steps=3, warmup_steps=0)
    spoil(monkeypatch, run, {3})
    start(run)
    state = resume(build(eval_steps=0, save_steps=1, max_steps=3, warmup_steps=0), recipe="")
    assert (state.skipped_in_a_row, len(state.recent)) == (1, 2)


def test_a_gradient_that_is_not_finite_is_skipped_too(build, monkeypatch):
    run = build(max_skipped=1)
    monkeypatch.setattr(run.accelerator, "clip_grad_norm_", lambda *args: torch.tensor(math.inf))
    before = weights(run)
    with pytest.raises(ValueError, match=r"gradient norm is inf.*checkpoint is none"):
        start(run)
    assert_same_weights(before, weights(run))


def test_steps_are_skipped_on_request(build):
    run, state = build(eval_steps=0), TrainState()
    run.skip_windows = [(2, 3)]
    assert loop.train(run, state)
    logged = records(run)
    assert [record["step"] for record in logged if "skipped" in record] == [2, 3]
    assert state.tokens_seen == 4 * 4 * BLOCK
    assert state.skipped_in_a_row == 0  # not a sign of trouble


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                                   torch.OutOfMemoryError("CUDA out of memory")])  # fmt: skip
def test_too_little_memory_ends_with_the_settings_that_need_less(build, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(LanguageModeling, "loss", fail)
    with pytest.raises(
        ValueError, match=r"micro-batch of 2 sequences on cpu.*--micro_batch_size 1, or --gradient_chec"
    ):
        start(build())


@pytest.mark.parametrize("part", ["evaluate_batch", "update", "generate_samples"])
def test_help_with_memory_covers_the_whole_step_and_evaluations(build, monkeypatch, part):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop if part == "update" else LanguageModeling, part, fail)
    with pytest.raises(ValueError, match=r"out of memory with a micro-batch of 2 .*--micro_batch_size 1"):
        start(build(sample_prompts=["def"], max_new_tokens=2))


def test_other_errors_stay_what_they_are(build, monkeypatch):
    def fail(*args):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(LanguageModeling, "loss", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        start(build())


def usual(losses=(2.0, 2.2), count=spikes.MIN_UPDATES):
    """A state that has seen losses and norms alternate."""
    return TrainState(recent=[[losses[i % 2], 1.0 + i % 2] for i in range(count)])


@pytest.mark.parametrize(
    ("loss", "grad_norm", "reason"),
    [
        (2.6, 1.5, ""),
        (2.8, 1.5, "loss 2.8 is above 2.7, 6 standard deviations"),
        (0.1, 0.0, ""),  # good news is no spike
        (2.1, 4.4, ""),
        (2.1, 4.6, "gradient norm 4.6 is above 4.5"),
        (math.inf, 1.0, "loss is inf"),
        (2.1, math.nan, "gradient norm is nan"),
    ],
)
def test_a_spike_lies_above_what_is_usual(loss, grad_norm, reason):
    found = spikes.reason_to_skip(usual(), loss, grad_norm, sigmas=6.0)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_what_is_usual_takes_a_while_to_know():
    assert not spikes.reason_to_skip(usual(count=spikes.MIN_UPDATES - 1), 99.0, 99.0, sigmas=6.0)
    assert not spikes.reason_to_skip(usual(), 99.0, 99.0, sigmas=0.0)


def test_large_gradients_do_not_hold_a_run_forever():
    """Weights that do not change keep their gradients."""
    state, decisions = usual(), []
    for _ in range(spikes.PATIENCE + 1):
        reason = spikes.reason_to_skip(state, 2.1, 9.0, sigmas=6.0)
        decisions.append(bool(reason))
        spikes.record_outcome(state, 2.1, 9.0, reason)
    assert decisions == [True] * spikes.PATIENCE + [False]
    assert state.recent[-1] == [2.1, 9.0]  # part of what is usual now
    assert state.skipped_in_a_row == 0


def test_large_losses_are_always_skipped():
    state = usual()
    state.skipped_in_a_row = spikes.PATIENCE
    assert spikes.reason_to_skip(state, 9.0, 9.0, sigmas=6.0).startswith("loss 9 is above")
    assert spikes.reason_to_skip(state, 2.1, math.inf, sigmas=6.0) == "gradient norm is inf"


def test_the_scaler_of_fp16_handles_its_own_overflows():
    assert not spikes.reason_to_skip(usual(), 2.0, math.inf, sigmas=6.0, is_scaled=True)
    assert spikes.reason_to_skip(usual(), math.nan, math.inf, sigmas=6.0, is_scaled=True)


def test_memory_is_short_and_takes_finite_values_only():
    state = usual()
    for number in range(3 * spikes.WINDOW):
        spikes.record_outcome(state, float(number), 1.0, skip_reason="")
    assert [pair[0] for pair in state.recent] == list(range(2 * spikes.WINDOW, 3 * spikes.WINDOW))
    spikes.record_outcome(state, 1.0, math.inf, skip_reason="")
    assert state.recent[-1][0] == 3 * spikes.WINDOW - 1


def test_a_spike_is_skipped_in_a_run(build, monkeypatch):
    monkeypatch.setattr(spikes, "MIN_UPDATES", 4)
    run = build(max_steps=8, eval_steps=0)
    spoil(monkeypatch, run, {7}, factor=100.0)
    state = start(run)
    assert state.skipped_in_a_row == 0
    assert [record["step"] for record in records(run) if "skipped" in record] == [7]
    assert [record["step"] for record in records(run) if "loss" in record] == [1, 2, 3, 4, 5, 6, 8]
