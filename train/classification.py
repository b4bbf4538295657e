"""Telling which of several labels a text has: its rows, its objective, its picture."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .rows import Row
from .scores import classification_figures

PICTURES_FOLDER = "confusion_matrices"
INK = "#33373d"


def label_names(rows: Sequence[Row], column: str) -> list[str]:
    """The labels of the training rows, in the order of their ids: numbers by size, text by alphabet.

    Raises:
        ValueError: a cell that is no label, or fewer than two different ones.
    """
    values = {_label(row, column) for row in rows}
    if len(values) < 2:
        raise ValueError(
            f"column {column!r} of the {len(rows)} training rows holds only the label {min(values)!r}: "
            "a classifier needs at least two."
        )
    return sorted(values, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name))


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _label(row: Row, column: str) -> str:
    value = row.cells[column]
    if isinstance(value, float) and value.is_integer():  # what a table makes of whole numbers with gaps
        value = int(value)
    if value is None or value == "" or not isinstance(value, str | int):
        raise ValueError(f"{row.place}: column {column!r} holds {value!r}: a label is text or a whole number.")
    return str(value)


@dataclass(frozen=True)
class LabelledTexts:
    """Tokenized texts and the number of each one's label."""

    ids: list[list[int]]
    labels: np.ndarray  # (texts,)
    pad_id: int
    padding_side: str
    num_truncated: int = 0
    num_versions: int = 1  # of each text

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def mean_length(self) -> float:
        """Tokens per text."""
        return sum(map(len, self.ids)) / len(self.ids)

    @property
    def sha256(self) -> str:
        """Identity of all texts and labels."""
        return hashlib.sha256(json.dumps([self.ids, self.labels.tolist()]).encode()).hexdigest()

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (texts, longest), and `labels`, (texts,)."""
        chosen = [self.ids[i] for i in indices]
        longest = max(map(len, chosen))
        ids = torch.full((len(chosen), longest), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(chosen):
            start = longest - len(tokens) if self.padding_side == "left" else 0
            ids[row, start : start + len(tokens)] = torch.tensor(tokens)
            mask[row, start : start + len(tokens)] = 1
        labels = torch.from_numpy(self.labels[np.asarray(indices)])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def tokenize(
    rows: Sequence[Row],
    columns: tuple[str, str],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> LabelledTexts:
    """The rows as the tokenizer of a pipeline would read them; longer texts lose their end.

    Args:
        columns: of text and label.
        names: the labels that the training rows have.

    Raises:
        ValueError: a text that is empty or no text, or a label that no training row has.
    """
    text_column, label_column = columns
    numbers = {name: number for number, name in enumerate(names)}
    texts, labels = [], []
    for row in rows:
        text, label = row.cells[text_column], _label(row, label_column)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{row.place}: column {text_column!r} holds {text!r:.40}: an empty text has no label.")
        if label not in numbers:
            raise ValueError(
                f"{row.place}: the label {label!r} occurs in no training row; those have {', '.join(names)}. "
                "Remove the row, or train on rows with this label."
            )
        texts.append(text)
        labels.append(numbers[label])
    ids = encode(tokenizer, texts)
    num_truncated = sum(len(tokens) > max_length for tokens in ids)
    pad_id: Any = tokenizer.pad_token_id
    return LabelledTexts(
        [tokens[:max_length] for tokens in ids], np.array(labels), pad_id, tokenizer.padding_side, num_truncated
    )


def in_versions(
    texts: LabelledTexts, originals: Sequence[str], tokenizer: Any, dropout: float, num_versions: int, max_length: int
) -> LabelledTexts:
    """Each text in several versions, which BPE-dropout cuts into different tokens; one pass then reads them all.

    Raises:
        ValueError: the tokenizer cannot do that.
    """
    if not hasattr(tokenizer, "encode_with_dropout"):
        raise ValueError(f"--bpe_dropout needs a ScratchGPTTokenizer, not {type(tokenizer).__name__}: leave it out.")
    ids = [
        tokenizer.encode_with_dropout(text, dropout, seed=version * len(originals) + number)[:max_length]
        for version in range(num_versions)
        for number, text in enumerate(originals)
    ]
    labels = np.tile(texts.labels, num_versions)
    return replace(texts, ids=ids, labels=labels, num_versions=num_versions)


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, of any length.

    Raises:
        ValueError: the vocabulary has no token for a part of a text.
    """
    try:
        return tokenizer(texts, verbose=False)["input_ids"]
    except ValueError:
        raise
    except Exception as error:  # tokenizers has no class of its own for a character that a vocabulary lacks
        raise ValueError(f"the tokenizer has no token for a part of the text ({error}): use another one.") from None


def balanced_weights(labels: np.ndarray, num_labels: int) -> Tensor:
    """A weight per label, (num_labels,), so that all labels together weigh the same: texts / (labels x its texts)."""
    counts = np.bincount(labels, minlength=num_labels)
    return torch.tensor(len(labels) / (num_labels * counts), dtype=torch.float32)


@dataclass
class Classification:
    """Cross-entropy of the right label; a batch holds `input_ids`, `attention_mask` and `labels`.

    Args:
        names: the labels, in the order of their ids.
        weights: (labels,), how much an example of each counts in the loss.
    """

    names: Sequence[str]
    weights: Tensor

    def sizes(self, batch: dict[str, Tensor]) -> tuple[float, int]:
        """The weight of the examples, and the tokens that are no padding."""
        return float(self.weights[batch["labels"].cpu()].sum()), int(batch["attention_mask"].sum())

    def loss(self, model: nn.Module, batch: dict[str, Tensor], total: float) -> Tensor:
        """Weighted sum of the losses of a micro-batch divided by `total`."""
        return self._loss(self._logits(model, batch), batch["labels"], total)

    def _logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return model(**inputs, use_cache=False).logits.float()  # (texts, labels)

    def _loss(self, logits: Tensor, labels: Tensor, total: float) -> Tensor:
        weights = self.weights.to(logits.device)
        return nn.functional.cross_entropy(logits, labels, weight=weights, reduction="sum") / total

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> list[float]:
        """Weighted loss, weight, and the confusion matrix row by row."""
        logits, labels = self._logits(model, batch), batch["labels"]
        cells = labels * len(self.names) + logits.argmax(dim=-1)
        confusion = torch.bincount(cells, minlength=len(self.names) ** 2)
        return [float(self._loss(logits, labels, 1)), self.sizes(batch)[0], *confusion.tolist()]

    def figures(self, sums: Sequence[float]) -> dict[str, Any]:
        """Loss, accuracy, the means of precision, recall and F1 over the labels, and the confusion matrix."""
        loss, weight, *cells = sums
        size = len(self.names)
        confusion = [[round(count) for count in cells[i * size : (i + 1) * size]] for i in range(size)]
        scores = classification_figures(confusion)
        named = {f"eval_{name}": value for name, value in scores.items()}
        return {"eval_loss": loss / weight, **named, "eval_confusion_matrix": confusion}

    def in_words(self, figures: dict[str, Any]) -> str:
        """The figures as a line."""
        return (
            f"validation loss {figures['eval_loss']:.4f} | accuracy {figures['eval_accuracy']:.2%} | "
            f"precision {figures['eval_precision']:.4f} | recall {figures['eval_recall']:.4f} | "
            f"F1 {figures['eval_f1']:.4f}"
        )

    def illustrate(self, figures: dict[str, Any], folder: Path, step: int) -> None:
        """Draws the confusion matrix of the evaluation after `step`."""
        (folder / PICTURES_FOLDER).mkdir(exist_ok=True)
        path = folder / PICTURES_FOLDER / f"step-{step:08d}.png"
        title = f"Validation after step {step}: accuracy {figures['eval_accuracy']:.2%}"
        draw_confusion_matrix(figures["eval_confusion_matrix"], self.names, path, title)

    def samples(self, model: Any) -> list[tuple[str, str]]:
        """A classifier writes nothing."""
        return []


def table_of_labels(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Precision, recall, F1 and number of examples of each label, as a Markdown table."""
    lines = ["| label | precision | recall | F1 | examples |", "|---|---|---|---|---|"]
    for number, name in enumerate(names):
        row = classification_figures(confusion, positive=number)
        figures = " | ".join(f"{row[f'positive_{figure}']:.4f}" for figure in ("precision", "recall", "f1"))
        lines.append(f"| {name} | {figures} | {sum(confusion[number])} |")
    return "\n".join(lines)


def draw_confusion_matrix(confusion: Sequence[Sequence[int]], names: Sequence[str], path: Path, title: str) -> None:
    """A cell's colour is its share of the row, so that rare labels show their mistakes as clearly as frequent ones."""
    from matplotlib.figure import Figure  # no pyplot: it would pick a window system

    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.6, 0.5 * len(names) + 2)
    figure = Figure(figsize=(side + 0.8, side), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(
        range(len(names)), names, rotation=45 if len(names) > 3 else 0, ha="right" if len(names) > 3 else "center"
    )
    axes.set_yticks(range(len(names)), names)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.6 else INK if count else "#b8bcc2"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("right label")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(path)


def texts_in_both(train: Sequence[Row], others: Mapping[str, Sequence[Row]], column: str) -> Counter[str]:
    """How many rows of each other part have a text that is also trained on."""
    seen = {row.cells[column] for row in train}
    return +Counter({part: sum(row.cells[column] in seen for row in rows) for part, rows in others.items()})
