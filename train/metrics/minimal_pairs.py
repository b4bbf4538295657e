"""Which of two sentences that hardly differ does a model find more probable, the good one or the bad one?

The files are those of BLiMP (https://huggingface.co/papers/1912.00582): one JSON object per line, with `sentence_good`
and `sentence_bad`. A sentence's probability is that of all its tokens after the token that begins a text. (EleutherAI's
harness puts a space in front of it, `target_delimiter`; with that set to "" its figures are these.)
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tables import read_rows
from .evaluate_metrics import IGNORE_INDEX, score_targets

FIELDS = ("sentence_good", "sentence_bad")


@dataclass(frozen=True)
class Pair:
    """Two sentences, and the file and line that they come from."""

    path: Path
    line: int
    good: str
    bad: str


@dataclass(frozen=True)
class Accuracy:
    """How many of the pairs of a file were right."""

    path: Path
    num_pairs: int
    num_right: int

    @property
    def share(self) -> float:
        """From 0 to 1; guessing gives a half."""
        return self.num_right / self.num_pairs


def read_pairs(paths: Sequence[str | Path]) -> list[Pair]:
    """The pairs of all files, and of all *.jsonl files of folders, in the order of their names.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file is given twice or has no pairs, a line is not JSON, lacks a sentence, or has twice the same.
    """
    pairs: list[Pair] = []
    seen: set[Path] = set()
    for path in (path for given in paths for path in _files(Path(given))):
        if path.resolve() in seen:
            raise ValueError(f"--pairs gives {path} twice: name each file once, or the folder that it is in.")
        seen.add(path.resolve())
        of_file = [_checked_pair(path, line, row) for line, row in read_rows(path)]
        if not of_file:
            raise ValueError(f"--pairs {path} holds no pair: it needs one JSON object per line.")
        pairs += of_file
    return pairs


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"--pairs {path} does not exist.")
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise ValueError(f"--pairs {path} holds no *.jsonl file: name files with other suffixes one by one.")
    return files


def _checked_pair(path: Path, line: int, row: dict[str, Any]) -> Pair:
    where = f"{path}:{line}"
    for field in FIELDS:
        if field not in row:
            raise ValueError(
                f"{where} has no {field!r}, but {', '.join(row) or 'nothing'}: a pair needs both sentences."
            )
        if not isinstance(row[field], str) or not row[field].strip():
            raise ValueError(f"{where}: {field!r} is {row[field]!r:.40}: it must be a sentence.")
    good, bad = (row[field] for field in FIELDS)
    if good == bad:
        raise ValueError(f"{where}: both sentences are {good!r:.80}: no model could tell them apart. Remove the pair.")
    return Pair(path, line, good, bad)


def encode_pairs(pairs: Iterable[Pair], tokenizer: PreTrainedTokenizerBase, context: int) -> list[list[int]]:
    """The ids of all sentences, good and bad in turn, each behind the token that begins a text.

    Raises:
        ValueError: the tokenizer has no such token or cannot encode a sentence, or one is longer than `context`.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError("the tokenizer has neither bos_token nor eos_token: nothing could stand before a sentence.")
    rows = []
    for pair in pairs:
        for sentence in (pair.good, pair.bad):
            try:
                ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
            except Exception as error:  # tokenizers has no class of its own for a character that a vocabulary lacks
                raise ValueError(f"{pair.path}:{pair.line}: no token for a part of {sentence!r} ({error}).") from None
            if not 0 < len(ids) <= context:
                raise ValueError(
                    f"{pair.path}:{pair.line}: a sentence has {len(ids)} tokens, but the model sees {context} at once. "
                    "Remove the pair."
                )
            rows.append([start, *ids])
    return rows


@torch.no_grad()
def sum_log_probs(model: PreTrainedModel, rows: Sequence[Sequence[int]], batch_size: int) -> Tensor:
    """ln p of all ids of each row but its first one, (rows,); nearly equal lengths share a batch.

    Raises:
        ValueError: the model computes numbers that are not finite.
    """
    sums = torch.zeros(len(rows), dtype=torch.float64)
    numbers = iter(tqdm(_longest_first(rows), unit=" sentences", mininterval=0.5))
    while batch := list(itertools.islice(numbers, batch_size)):
        ids, targets = padded([rows[number] for number in batch])
        mask = (targets != IGNORE_INDEX).long()
        on_device = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        logits = model(**on_device, use_cache=False).logits
        sums[batch] = score_targets(logits, targets.to(logits.device))[1].double().sum(dim=1).cpu()
    if not sums.isfinite().all():
        raise ValueError("the model computes numbers that are not finite: its weights are damaged.")
    return sums


def _longest_first(rows: Sequence[Sequence[int]]) -> list[int]:
    """So that a batch that is too large for the memory is the first one."""
    return sorted(range(len(rows)), key=lambda number: -len(rows[number]))


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both (batch, seq): the targets are one token further, and -100 behind the end of a row."""
    seq = max(map(len, rows)) - 1
    ids = torch.zeros(len(rows), seq, dtype=torch.long)
    targets = torch.full((len(rows), seq), IGNORE_INDEX)
    for number, row in enumerate(rows):
        ids[number, : len(row) - 1] = torch.tensor(row[:-1])
        targets[number, : len(row) - 1] = torch.tensor(row[1:])
    return ids, targets


def accuracies(pairs: Sequence[Pair], sums: Tensor) -> list[Accuracy]:
    """Per file, the pairs of which the good sentence is the more probable one; a tie is wrong.

    Args:
        pairs: in any order.
        sums: (2 * pairs,), ln p of the good and the bad sentence of each pair in turn.
    """
    is_right = (sums[0::2] > sums[1::2]).tolist()
    of_files: dict[Path, list[bool]] = {}
    for pair, right in zip(pairs, is_right, strict=True):
        of_files.setdefault(pair.path, []).append(right)
    return [Accuracy(path, len(rights), sum(rights)) for path, rights in of_files.items()]


def accuracy_table(files: Sequence[Accuracy]) -> str:
    """A line per file, then the mean over the files and that over the pairs."""
    num_pairs, num_right = sum(file.num_pairs for file in files), sum(file.num_right for file in files)
    rows = [("file", "pairs", "accuracy")]
    rows += [(str(file.path), f"{file.num_pairs:,}", f"{file.share:.4f}") for file in files]
    rows.append(("mean of the files", "", f"{sum(file.share for file in files) / len(files):.4f}"))
    rows.append(("all pairs", f"{num_pairs:,}", f"{num_right / num_pairs:.4f}"))
    width = max(len(name) for name, *_ in rows)
    return "\n".join(f"{name:<{width}}  {count:>9}  {share:>8}" for name, count, share in rows)
