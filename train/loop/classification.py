"""Text classification: the objective of fine-tuning a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed.device import wide_dtype
from ..metrics.evaluate_metrics import classification_metrics
from ..metrics.plots import draw_confusion_matrix
from ..settings.run_folder import CONFUSION_MATRICES_FOLDER


@dataclass
class TextClassification:
    """Cross-entropy of the correct label; a batch has `input_ids`, `attention_mask` and `labels`.

    Args:
        names: the labels, in the order of their ids.
        weights: (labels,), how much an example of each counts in the loss.
    """

    names: Sequence[str]
    weights: Tensor
    _moved: Tensor | None = field(default=None, init=False)  # the weights on the device

    def count_targets(self, batch: dict[str, Tensor]) -> tuple[float, int]:
        """The total weight of the examples, and the tokens that are not padding."""
        return float(self.weights[batch["labels"].cpu()].sum()), int(batch["attention_mask"].sum())

    def loss(self, model: nn.Module, batch: dict[str, Tensor], denominator: Tensor) -> Tensor:
        """Weighted sum of the losses of a micro-batch, divided by `denominator`."""
        return self._loss(self._logits(model, batch), batch["labels"]) / denominator

    def _logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits: Tensor = model(**inputs, use_cache=False).logits.float()  # (texts, labels)
        return logits

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, weight=self._weights_on(labels.device), reduction="sum")

    def _weights_on(self, device: torch.device) -> Tensor:
        if self._moved is None or self._moved.device != device:
            self._moved = self.weights.to(device)
        return self._moved

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Weighted loss, total weight, and the confusion matrix row by row."""
        logits, labels = self._logits(model, batch), batch["labels"]
        cells = labels * len(self.names) + logits.argmax(dim=-1)
        wide = wide_dtype(labels.device)
        confusion = torch.zeros(len(self.names) ** 2, dtype=wide, device=labels.device)
        confusion.index_add_(0, cells, torch.ones_like(cells, dtype=wide))  # bincount would wait for the device
        sums = torch.stack([self._loss(logits, labels), self._weights_on(labels.device)[labels].sum()])
        return torch.cat([sums.to(wide), confusion])

    def compute_metrics(self, sums: Sequence[float]) -> dict[str, Any]:
        """Loss, accuracy, the means of precision, recall and F1 over the labels, and the confusion matrix."""
        loss, weight, *cells = sums
        size = len(self.names)
        confusion = [[round(count) for count in cells[i * size : (i + 1) * size]] for i in range(size)]
        scores = classification_metrics(confusion)
        named = {f"eval_{name}": value for name, value in scores.items()}
        return {"eval_loss": loss / weight, **named, "eval_confusion_matrix": confusion}

    def format_metrics(self, metrics: dict[str, Any]) -> str:
        """The metrics as one line."""
        return (
            f"validation loss {metrics['eval_loss']:.4f} | accuracy {metrics['eval_accuracy']:.2%} | "
            f"precision {metrics['eval_precision']:.4f} | recall {metrics['eval_recall']:.4f} | "
            f"F1 {metrics['eval_f1']:.4f}"
        )

    def plot(self, metrics: dict[str, Any], folder: Path, step: int) -> None:
        """Save a picture of the confusion matrix."""
        (folder / CONFUSION_MATRICES_FOLDER).mkdir(exist_ok=True)
        path = folder / CONFUSION_MATRICES_FOLDER / f"step-{step:08d}.png"
        title = f"Validation after step {step}: accuracy {metrics['eval_accuracy']:.2%}"
        draw_confusion_matrix(metrics["eval_confusion_matrix"], self.names, path, title)

    def generate_samples(self, model: Any) -> list[tuple[str, str]]:
        """None: a classifier generates no text."""
        return []
