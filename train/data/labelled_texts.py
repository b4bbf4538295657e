"""Labelled texts for classification: rows to labels and tokens, tokens to padded batches."""

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

from ..settings.words import shown_names
from .plain_text import encode_texts
from .rows import Row

ENCODE_BATCH = 1000  # texts tokenized at once: what the tokenizer returns is much larger than the ids
MANY_LABELS = 100  # a column with more of them, most on a single row, is text or a number rather than a label


def label_names(rows: Sequence[Row], column: str) -> list[str]:
    """The labels of the training rows in the order of their ids: numbers by value, then text alphabetically.

    Raises:
        ValueError: a cell is not a label, or there are fewer than two labels, or about as many as rows.
    """
    counts = Counter(label_of(row, column) for row in rows)
    values = counts.keys()
    if len(values) > MANY_LABELS and len(rows) < 2 * len(values):
        raise ValueError(
            f"column {column!r} has {len(values):,} different values in {len(rows):,} training rows ("
            f"{shown_names(list(counts))}), so it does not seem to contain labels: name the right one with "
            "--label_column."
        )
    if len(values) < 2:
        raise ValueError(
            f"column {column!r} of the {len(rows)} training rows has only the label {min(values)!r}: "
            "a classifier needs at least two."
        )
    return sorted(values, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name))


def text_of(row: Row, column: str) -> str:
    """The text of a row.

    Raises:
        ValueError: it is empty or not text.
    """
    text = row.cells[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{row.place}: column {column!r} must be non-empty text, not {text!r:.40}. Remove the row.")
    return text


def label_of(row: Row, column: str) -> str:
    """The label of a row, as text.

    Raises:
        ValueError: the cell is not a label.
    """
    value = row.cells[column]
    if isinstance(value, float) and value.is_integer():  # a table stores whole numbers with gaps as floats
        value = int(value)
    if value is None or value == "" or not isinstance(value, str | int):
        raise ValueError(
            f"{row.place}: column {column!r} has the value {value!r:.60}: a label is text or a whole number."
        )
    return str(value)


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


@dataclass(frozen=True)
class LabelledTexts:
    """Tokenized texts with their labels."""

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
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.ids))

    @property
    def sha256(self) -> str:
        """Hash of all tokens and labels."""
        digest = hashlib.sha256(b"[")  # of json.dumps([ids, labels]), without its text in memory
        for number, tokens in enumerate(self.ids):
            digest.update(f"{', ' if number else '['}{json.dumps(tokens)}".encode())
        digest.update(f"{'' if self.ids else '['}], {json.dumps(self.labels.tolist())}]".encode())
        return digest.hexdigest()

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
    """Encode the rows as a text-classification pipeline does; longer texts are truncated at the end.

    Args:
        columns: those of the text and of the label.
        names: the labels of the training rows.

    Raises:
        ValueError: a text is empty or not text, has a part that the vocabulary lacks, or has a label that is not in
            `names`.
    """
    text_column, label_column = columns
    numbers = {name: number for number, name in enumerate(names)}
    texts, labels = [], []
    for row in rows:
        text, label = text_of(row, text_column), label_of(row, label_column)
        if label not in numbers:
            raise ValueError(
                f"{row.place}: the label {label!r:.60} is not in the training rows, which have {shown_names(names)}. "
                "Remove the row, or train on rows with this label."
            )
        texts.append(text)
        labels.append(numbers[label])
    pad_id: Any = tokenizer.pad_token_id
    ids: list[list[int]] = []
    num_truncated = 0
    for start in range(0, len(texts), ENCODE_BATCH):
        batch = _encode(texts[start : start + ENCODE_BATCH], rows[start : start + ENCODE_BATCH], tokenizer)
        num_truncated += sum(len(tokens) > max_length for tokens in batch)
        ids += [tokens[:max_length] for tokens in batch]
    return LabelledTexts(ids, np.array(labels), pad_id, tokenizer.padding_side, num_truncated)


def _encode(texts: Sequence[str], rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    try:
        return encode_texts(tokenizer, texts)
    except ValueError as error:
        if len(texts) > 1:  # find the text
            pairs = zip(texts, rows, strict=True)
            return [ids for text, row in pairs for ids in _encode([text], [row], tokenizer)]
        raise ValueError(f"{rows[0].place}: {error} Use another tokenizer, or remove the row.") from None


def with_bpe_dropout(
    texts: LabelledTexts, originals: Sequence[str], tokenizer: Any, dropout: float, num_versions: int, max_length: int
) -> LabelledTexts:
    """`num_versions` of each text, each split into different tokens by BPE-dropout; one epoch reads all of them.

    Raises:
        ValueError: the tokenizer does not support BPE-dropout.
    """
    if not hasattr(tokenizer, "encode_with_dropout"):
        raise ValueError(f"--bpe_dropout ({dropout}) requires a ScratchGPTTokenizer, not {type(tokenizer).__name__}.")
    ids = [
        tokenizer.encode_with_dropout(text, dropout, seed=version * len(originals) + number)[:max_length]
        for version in range(num_versions)
        for number, text in enumerate(originals)
    ]
    labels = np.tile(texts.labels, num_versions)
    return replace(texts, ids=ids, labels=labels, num_versions=num_versions)


def balanced_weights(labels: np.ndarray, num_labels: int) -> Tensor:
    """A weight for each label, (num_labels,), so that every label has the same total: texts / (labels x its texts)."""
    counts = np.bincount(labels, minlength=num_labels)
    return torch.tensor(len(labels) / (num_labels * counts), dtype=torch.float32)


def count_training_texts(train: Sequence[Row], others: Mapping[str, Sequence[Row]], column: str) -> Counter[str]:
    """The number of rows of each other part whose text is also in the training rows."""
    seen = {row.cells[column] for row in train}
    return +Counter({part: sum(row.cells[column] in seen for row in rows) for part, rows in others.items()})
