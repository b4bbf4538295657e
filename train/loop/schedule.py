"""Learning rate and cadences as pure functions of the step."""

import math


def learning_rate_at(
    step: int,
    *,
    max_steps: int,
    warmup_steps: int = 0,
    schedule: str = "cosine",
    decay_fraction: float = 0.2,
    final_ratio: float = 0.0,
) -> float:
    """The learning rate at `step`, counted from 0 to max_steps - 1, as a fraction of its peak.

    It rises linearly over the first `warmup_steps` steps and would reach `final_ratio` in the step after the last one.
    In between, "cosine" (https://huggingface.co/papers/1608.03983) decays all the way; "wsd" stays at 1 and decays
    linearly over the last `decay_fraction` of all steps (https://huggingface.co/papers/2404.06395).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    decay_steps = max_steps - warmup_steps
    if schedule == "wsd":
        decay_steps = min(decay_steps, round(decay_fraction * max_steps))
    progress = max(0.0, 1 - (max_steps - step) / max(1, decay_steps))  # 0 to 1 within the decay
    remaining = 1 - progress if schedule == "wsd" else (1 + math.cos(math.pi * progress)) / 2
    return final_ratio + (1 - final_ratio) * remaining


def is_due(every: int, step: int, last: int) -> bool:
    """Whether something that happens once in `every` steps is due after `step` steps.

    It is always due after the last step; `every` = 0 means only then.
    """
    return step == last or (every > 0 and step > 0 and step % every == 0)
