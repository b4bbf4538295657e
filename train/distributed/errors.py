"""Errors on all processes: one that fails makes every other fail too, instead of leaving them waiting."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

# raised by a full disk, a missing permission or a lost folder; safetensors and torch each have their own error
WRITE_ERRORS = (OSError, SafetensorError, CheckpointException)


def run_on_all(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Call `action` in every process and wait for all of them; an error in one is raised in each.

    Raises:
        OSError: this or another process could not write.
    """
    error: BaseException | None = None
    try:
        action()
    except WRITE_ERRORS as caught:
        error = caught
    failures = torch.tensor(float(error is not None), device=accelerator.device)
    failures = accelerator.reduce(failures, reduction="sum")  # also the barrier
    if error is not None:
        raise OSError(_reason(error)) from error
    if failures:
        raise OSError("another process could not write its part; see its message for the reason")


def run_on_main(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Call `action` in the main process while the others wait; its error is raised in each.

    Raises:
        OSError: the main process could not write.
    """
    run_on_all(accelerator, action if accelerator.is_main_process else lambda: None)


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # its own text is the tracebacks of all processes
        return ", ".join(f"process {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items()))
    return str(error)
