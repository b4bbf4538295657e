"""Blocks of tokens on disk: written by `scratch-gpt prepare_data`, read by pretraining.

A split is one stream of token ids. A block is a row of block_size + 1 of them, and its last id is the first one of the
next block. So inputs and targets have block_size ids each, and every token but the first is predicted exactly once.
The blocks are in a memory-mapped Arrow file: memory does not grow with the size of the data.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import torch
from datasets.arrow_writer import ArrowWriter
from torch import Tensor

from ..settings.json_files import read_json
from .tokens import tokenizer_sha256

FORMAT = 1
MANIFEST = "data.json"
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "validation")
BLOCKS_FILE = "data-00000-of-00001.arrow"
PART_SIZE = 1 << 26  # bytes with a hash of their own, so that processes and threads verify parts of a file
READ_SIZE = 1 << 16
MAX_THREADS = 8  # that verify a file
REMEDY = "Prepare the data again."
_LOCAL_PROCESSES = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # of this machine, set by torchrun and accelerate
_SPLIT_SHAPE = {
    "num_documents": int, "num_bytes": int, "num_tokens": int, "num_rows": int, "num_dropped_tokens": int,
    "file_size": int, "tokens_sha256": str, "part_sha256?": [str], "seconds": float, "origin?": dict,
}  # fmt: skip
_MANIFEST_SHAPE = {
    "format": int,
    "block_size": int,
    "vocab_size": int,
    "tokenizer_sha256": str,
    "corpus": {split: {"description": str, "fingerprint": str} for split in SPLITS},
    "splits": {split: _SPLIT_SHAPE for split in SPLITS},
}


class TooShortError(ValueError):
    """A text has fewer tokens than a block."""


# Writing
def write_blocks(folder: Path, tokens: Iterable[np.ndarray], block_size: int, vocab_size: int) -> dict[str, Any]:
    """Cut a stream of ids into blocks, and return the facts that `open_data` checks.

    The chunks of the stream may have any length. Tokens after the last full block are dropped and counted as
    `num_dropped_tokens`. `datasets.load_from_disk` can read the folder.

    Raises:
        TooShortError: the tokens do not fill one block.
        ValueError: an id is not below `vocab_size`.
    """
    dtype = smallest_integer_type(vocab_size)
    features = datasets.Features({"input_ids": datasets.List(datasets.Value(dtype), length=block_size + 1)})
    _save_example(folder, features)
    digest, num_tokens, num_rows = hashlib.sha256(), 0, 0
    rest = np.empty(0, dtype)
    with ArrowWriter(path=str(folder / BLOCKS_FILE), features=features) as writer:
        for chunk in tokens:
            _check_ids(chunk, vocab_size)
            chunk = chunk.astype(dtype)
            digest.update(chunk.astype("<u4").tobytes())
            num_tokens += len(chunk)
            rows, rest = _rows_and_rest(np.concatenate([rest, chunk]), block_size)
            num_rows += len(rows)
            if len(rows):
                writer.write_table(_arrow_table(rows))
        writer.finalize()
    if num_rows == 0:
        raise TooShortError(
            f"{folder.name}: the text has {num_tokens} tokens, fewer than one block of "
            f"{block_size} + 1. Use more text, or a --block_size of at most {max(num_tokens - 1, 0)}."
        )
    return {
        "num_tokens": num_tokens,
        "num_rows": num_rows,
        "num_dropped_tokens": len(rest) - 1,
        "file_size": (folder / BLOCKS_FILE).stat().st_size,
        "tokens_sha256": digest.hexdigest(),
        "part_sha256": part_hashes(folder / BLOCKS_FILE),
    }


def smallest_integer_type(vocab_size: int) -> str:
    """The integer type that stores every id below `vocab_size` in the fewest bytes."""
    return "uint8" if vocab_size <= 1 << 8 else "uint16" if vocab_size <= 1 << 16 else "int32"


def _save_example(folder: Path, features: datasets.Features) -> None:
    """Make `folder` a saved dataset with one row, whose file the blocks then replace."""
    example = {"input_ids": [[0] * features["input_ids"].length]}
    is_quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset.from_dict(example, features=features).save_to_disk(str(folder))
    finally:
        if not is_quiet:
            datasets.enable_progress_bars()


def _rows_and_rest(stream: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All full blocks of `stream`, (rows, block_size + 1), and the ids from the start of the next block."""
    num_rows = max(len(stream) - 1, 0) // block_size
    if num_rows == 0:
        return np.empty((0, block_size + 1), stream.dtype), stream
    windows = np.lib.stride_tricks.sliding_window_view(stream, block_size + 1)
    return windows[: num_rows * block_size : block_size], stream[num_rows * block_size :]


def _arrow_table(rows: np.ndarray) -> pyarrow.Table:
    values = pyarrow.array(np.ascontiguousarray(rows).reshape(-1))
    return pyarrow.table({"input_ids": pyarrow.FixedSizeListArray.from_arrays(values, rows.shape[1])})


def _check_ids(ids: np.ndarray, vocab_size: int) -> None:
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        position = int(np.flatnonzero((ids < 0) | (ids >= vocab_size))[0])
        raise ValueError(
            f"Token {ids.flat[position]} at position {position} is not below vocab_size ({vocab_size}): "
            "the text was encoded with another tokenizer. Prepare the data again."
        )


def write_manifest(data_dir: str | Path, manifest: dict[str, Any]) -> None:
    """Write data.json, last: it marks the folder as complete."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (Path(data_dir) / MANIFEST).write_text(text + "\n", encoding="utf-8")


# Reading
@dataclass(frozen=True)
class TokenBlocks:
    """The blocks of one split, memory-mapped."""

    dataset: datasets.Dataset
    block_size: int
    vocab_size: int

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def mean_length(self) -> float:
        """Input tokens per block."""
        return self.block_size

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """`input_ids` and `shift_labels`, both (len(indices), block_size)."""
        rows = self.rows(indices)  # (len(indices), block_size + 1)
        # contiguous, because the loss reshapes its labels with .view
        return {"input_ids": rows[:, :-1].contiguous(), "shift_labels": rows[:, 1:].contiguous()}

    def rows(self, indices: Sequence[int] | np.ndarray) -> torch.LongTensor:
        """The blocks at `indices`, (len(indices), block_size + 1), in that order.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        ids = self.dataset[np.asarray(indices, dtype=np.int64)]["input_ids"]
        _check_ids(ids, self.vocab_size)
        return torch.from_numpy(ids)  # type: ignore[return-value]


@dataclass(frozen=True)
class PreparedData:
    """Both splits and the manifest of a folder written by `scratch-gpt prepare_data`."""

    train: TokenBlocks
    validation: TokenBlocks
    manifest: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """Hashes of tokens and tokenizer: they must not change when a run continues."""
        tokens = {split: self.manifest["splits"][split]["tokens_sha256"] for split in SPLITS}
        facts = {name: self.manifest[name] for name in ("block_size", "tokenizer_sha256")}
        return {"data": facts | {"tokens_sha256": tokens}}


def open_data(data_dir: str | Path, verify: Sequence[str] = SPLITS) -> PreparedData:
    """Open prepared data without loading its tokens into memory.

    Args:
        verify: the splits whose files are read once and compared with their hashes; of several processes on this
            machine, each reads its share.

    Raises:
        FileNotFoundError: there is no prepared data.
        ValueError: an unsupported format, damaged, truncated or replaced files, or the tokenizer of other data.
    """
    data_dir = Path(data_dir)
    manifest = read_manifest(data_dir)
    tokenizer_file = data_dir / TOKENIZER_FOLDER / "tokenizer.json"
    if not tokenizer_file.exists():
        raise FileNotFoundError(f"{tokenizer_file} is missing: prepare the data again.")
    if tokenizer_sha256(tokenizer_file.read_text(encoding="utf-8")) != manifest["tokenizer_sha256"]:
        raise ValueError(f"{tokenizer_file} is not the tokenizer that made the tokens: prepare the data again.")
    train, validation = (_open_split(data_dir / split, manifest) for split in SPLITS)
    for split in verify:
        _verify(data_dir / split / BLOCKS_FILE, manifest["splits"][split].get("part_sha256"))
    return PreparedData(train, validation, manifest)


def read_manifest(data_dir: str | Path) -> dict[str, Any]:
    """Read data.json.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is damaged, or its format or content is not supported.
    """
    path = Path(data_dir) / MANIFEST
    if not path.exists():
        inside = sorted(str(found.parent) for found in Path(data_dir).glob(f"*/{MANIFEST}"))
        hint = f"did you mean {' or '.join(inside)}?" if inside else "write it with scratch-gpt prepare_data."
        raise FileNotFoundError(f"--data_dir {data_dir} contains no prepared data: {hint}")
    manifest: dict[str, Any] = read_json(path, dict, REMEDY)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {manifest.get('format')!r}, but this version reads format {FORMAT}: "
            "prepare the data again."
        )
    read_json(path, _MANIFEST_SHAPE, REMEDY)
    return manifest


def _open_split(folder: Path, manifest: dict[str, Any]) -> TokenBlocks:
    facts, path = manifest["splits"][folder.name], folder / BLOCKS_FILE
    size = path.stat().st_size if path.exists() else 0
    if size != facts["file_size"]:
        raise ValueError(f"{path} has {size} bytes, not {facts['file_size']}: it is truncated. Prepare the data again.")
    try:
        dataset = datasets.Dataset.from_file(str(path)).with_format("numpy")
        length = dataset.features["input_ids"].length
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): prepare the data again.") from None
    if (len(dataset), length) != (facts["num_rows"], manifest["block_size"] + 1):
        raise ValueError(
            f"{folder} has {len(dataset)} blocks of {length} ids, not {facts['num_rows']} of "
            f"{manifest['block_size'] + 1}: prepare the data again."
        )
    return TokenBlocks(dataset, manifest["block_size"], manifest["vocab_size"])


# Verifying
def part_hashes(path: Path, parts: Iterable[int] | None = None) -> list[str]:
    """The SHA-256 of each part of PART_SIZE bytes of a file, computed by several threads.

    Args:
        parts: their numbers (default: all).
    """
    count = -(-path.stat().st_size // PART_SIZE)
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(lambda part: _part_sha256(path, part), range(count) if parts is None else parts))


def _part_sha256(path: Path, part: int) -> str:
    digest, left = hashlib.sha256(), PART_SIZE
    with path.open("rb", buffering=0) as file:
        file.seek(part * PART_SIZE)
        while left and (chunk := file.read(min(READ_SIZE, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _verify(path: Path, hashes: Sequence[str] | None) -> None:
    """Compare a file with its hashes; each process on this machine reads every n-th part.

    Raises:
        ValueError: it is not what was written.
    """
    process, num_processes = (int(os.environ.get(name, default)) for name, default in _LOCAL_PROCESSES.items())
    if hashes is None:
        if process == 0:
            print(
                f"note: {path} was prepared by an earlier version, without hashes, so it cannot be verified: prepare "
                "the data again to notice damage.",
                file=sys.stderr,
            )
        return
    parts = range(process, len(hashes), num_processes)
    for part, found in zip(parts, part_hashes(path, parts), strict=True):
        if found != hashes[part]:
            first = part * PART_SIZE
            raise ValueError(
                f"{path} is damaged: a byte from {first:,} to {min(first + PART_SIZE, path.stat().st_size) - 1:,} has "
                "changed since it was written. Prepare the data again, and check the disk."
            )
