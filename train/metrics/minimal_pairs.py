"""Minimal pairs: does a model find a correct sentence more probable than a nearly identical wrong one?

The files have the format of BLiMP (https://huggingface.co/papers/1912.00582): one JSON object per line, with
`sentence_good` and `sentence_bad`. The probability of a sentence is that of all its tokens after the token that begins
a text. EleutherAI's harness computes the same with `target_delimiter: ""`; by default it adds a leading space.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.examples import IGNORE_INDEX
from ..data.folders import files_of
from ..data.plain_text import plain_ids
from ..data.tables import place_of, read_rows
from ..settings.near_paths import check_exists
from ..settings.reading import Reading
from .evaluate_metrics import score_targets
from .text_scores import ending

FIELDS = ("sentence_good", "sentence_bad")
GROUP_FIELDS = ("linguistics_term", "field")  # of BLiMP: the phenomenon, and the field of linguistics
READING = Reading(has_encoding_option=False)
NAME_WIDTH = 52  # of the table, which fits into 80 columns


@dataclass(frozen=True)
class Pair:
    """Two sentences, and where they were read: the file, and the line or row as people count it."""

    path: Path
    place: str
    good: str
    bad: str
    group: str | None = None  # the phenomenon that the pair belongs to


@dataclass(frozen=True)
class Accuracy:
    """The number of pairs of a file or group, and how many of them the model ranks correctly."""

    name: str
    num_pairs: int
    num_correct: int

    @property
    def accuracy(self) -> float:
        """From 0 to 1; guessing gives 0.5."""
        return self.num_correct / self.num_pairs

    @property
    def error(self) -> float:
        """The standard error of the accuracy."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_pairs)


def read_pairs(paths: Sequence[str | Path]) -> list[Pair]:
    """The pairs in all files, and in all .jsonl files of folders in alphabetical order; a note counts the others.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file is given twice or has no pairs; a line is not JSON, lacks a sentence, or repeats it.
    """
    pairs: list[Pair] = []
    seen: set[Path] = set()
    for path in (path for given in paths for path in _files(Path(given))):
        if path.resolve() in seen:
            raise ValueError(f"--pairs gives {path} twice: give each file once, or its folder.")
        seen.add(path.resolve())
        of_file = [_checked_pair(path, number, row) for number, row in read_rows(path, reading=READING)]
        if not of_file:
            raise ValueError(f"--pairs {path} has no pairs: it needs rows with {FIELDS[0]} and {FIELDS[1]}.")
        pairs += of_file
    return pairs


def _files(path: Path) -> list[Path]:
    check_exists("--pairs", path)
    if not path.is_dir():
        return [path]
    found = files_of(path, (".jsonl",))
    if not found.files:
        raise ValueError(f"--pairs {path} has no .jsonl file: give files with other suffixes one by one.")
    if found.left_out or found.other_suffixes:
        print(f"note: --pairs {path}: left out {found.reasons}.", file=sys.stderr)
    return sorted(found.files)


def _checked_pair(path: Path, number: int, row: dict[str, Any]) -> Pair:
    place = place_of(path, number)
    for field in FIELDS:
        if field not in row:
            raise ValueError(f"{place} has no {field!r} (found: {', '.join(row) or 'nothing'}).")
        if not isinstance(row[field], str) or not row[field].strip():
            raise ValueError(f"{place}: {field!r} is {row[field]!r:.40}: it must be a sentence.")
    good, bad = (row[field] for field in FIELDS)
    if good == bad:
        raise ValueError(f"{place}: both sentences are {good!r:.80}: remove the pair.")
    group = next((row[name] for name in GROUP_FIELDS if isinstance(row.get(name), str)), None)
    return Pair(path, place, good, bad, group)


def encode_pairs(pairs: Iterable[Pair], tokenizer: PreTrainedTokenizerBase, block_size: int) -> list[list[int]]:
    """The ids of all sentences, good and bad in turn, each after the token that begins a text.

    Raises:
        ValueError: the tokenizer has no such token or cannot encode a sentence, or a sentence exceeds `block_size`.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError("the tokenizer has neither a bos_token nor an eos_token to begin a sentence with.")
    rows = []
    for pair in pairs:
        for sentence in (pair.good, pair.bad):
            try:
                ids = plain_ids(tokenizer, sentence)
            except ValueError as error:
                raise ValueError(f"{pair.place}: {error}") from None
            if not 0 < len(ids) <= block_size:
                raise ValueError(
                    f"{pair.place}: a sentence has {len(ids)} tokens, but --block_size is {block_size}: "
                    "remove the pair."
                )
            rows.append([start, *ids])
    return rows


@torch.no_grad()
def sum_log_probs(model: PreTrainedModel, rows: Sequence[Sequence[int]], batch_size: int) -> Tensor:
    """ln p of all ids of each row except the first, (rows,). Rows of similar length share a batch.

    Raises:
        ValueError: a sum is not finite.
    """
    sums = torch.zeros(len(rows), dtype=torch.float64)
    # longest first, so that running out of memory happens at once
    longest_first = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    numbers = iter(tqdm(longest_first, unit=" sentences", mininterval=0.5, leave=False, disable=None))
    while batch := list(itertools.islice(numbers, batch_size)):
        ids, targets = padded([rows[number] for number in batch])
        mask = (targets != IGNORE_INDEX).long()
        on_device = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        logits = model(**on_device, use_cache=False).logits
        sums[batch] = score_targets(logits, targets.to(logits.device))[1].double().sum(dim=1).cpu()
    if not sums.isfinite().all():
        raise ValueError("the model's outputs are not finite: its weights are damaged.")
    return sums


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both (batch, seq). Targets are shifted by one token, and -100 after the end of a row."""
    seq = max(map(len, rows)) - 1
    ids = torch.zeros(len(rows), seq, dtype=torch.long)
    targets = torch.full((len(rows), seq), IGNORE_INDEX)
    for number, row in enumerate(rows):
        ids[number, : len(row) - 1] = torch.tensor(row[:-1])
        targets[number, : len(row) - 1] = torch.tensor(row[1:])
    return ids, targets


def accuracies(pairs: Sequence[Pair], sums: Tensor) -> tuple[list[Accuracy], list[Accuracy]]:
    """The accuracy per file, and per group if the pairs have any. A pair is correct if the good sentence is more
    probable; a tie is not.

    Args:
        pairs: in any order.
        sums: (2 * pairs,), ln p of the good and the bad sentence of each pair in turn.
    """
    is_correct = (sums[0::2] > sums[1::2]).tolist()
    by_file: dict[str, list[bool]] = {}
    by_group: dict[str, list[bool]] = {}
    for pair, correct in zip(pairs, is_correct, strict=True):
        by_file.setdefault(str(pair.path), []).append(correct)
        if pair.group is not None:
            by_group.setdefault(pair.group, []).append(correct)
    files, groups = (
        [Accuracy(name, len(found), sum(found)) for name, found in some.items()] for some in (by_file, by_group)
    )
    return files, sorted(groups, key=lambda group: group.name)


def accuracy_table(files: Sequence[Accuracy], groups: Sequence[Accuracy] = ()) -> str:
    """One line per file and per group, then the mean over files and the mean over pairs; at most 80 columns wide."""
    total = Accuracy("all pairs", sum(file.num_pairs for file in files), sum(file.num_correct for file in files))
    lines = [_line("file", "pairs", "accuracy", "+/-"), *map(_line_of, files)]
    if groups:
        lines += ["", _line("group", "pairs", "accuracy", "+/-"), *map(_line_of, groups), ""]
    if len(files) > 1:
        mean = sum(file.accuracy for file in files) / len(files)
        error = math.sqrt(sum(file.error**2 for file in files)) / len(files)
        lines.append(_line("mean of the files", "", f"{mean:.4f}", f"{error:.4f}"))
    return "\n".join([*lines, _line_of(total), "", "+/-: standard error; guessing gives 0.5"])


def _line_of(one: Accuracy) -> str:
    return _line(one.name, f"{one.num_pairs:,}", f"{one.accuracy:.4f}", f"{one.error:.4f}")


def _line(name: str, *cells: str) -> str:
    return f"{ending(name, NAME_WIDTH):<{NAME_WIDTH}}{cells[0]:>9}{cells[1]:>10}{cells[2]:>9}"
