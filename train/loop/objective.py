"""The interface between the loop and what is learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class Objective(Protocol):
    """The loss of a batch and the metrics of an evaluation, such as `LanguageModeling`."""

    def count_targets(self, batch: dict[str, Tensor]) -> tuple[float, int]:
        """The denominator of the loss (number of targets, or their total weight), and the number of tokens.

        The batch is still on the host.
        """

    def loss(self, model: nn.Module, batch: dict[str, Tensor], denominator: Tensor) -> Tensor:
        """Sum of the losses of a micro-batch in nats, divided by `denominator`, ()."""

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Sums over a batch, (sums,), from which `compute_metrics` makes metrics after adding up batches and processes.

        They stay on the device.
        """

    def compute_metrics(self, sums: Sequence[float]) -> dict[str, Any]:
        """The metrics of an evaluation, `eval_loss` (nats per target) among them."""

    def format_metrics(self, metrics: dict[str, Any]) -> str:
        """The metrics as one line for the terminal."""

    def plot(self, metrics: dict[str, Any], folder: Path, step: int) -> None:
        """Save a picture of the metrics to the run folder, if one helps."""

    def generate_samples(self, model: Any) -> list[tuple[str, str]]:
        """(prompt, completion) pairs that show what the model does."""
