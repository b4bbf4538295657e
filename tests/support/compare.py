"""Compare runs: their metrics and their weights."""

import pytest
import torch

METRICS = {"loss", "grad_norm", "learning_rate", "eval_loss", "eval_bits_per_byte", "tokens_seen"}


def assert_same_metrics(one, other, tolerance=1e-5):
    """Both are lists of records of metrics.jsonl."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        for name in first.keys() & METRICS:
            assert first[name] == pytest.approx(second[name], abs=tolerance), (first["step"], name)


def assert_same_weights(one, other, tolerance=0.0):
    """Both are tensors by name."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )
