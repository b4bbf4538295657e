"""Which updates to skip: those with a non-finite or spiking loss or gradient.

The decision uses values summed over all processes, so all processes agree. Recent values are saved with each
checkpoint, so a continued run decides like an uninterrupted one.
"""

import math
import statistics
from collections.abc import Sequence

from ..checkpoint.state import TrainState

WINDOW = 128  # recent updates that a new one is compared with
MIN_UPDATES = 64  # no spike is detected before
PATIENCE = 2  # updates in a row that are skipped for their gradient norm alone


def reason_to_skip(state: TrainState, loss: float, grad_norm: float, sigmas: float, is_scaled: bool = False) -> str:
    """Why the update must be skipped; empty if it is good.

    A spike is more than `sigmas` standard deviations above the mean of recent updates, the rule of
    https://github.com/allenai/OLMo-core. PaLM skipped such data by hand (https://huggingface.co/papers/2204.02311).
    Weights that do not change keep their large gradients, and a run would be stuck. So at most `PATIENCE` updates in a
    row are skipped for the gradient norm alone; clipping bounds the next one.

    Args:
        sigmas: 0 disables spike detection.
        is_scaled: with fp16, gradients overflow now and then; the loss scaler skips those updates itself.
    """
    if not math.isfinite(loss):
        return f"loss is {loss}"
    if not math.isfinite(grad_norm):
        return "" if is_scaled else f"gradient norm is {grad_norm}"
    if not sigmas or len(state.recent) < MIN_UPDATES:
        return ""
    losses, norms = columns(state)
    for name, value, recent in (("loss", loss, losses), ("gradient norm", grad_norm, norms)):
        if is_clearly_usual(value, recent, sigmas) or (recent is norms and is_stuck(state)):
            continue
        limit = limit_of(recent, sigmas)
        if value > limit:
            return f"{name} {value:.4g} is above {limit:.4g}, {sigmas:g} standard deviations above the recent mean"
    return ""


def limits(state: TrainState, sigmas: float) -> tuple[float, float]:
    """The loss and the gradient norm above which the next update is a spike; infinite if no spike is detected yet."""
    if not sigmas or len(state.recent) < MIN_UPDATES:
        return math.inf, math.inf
    losses, norms = columns(state)
    return limit_of(losses, sigmas), math.inf if is_stuck(state) else limit_of(norms, sigmas)


def is_stuck(state: TrainState) -> bool:
    """Whether the last `PATIENCE` updates were skipped, so that the gradient norm no longer counts."""
    return state.skipped_in_a_row >= PATIENCE


def columns(state: TrainState) -> tuple[list[float], list[float]]:
    """The recent losses and the recent gradient norms."""
    return [pair[0] for pair in state.recent], [pair[1] for pair in state.recent]


def limit_of(recent: Sequence[float], sigmas: float) -> float:
    """`sigmas` standard deviations above the mean. `statistics` computes exactly, which takes a quarter millisecond."""
    return statistics.fmean(recent) + sigmas * statistics.pstdev(recent)


def is_clearly_usual(value: float, recent: Sequence[float], sigmas: float) -> bool:
    """Whether a value is so far below the limit that rounding cannot matter. Never true for one above it."""
    mean = math.fsum(recent) / len(recent)
    deviation = math.sqrt(math.fsum((other - mean) ** 2 for other in recent) / len(recent))
    return value < mean + sigmas * deviation * (1 - 1e-9) - abs(mean) * 1e-9


def record_outcome(state: TrainState, loss: float, grad_norm: float, skip_reason: str) -> None:
    """Count a skipped update, or add a good one to the recent values."""
    if skip_reason:
        state.skipped_in_a_row += 1
        return
    state.skipped_in_a_row = 0
    if math.isfinite(grad_norm):
        state.recent = [*state.recent[1 - WINDOW :], [loss, grad_norm]]
