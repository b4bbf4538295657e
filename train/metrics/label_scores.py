"""Scores of a classifier per label, from its confusion matrix."""

from collections.abc import Sequence

from .evaluate_metrics import classification_metrics
from .plots import printable

HEADER = ["label", "precision", "recall", "F1", "examples"]
NAME_WIDTH = 36  # of the table in the terminal, which fits into 80 columns


def label_rows(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> list[list[str]]:
    """A header, and precision, recall, F1 and number of examples of each label."""
    rows = [HEADER]
    for number, label in enumerate(labels):
        metrics = classification_metrics(confusion, positive=number)
        values = (f"{metrics[f'positive_{name}']:.4f}" for name in ("precision", "recall", "f1"))
        rows.append([label, *values, f"{sum(confusion[number]):,}"])
    return rows


def label_table(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """`label_rows` for the terminal."""
    rows = [[shortened(label, NAME_WIDTH), *values] for label, *values in label_rows(confusion, labels)]
    width = max(len(label) for label, *_ in rows)
    return "\n".join(f"{label:<{width}}" + "".join(f"{value:>11}" for value in values) for label, *values in rows)


def majority_rate(confusion: Sequence[Sequence[int]]) -> tuple[float, int]:
    """The accuracy of always answering the most frequent label, and the number of that label."""
    counts = [sum(row) for row in confusion]
    return max(counts) / sum(counts), counts.index(max(counts))


def shortened(text: str, length: int) -> str:
    """A text as one printable line of at most `length` characters."""
    return printable(" ".join(text.split()), length)
