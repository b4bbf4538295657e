"""Whether a run compiles its model with torch.compile, and where compiled code is kept."""

import torch

# Compiling the model of 124M cold takes up to 78 seconds on an H200, and an eager step takes 2.3 times as long as a
# compiled one there, so it pays in a run of more than 78 / (1 - 1 / 2.3) = 138 seconds.
PAYS_FROM = 150.0  # seconds of an eager run
EAGER_UTILIZATION = 0.18  # of the device's matrix products, measured there


def compiles(asked: str, device: torch.device, planned_seconds: float, *, is_split: bool = False) -> bool:
    """Whether to compile: as asked, and with "auto" where it makes the whole run shorter.

    On a CPU, "auto" does not compile: two cores compile for minutes.

    Args:
        asked: auto, true or false.
        planned_seconds: of the whole run without compilation; 0 if unknown.
        is_split: whether each process has a part of the model: torch.compile is not supported then.
    """
    if asked != "auto":
        return asked == "true"
    return device.type == "cuda" and not is_split and planned_seconds >= PAYS_FROM


def planned_seconds(num_tokens: float, peak_tokens_per_second: float) -> float:
    """Seconds of an eager run; 0 if the peak is infinite, which means unknown."""
    return num_tokens / (EAGER_UTILIZATION * peak_tokens_per_second)


def cache_folder() -> str:
    """Where compiled code is kept for the next run; TORCHINDUCTOR_CACHE_DIR changes it."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # takes seconds to import

    return str(cache_dir())
