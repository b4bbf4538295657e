"""Which updates to skip: those with a non-finite or spiking loss or gradient.

The decision uses values summed over all processes, so all processes agree. Recent values are saved with each
checkpoint, so a continued run decides like an uninterrupted one.
"""

import math
import statistics

from ..checkpoint.state import TrainState

WINDOW = 128  # recent updates that a new one is compared with
MIN_UPDATES = 64  # no spike is detected before


def reason_to_skip(state: TrainState, loss: float, grad_norm: float, sigmas: float, is_scaled: bool = False) -> str:
    """Why the update must be skipped; empty if it is good.

    A spike is more than `sigmas` standard deviations above the mean of recent updates, the rule of
    https://github.com/allenai/OLMo-core. PaLM skipped such data by hand (https://huggingface.co/papers/2204.02311).

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
    for name, value, recent in (
        ("loss", loss, [pair[0] for pair in state.recent]),
        ("gradient norm", grad_norm, [pair[1] for pair in state.recent]),
    ):
        limit = statistics.fmean(recent) + sigmas * statistics.pstdev(recent)
        if value > limit:
            return f"{name} {value:.4g} is above {limit:.4g}, {sigmas:g} standard deviations above the recent mean"
    return ""


def record_outcome(state: TrainState, loss: float, grad_norm: float, skip_reason: str) -> None:
    """Count a skipped update, or add a good one to the recent values."""
    if skip_reason:
        state.skipped_in_a_row += 1
        return
    state.skipped_in_a_row = 0
    if math.isfinite(grad_norm):
        state.recent = [*state.recent[1 - WINDOW :], [loss, grad_norm]]
