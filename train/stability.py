"""Which updates to leave out: those whose loss or gradient is not finite, or far outside of what was usual.

Decided from values that are summed over all processes, so that all of them decide alike. What is
usual is saved with each checkpoint, so that a continued run decides as an uninterrupted one.
"""

import math
import statistics

from .run import TrainState

WINDOW = 128  # updates that say what is usual ...
ENOUGH = 64  # ... as soon as there are so many


def reason_to_skip(state: TrainState, loss: float, grad_norm: float, sigmas: float, is_scaled: bool = False) -> str:
    """Why the update must be left out; empty when it is good.

    A spike lies more than `sigmas` standard deviations above the mean of the last updates (the rule
    of https://github.com/allenai/OLMo-core; PaLM skipped such data by hand, https://huggingface.co/papers/2204.02311).

    Args:
        sigmas: 0 looks for no spikes.
        is_scaled: fp16 gradients overflow now and then, and the scaler skips those updates by itself.
    """
    if not math.isfinite(loss):
        return f"loss is {loss}"
    if not math.isfinite(grad_norm):
        return "" if is_scaled else f"gradient norm is {grad_norm}"
    if not sigmas or len(state.recent) < ENOUGH:
        return ""
    for name, value, usual in (
        ("loss", loss, [pair[0] for pair in state.recent]),
        ("gradient norm", grad_norm, [pair[1] for pair in state.recent]),
    ):
        limit = statistics.fmean(usual) + sigmas * statistics.pstdev(usual)
        if value > limit:
            return f"{name} {value:.4g} is above {limit:.4g}, {sigmas:g} standard deviations over the usual"
    return ""


def remember(state: TrainState, loss: float, grad_norm: float) -> None:
    """Takes a good update into what is usual."""
    state.skipped_in_a_row = 0
    if math.isfinite(grad_norm):
        state.recent = [*state.recent[1 - WINDOW :], [loss, grad_norm]]
