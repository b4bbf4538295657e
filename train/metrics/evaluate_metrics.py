"""Metrics of predictions, as `evaluate.Metric` classes that need no network.

The fields have the names of Hugging Face's metrics, so `evaluate.combine` works: `predictions` (ids), `references`
(the correct ids; -100 is ignored) and `log_probs` (ln p of each correct id). Each may be a list, a list of rows, an
array or a tensor, on any device; shapes are flattened to tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from ..data.examples import IGNORE_INDEX
from .perplexity import bits_per_byte, perplexity

POSITIONS_AT_ONCE = 1024  # limits the float32 copy of the logits


class SummedMetric(evaluate.Metric):
    """A metric that keeps only a few sums per `add_batch`, so any number of tokens fits into memory.

    `evaluate` itself writes every token to an Arrow file: seconds and 16 MB per metric for a million tokens. Here the
    Arrow columns have the names of the fields, but contain the output of `_reduce`. Nothing is written to disk unless
    `cache_dir` or `num_process` is given.
    """

    summary: str
    value_types: dict[str, str]  # Arrow type of each column

    def __init__(self, **settings: Any) -> None:
        in_memory = settings.get("num_process", 1) == 1 and not settings.get("cache_dir")
        super().__init__(**{"keep_in_memory": in_memory} | settings)

    def add(self, *, prediction: Any = None, reference: Any = None, **further: Any) -> None:
        """Add one token, or one row of tokens."""
        self.add_batch(**{"predictions": prediction, "references": reference} | further)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **further: Any) -> None:
        """Add a batch.

        Raises:
            ValueError: a field is missing, unknown, or differs from `references` in its number of tokens.
        """
        given = {"predictions": predictions, "references": references} | further
        fields = {name: _flat(name, given.get(name)) for name in self._feature_names()}
        sizes = {name: len(tokens) for name, tokens in fields.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"{self.name} got {sizes}: each field needs one entry per token. The logits of a causal model at "
                "position i predict label i + 1: shift labels and logits against each other first."
            )
        counted = fields["references"] != IGNORE_INDEX
        super().add_batch(**given | self._reduce({name: tokens[counted] for name, tokens in fields.items()}))

    def compute(self, *, predictions: Any = None, references: Any = None, **further: Any) -> dict[str, Any] | None:
        """The metrics of everything added since the last call; None in all processes but the first.

        Raises:
            ValueError: nothing was added, or all references are -100.
        """
        if self.writer is None and references is None:
            raise ValueError(f"{self.name} has nothing to compute from: call add_batch first, or pass references.")
        metrics: dict[str, Any] | None = super().compute(predictions=predictions, references=references, **further)
        return metrics

    def _reduce(self, fields: dict[str, Tensor]) -> dict[str, list[float]]:
        """The values to keep of a batch, as lists of equal length; -100 is already removed, each field is (tokens,)."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value(kind) for name, kind in self.value_types.items()})
        return evaluate.MetricInfo(
            description=self.summary, citation="", inputs_description=__doc__ or "", features=features
        )

    def _build_data_dir(self) -> str:
        # evaluate creates a folder in the home folder even for metrics kept in memory
        return "" if self.keep_in_memory else super()._build_data_dir()


class Perplexity(SummedMetric):
    """`perplexity` = exp(`nats_per_token`), the mean over all targets and never a mean of batch means."""

    summary = "exp of the mean of -ln p over all target tokens"
    value_types = {"references": "int64", "log_probs": "float64"}  # number of targets, sum of ln p

    def _reduce(self, fields: dict[str, Tensor]) -> dict[str, list[float]]:
        return {"references": [fields["references"].numel()], "log_probs": [_sum_of_log_probs(fields)]}

    def _compute(self, references: Sequence[int], log_probs: Sequence[float]) -> dict[str, float]:
        loss = -math.fsum(log_probs) / _total(references)
        return {"perplexity": perplexity(loss), "nats_per_token": loss}


class BitsPerByte(SummedMetric):
    """`bits_per_byte` of the target text, which compares models with different tokenizers.

    Args:
        token_bytes: (vocab,), bytes of text per token id, from `perplexity.token_byte_lengths`.
        settings: passed to `evaluate.Metric`.
    """

    summary = "-log2 p of all target tokens, divided by their bytes of text"
    value_types = {"references": "int64", "log_probs": "float64"}  # number of bytes, sum of ln p

    def __init__(self, token_bytes: Tensor | Sequence[int], **settings: Any) -> None:
        self.token_bytes = torch.as_tensor(token_bytes).cpu()
        super().__init__(**settings)

    def _reduce(self, fields: dict[str, Tensor]) -> dict[str, list[float]]:
        ids = fields["references"]
        _check_range(ids, len(self.token_bytes), "token_bytes belongs to another tokenizer")
        return {"references": [int(self.token_bytes[ids].sum())], "log_probs": [_sum_of_log_probs(fields)]}

    def _compute(self, references: Sequence[int], log_probs: Sequence[float]) -> dict[str, float]:
        return {"bits_per_byte": bits_per_byte(-math.fsum(log_probs), sum(references))}


class TokenAccuracy(SummedMetric):
    """`token_accuracy`: the fraction of targets that were predicted."""

    summary = "fraction of target tokens that are the most probable token"
    value_types = {"references": "int64", "predictions": "int64"}  # number of targets, number of hits

    def _reduce(self, fields: dict[str, Tensor]) -> dict[str, list[float]]:
        hits = fields["predictions"] == fields["references"]
        return {"references": [hits.numel()], "predictions": [int(hits.sum())]}

    def _compute(
        self, references: Sequence[int], predictions: Sequence[int], log_probs: Any = None
    ) -> dict[str, float]:
        return {"token_accuracy": sum(predictions) / _total(references)}


class ClassificationMetrics(SummedMetric):
    """`accuracy`, macro-averaged `precision`, `recall` and `f1`, and the `confusion_matrix` (correct, predicted).

    Args:
        num_labels: size of the confusion matrix (default: up to the largest class that occurs).
        positive: class whose `positive_precision`, `positive_recall` and `positive_f1` are added.
        settings: passed to `evaluate.Metric`.
    """

    summary = "accuracy, macro precision, recall and F1, confusion matrix"
    value_types = {"references": "int64", "predictions": "int64"}  # all ids

    def __init__(self, num_labels: int | None = None, positive: int | None = None, **settings: Any) -> None:
        self.num_labels, self.positive = num_labels, positive
        super().__init__(**settings)

    def _reduce(self, fields: dict[str, Tensor]) -> dict[str, list[float]]:
        for ids in fields.values():
            _check_range(ids, self.num_labels or math.inf, "num_labels must be that of the model")
        return {name: ids.tolist() for name, ids in fields.items()}

    def _compute(self, references: list[int], predictions: list[int], log_probs: Any = None) -> dict[str, Any]:
        size = self.num_labels or 1 + max(*references, *predictions, self.positive or 0, 0)
        cells = torch.tensor(references, dtype=torch.long) * size + torch.tensor(predictions, dtype=torch.long)
        confusion = torch.bincount(cells, minlength=size * size).view(size, size).tolist()
        return {**classification_metrics(confusion, self.positive), "confusion_matrix": confusion}


def classification_metrics(
    confusion: Sequence[Sequence[float]] | Tensor, positive: int | None = None
) -> dict[str, Any]:
    """Accuracy, and precision, recall and F1 averaged over the classes, as scikit-learn's average="macro".

    A class that was never predicted has precision 0 (zero_division=0). A class that neither occurs nor was predicted
    is excluded from the averages.

    Args:
        confusion: (classes, classes), how often class i was predicted as class j.
        positive: class whose own metrics are added as `positive_precision`, `positive_recall`, `positive_f1`.

    Raises:
        ValueError: the matrix is not square or empty, or there is no class `positive`.
    """
    counts = torch.as_tensor(confusion, dtype=torch.float64, device="cpu")
    if counts.dim() != 2 or counts.shape[0] != counts.shape[1] or not counts.sum() > 0:
        raise ValueError(
            f"the confusion matrix has shape {tuple(counts.shape)} and sum {counts.sum()}: it must be square and not "
            "empty."
        )
    if positive is not None and not 0 <= positive < len(counts):
        raise ValueError(f"positive is {positive}, but the classes are 0 to {len(counts) - 1}.")
    hits, occurring, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    per_class = {
        "precision": hits / predicted.clamp(min=1e-300),
        "recall": hits / occurring.clamp(min=1e-300),
        "f1": 2 * hits / (occurring + predicted).clamp(min=1e-300),
    }
    seen = occurring + predicted > 0
    metrics = {"accuracy": float(hits.sum() / counts.sum())}
    metrics |= {name: float(values[seen].mean()) for name, values in per_class.items()}
    if positive is not None:
        metrics |= {f"positive_{name}": float(values[positive]) for name, values in per_class.items()}
    return metrics


def token_metrics(token_bytes: Tensor | Sequence[int]) -> evaluate.CombinedEvaluations:
    """Perplexity, bits per byte and token accuracy as one metric."""
    return evaluate.combine([Perplexity(), BitsPerByte(token_bytes), TokenAccuracy()])


@torch.no_grad()
def score_targets(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable id and the ln p of the target at each position, both shaped like `targets`.

    Args:
        logits: (..., vocab).
        targets: (...), the id that each position should predict; for -100, ln p is 0.
    """
    parts = zip(logits.flatten(0, -2).split(POSITIONS_AT_ONCE), targets.flatten().split(POSITIONS_AT_ONCE), strict=True)
    scored = [
        (
            part.argmax(dim=-1),
            -nn.functional.cross_entropy(part.float(), ids, ignore_index=IGNORE_INDEX, reduction="none"),
        )
        for part, ids in parts
    ]
    predictions, log_probs = (torch.cat(column).view(targets.shape) for column in zip(*scored, strict=True))
    return predictions, log_probs


def score_labels(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
    """`score_targets` of a causal model, (batch, seq - 1), for `Trainer(preprocess_logits_for_metrics=score_labels)`.

    The Trainer then keeps 12 bytes per token instead of all logits.
    """
    # some models return further outputs after the logits
    logits = logits[0] if isinstance(logits, tuple) else logits  # (batch, seq, vocab)
    return score_targets(logits[:, :-1], labels[:, 1:])


def compute_metrics_with(metrics: list[evaluate.Metric]) -> Callable[..., dict[str, Any]]:
    """A `compute_metrics` for a Trainer that uses `score_labels`, with or without `batch_eval_metrics`."""
    combined = evaluate.combine(metrics)

    def compute_metrics(evaluation: EvalPrediction, compute_result: bool = True) -> dict[str, Any]:
        predictions, log_probs = tuple(evaluation.predictions)
        labels: Any = evaluation.label_ids  # (examples, seq)
        combined.add_batch(predictions=predictions, references=labels[:, 1:], log_probs=log_probs)
        return combined.compute() if compute_result else {}

    return compute_metrics


def _flat(name: str, values: Any) -> Tensor:
    """All numbers row by row, (tokens,); rows of a list may differ in length."""
    if values is None:
        raise ValueError(f"{name} is missing.")
    if isinstance(values, list | tuple) and values and not isinstance(values[0], int | float | np.number):
        return torch.cat([_flat(name, row) for row in values])
    if not isinstance(values, Tensor):
        values = torch.tensor(np.asarray(values))
    if name != "log_probs" and values.is_floating_point() and values.numel():
        raise ValueError(f"{name} contains {values.flatten()[0]:g}, not ids: take the argmax of the logits first.")
    flat: Tensor = values.detach().cpu().flatten()
    return flat if name == "log_probs" else flat.long()


def _sum_of_log_probs(fields: dict[str, Tensor]) -> float:
    log_probs = fields["log_probs"].double()
    if (log_probs > 1e-4).any():  # 0 up to rounding
        raise ValueError(f"log_probs contains {log_probs.max():g}: the logarithm of a probability is at most 0.")
    return float(log_probs.sum())


def _total(counts: Sequence[int]) -> int:
    total = sum(counts)
    if not total:
        raise ValueError(f"no token to count: all references are {IGNORE_INDEX}.")
    return total


def _check_range(ids: Tensor, size: float, remedy: str) -> None:
    for limit in (ids.min(), ids.max()) if ids.numel() else ():
        if not 0 <= limit < size:
            raise ValueError(f"id {limit} is not between 0 and {size - 1}: {remedy}.")
