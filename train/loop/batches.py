"""The batch of a step on the device. With a GPU, that of the next step is read and copied while it computes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True)
class Batches:
    """The micro-batches of this process in one step, on the device, and what they amount to.

    Args:
        step: counted from 0.
        micro_batches: (number, tensors); see `StepSampler.micro_batches`.
        denominator: of the loss: the number of targets, or their total weight.
        num_tokens: to log.
    """

    step: int
    micro_batches: list[tuple[int, dict[str, Tensor]]]
    denominator: float
    num_tokens: float


def take_batches(run: "Run", step: int) -> Batches:
    """The batches of a step, counted from 0; read now unless `read_ahead` has."""
    ahead, run.batches_ahead = run.batches_ahead, None
    return ahead if ahead is not None and ahead.step == step else read_batches(run, step)


def read_ahead(run: "Run", step: int) -> None:
    """Read the batches of a step that follows, if the device computes on its own meanwhile."""
    if run.reads_late and step < run.arguments.max_steps:
        run.batches_ahead = read_batches(run, step)


def read_batches(run: "Run", step: int) -> Batches:
    """Read the batches of a step, count their targets where they are read, and queue their copy to the device."""
    denominator = num_tokens = 0.0
    micro_batches = []
    for number, batch in run.sampler.micro_batches(step):
        targets, tokens = run.objective.count_targets(batch)
        denominator, num_tokens = denominator + targets, num_tokens + tokens
        micro_batches.append((number, to_device(batch, run.accelerator.device)))
    return Batches(step, micro_batches, denominator, num_tokens)


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Queue the copy of a batch; from pinned memory, so that the host need not wait for it."""
    if device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
