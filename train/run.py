"""The parts of a run, and what its processes agree on."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from .arguments import TrainArguments
from .parallel import Grid, is_split

# what a full disk, a missing right or a lost folder raise; safetensors and torch each have an error of their own
WRITE_ERRORS = (OSError, SafetensorError, CheckpointException)


class Examples(Protocol):
    """What a run learns from or is evaluated with, such as `train.data.TokenBlocks`."""

    def __len__(self) -> int: ...

    @property
    def mean_length(self) -> float:
        """Tokens that the model reads per example, on average."""

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of some examples; the first dimension of each is len(indices)."""


class Batches(Protocol):
    """The examples of every step, such as `train.order.StepSampler`."""

    @property
    def source(self) -> Examples:
        """From where they are drawn."""

    def micro_batches(self, step: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """This process's share of a step: (number of the micro-batch in the step, tensors)."""


class Objective(Protocol):
    """What is learned: the loss of a batch, and what an evaluation tells; such as `LanguageModelling`."""

    def sizes(self, batch: dict[str, Tensor]) -> tuple[float, int]:
        """By what the summed loss is divided (the number of targets, or their weight), and how many tokens count."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor], total: float) -> Tensor:
        """Sum of the losses of a micro-batch, divided by `total`, in nats."""

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> list[float]:
        """What is counted of a batch; summed over all batches and processes."""

    def figures(self, sums: Sequence[float]) -> dict[str, Any]:
        """The figures of an evaluation; `eval_loss`, nats per target, is among them."""

    def in_words(self, figures: dict[str, Any]) -> str:
        """The figures as a line for the screen."""

    def illustrate(self, figures: dict[str, Any], folder: Path, step: int) -> None:
        """Writes what a picture shows better, if anything."""

    def samples(self, model: Any) -> list[tuple[str, str]]:
        """(prompt, completion) pairs that show what the model does."""


@dataclass
class TrainState:
    """Progress, saved with each checkpoint: all that a run knows beside its tensors."""

    step: int = 0  # finished steps
    tokens_seen: int = 0  # over all processes
    eval_loss: float | None = None  # of the last evaluation, and the step after which it was made
    eval_step: int = 0
    skipped_in_a_row: int = 0  # the last steps whose update was left out
    skipped_steps: list[int] = field(default_factory=list)  # all of them
    recent: list[list[float]] = field(default_factory=list)  # [loss, gradient norm] of the last updates


@dataclass
class Run:
    """What a script has built; model and optimizers as `Accelerator.prepare` or `split_model` leave them.

    Args:
        grid: the place of this process among all.
        frozen: settings that must not change when the run continues, as JSON values.
        is_tuning: the model knew something before: it is evaluated before the first step.
        left_out: (first, last) steps that `train.rollback` has asked to leave out.
    """

    arguments: TrainArguments
    accelerator: Accelerator
    model: nn.Module
    optimizers: list[Optimizer]
    batches: Batches
    validation: Examples
    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    grid: Grid = field(default_factory=Grid)
    frozen: dict[str, Any] = field(default_factory=dict)
    is_tuning: bool = False
    left_out: list[tuple[int, int]] = field(default_factory=list)
    peak_tokens_per_second: float = math.inf  # if all devices did nothing but the model's matrix products
    saving: Any = None  # the checkpoint that is being written in the background

    @property
    def folder(self) -> Path:
        """Where everything that belongs to the run lies."""
        return Path(self.arguments.output_dir)

    @property
    def bare_model(self) -> Any:
        """The model without the wrapper that synchronises processes."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def bare_optimizers(self) -> list[Optimizer]:
        """The optimizers without Accelerate's wrapper."""
        return [getattr(optimizer, "optimizer", optimizer) for optimizer in self.optimizers]

    @property
    def is_split(self) -> bool:
        """Whether each process holds only a part of the model, so that all of them must take part in every use."""
        return is_split(self.model)

    def sum_over_processes(self, values: Sequence[float]) -> list[float]:
        """Adds up what each share of the examples has contributed."""
        if self.accelerator.num_processes == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        total = self.accelerator.reduce(total, reduction="sum")
        return (total / self.grid.tensor_size).tolist()  # a tensor-parallel group has contributed the same twice


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # its own text is all tracebacks of all processes
        return ", ".join(f"process {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items()))
    return str(error)


def nothing() -> None:
    """What the other processes do while one acts."""


def together(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Runs `action` in every process and waits for all; an error in one of them is an error in each.

    Raises:
        OSError: what could not be written, here or elsewhere.
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
        raise OSError("another process could not write its part; its message says why")
