"""Rows for fine-tuning: from tables or datasets, with their places, cut into parts."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..settings.finetuning import RowsArguments
from .tables import load_split, missing_column, read_rows


@dataclass(frozen=True)
class Row:
    """The cells of one row, and where they stand."""

    place: str
    cells: dict[str, Any]


def read_parts(
    settings: RowsArguments,
    parts: dict[str, float],
    seed: int,
    columns: Sequence[str] | None = None,
    option: str = "--text_column",
) -> dict[str, list[Row]]:
    """The rows of "train" and of all `parts`: each from its own source, or else a random share of the others.

    Args:
        parts: what to hold out beside the training rows, such as {"validation": 0.1}: the share by default.
        seed: decides which rows are held out.
        columns: what is read of a row.
        option: what the user names the columns with.

    Raises:
        ValueError: a missing column, a broken table, or a part without rows.
        OSError: a source cannot be read.
    """
    rows = _read(settings, settings.train_file, settings.dataset_split, columns, option)
    found = {}
    for part, default in parts.items():
        tables, split = getattr(settings, f"{part}_file"), getattr(settings, f"{part}_split")
        if tables or split:
            found[part] = _read(settings, tables, split, columns, option)
        else:
            parts = parts | {part: getattr(settings, f"{part}_fraction") or default}
    held_out = {part: share for part, share in parts.items() if part not in found}
    if sum(held_out.values()) >= 1:
        raise ValueError(f"--{' and --'.join(f'{part}_fraction' for part in held_out)} leave no row to train on.")
    found |= _cut(rows, held_out, seed)
    for part, some in found.items():
        if not some:
            raise ValueError(f"There is no row for {part}: {len(rows)} rows are too few, or a table is empty.")
    return found


def _cut(rows: list[Row], shares: dict[str, float], seed: int) -> dict[str, list[Row]]:
    """Cuts randomly ordered rows into "train" and the parts of `shares`, in this order."""
    order = np.random.default_rng(seed).permutation(len(rows)) if shares else range(len(rows))
    ends = [0, *itertools.accumulate([1 - sum(shares.values()), *shares.values()])]
    places = [round(end * len(rows)) for end in ends]
    names = ["train", *shares]
    return {
        name: [rows[i] for i in order[first:last]]
        for name, (first, last) in zip(names, itertools.pairwise(places), strict=True)
    }


def _read(
    settings: RowsArguments, tables: Sequence[str], split: str, columns: Sequence[str] | None, option: str
) -> list[Row]:
    if tables:
        return [
            Row(f"{path}:{number}", cells)
            for path in map(Path, tables)
            for number, cells in read_rows(path, columns, option)
        ]
    name = settings.dataset_name or ""
    rows = load_split(name, settings.dataset_config_name, split, streaming=False)
    place = f"dataset {name} ({split})"
    for column in columns or ():
        if column not in rows.column_names:
            raise missing_column(place, column, rows.column_names, option)
    names = {c: f.names for c, f in rows.features.items() if isinstance(f, datasets.ClassLabel)}
    rows = rows.select_columns(list(columns)) if columns else rows
    return [Row(f"{place}, row {number}", _with_names(cells, names)) for number, cells in enumerate(rows)]


def _with_names(cells: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """Numbers of named classes replaced by the names; -1 stands for a class that nobody knows."""
    known = {c: names[c][v] for c, v in cells.items() if c in names and isinstance(v, int) and v >= 0}
    unknown = {c: None for c, v in cells.items() if c in names and v == -1}
    return cells | known | unknown
