"""TODO."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .rows import Row


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


def texts_in_both(train: Sequence[Row], others: Mapping[str, Sequence[Row]], column: str) -> Counter[str]:
    """How many rows of each other part have a text that is also trained on."""
    seen = {row.cells[column] for row in train}
    return +Counter({part: sum(row.cells[column] in seen for row in rows) for part, rows in others.items()})
