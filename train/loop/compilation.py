"""Whether a run compiles its model with torch.compile, and where compiled code is kept."""

import math

import torch
from torch import Tensor

# Seconds of an eager run from which compiling makes the whole run shorter. Compiling the model of 124M cold takes up to
# 78 seconds on an H200, and an eager step takes 2.3 times as long as a compiled one there: 78 / (1 - 1 / 2.3) = 138. On
# two CPU cores, compiling takes 18 to 32 seconds and a step becomes 3 to 19 % shorter: 32 / 0.03 = 1,067, rounded up.
PAYS_FROM = {"cuda": 150.0, "cpu": 1_200.0}
UTILIZATION = {"cuda": 0.18, "cpu": 0.4}  # of the device's matrix products by eager training, measured there


def compiles(
    asked: str, device: torch.device, planned_seconds: float, *, is_split: bool = False, num_processes: int = 1
) -> bool:
    """Whether to compile: as asked, and with "auto" where it makes the whole run shorter.

    "auto" does not compile on CPUs that several processes share, nor where torch finds no compiler.

    Args:
        asked: auto, true or false.
        planned_seconds: of the whole run without compilation; 0 if unknown.
        is_split: whether each process has a part of the model: torch.compile is not supported then.
        num_processes: that train the model.
    """
    if asked != "auto":
        return asked == "true"
    pays = planned_seconds >= PAYS_FROM.get(device.type, math.inf)
    is_shared = device.type == "cpu" and num_processes > 1
    return pays and not is_split and not is_shared and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works on this machine: it needs a C++ compiler, and on a GPU also Triton."""

    def double(values: Tensor) -> Tensor:
        return values + values

    try:
        torch.compile(double)(torch.ones(16, device=device))
    except Exception:  # of the compiler, of Triton or of the loader: any of them means no
        return False
    return True


def check_compiler(device: torch.device, *, is_again: bool) -> None:
    """Refuse to compile where torch.compile does not work.

    Args:
        is_again: whether the run was compiled until now, and is to be continued.

    Raises:
        ValueError: what is missing, and what to do.
    """
    if not can_compile(device):
        otherwise = "add --torch_compile false" + " --allow_change torch_compile" * is_again
        raise ValueError(
            f"--torch_compile true: torch.compile does not work on this machine ({device}). Install a C++ compiler "
            f"such as g++{', and Triton' if device.type == 'cuda' else ''}, or {otherwise}."
        )


def planned_seconds(num_tokens: float, peak_tokens_per_second: float, device: torch.device) -> float:
    """Seconds of an eager run; 0 if the peak is infinite, which means unknown."""
    return num_tokens / (UTILIZATION.get(device.type, 1.0) * peak_tokens_per_second)


def cache_folder() -> str:
    """Where compiled code is kept for the next run; TORCHINDUCTOR_CACHE_DIR changes it."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # takes seconds to import

    return str(cache_dir())
