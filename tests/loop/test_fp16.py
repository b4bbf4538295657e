"""The loss scaler of fp16: with several optimizers, after skipped updates, and when the precision changes."""

import math
from contextlib import nullcontext

import pytest
import torch

from tests.support.tiny_loop import assert_same_weights, records, start, weights
from train.loop.resume import resume


def scaled(run, monkeypatch, scale=1024.0):
    """Train with a loss scaler, but compute in float32: a power of two changes no bit."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    monkeypatch.setattr(run.accelerator, "scaler", scaler)
    monkeypatch.setattr(run.accelerator, "native_amp", True)
    monkeypatch.setattr(run.accelerator.state, "_mixed_precision", "fp16")
    monkeypatch.setattr(run.accelerator, "autocast", nullcontext)
    for optimizer in run.optimizers:
        optimizer.scaler = scaler
    return scaler


def spoil(run, monkeypatch, bad_steps):
    """Make the loss of some steps, counted from 1, infinite; a step has two micro-batches."""
    real_loss, calls = run.objective.loss, iter(range(1000))

    def loss(*args, **kwargs):
        is_bad = run.model.training and next(calls) // 2 + 1 in bad_steps
        return real_loss(*args, **kwargs) * (math.inf if is_bad else 1)

    monkeypatch.setattr(run.objective, "loss", loss)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("bad_steps", [(), (1,), (3,)])
def test_the_scale_changes_nothing(build, monkeypatch, optimizer, bad_steps):
    settings = {"optimizer": optimizer, "eval_steps": 0, "save_steps": 0}
    plain = build("plain", **settings)
    spoil(plain, monkeypatch, bad_steps)
    start(plain)
    run = build("scaled", **settings)
    spoil(run, monkeypatch, bad_steps)
    scaler = scaled(run, monkeypatch)
    start(run)
    assert_same_weights(weights(plain), weights(run))
    assert [line["grad_norm"] for line in records(run) if "loss" in line] == [
        line["grad_norm"] for line in records(plain) if "loss" in line
    ]
    assert scaler.get_scale() == 1024.0 / 2 ** len(bad_steps)


def test_an_overflow_in_one_optimizer_skips_the_step_of_all(build, monkeypatch):
    """Then the scale is halved, and the next step is a good one."""
    run = build(max_steps=2, warmup_steps=0, eval_steps=0, optimizer="muon")
    scaler = scaled(run, monkeypatch)
    before = weights(run)
    norm = run.bare_model.model.norm.weight  # trained by AdamW
    norm.register_hook(lambda gradient: gradient * math.inf if scaler.get_scale() == 1024.0 else gradient)
    start(run)
    after = weights(run)
    assert scaler.get_scale() == 512.0
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert len([line for line in records(run) if "loss" in line]) == 2


def test_the_scale_is_restored_only_if_both_precisions_are_fp16(build, monkeypatch):
    run, float32, again = (build(max_steps=2, warmup_steps=0) for _ in range(3))
    scaled(run, monkeypatch, scale=64.0)
    start(run)
    assert resume(float32, recipe="").step == 2
    scaler = scaled(again, monkeypatch)
    resume(again, recipe="")
    assert scaler.get_scale() == 64.0
