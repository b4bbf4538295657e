"""The rows for fine-tuning, from tables or a dataset, and their division into training, validation and test."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..settings.finetuning import RowsArguments
from ..settings.near_paths import check_exists
from .tables import load_split, place_of, read_rows, with_line_feeds
from .text_files import check_name


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one row, and its place for error messages."""

    place: str
    cells: dict[str, Any]


def read_parts(
    settings: RowsArguments,
    fractions: Mapping[str, float],
    seed: int,
    columns: Sequence[str] | None = None,
    option: str = "--text_column",
) -> dict[str, list[Row]]:
    """The rows of "train" and of each part in `fractions`: from its own source, or held out of the training rows.

    Args:
        fractions: default fraction of the training rows to hold out for each part, such as {"validation": 0.1}.
        seed: decides which rows are held out.
        columns: read only these (default: all).
        option: the option that sets the columns, for error messages.

    Raises:
        ValueError: a missing column, an invalid table, or a part without rows.
        OSError: a source cannot be read.
    """
    rows = _read_source(settings, "train", columns, option)
    parts, held_out = {}, {}
    for part, default in fractions.items():
        files, split = getattr(settings, f"{part}_file"), getattr(settings, f"{part}_split")
        if files or split:
            parts[part] = _read_source(settings, part, columns, option)
        else:
            held_out[part] = getattr(settings, f"{part}_fraction") or default
    if sum(held_out.values()) >= 1:
        names = " and ".join(f"--{part}_fraction ({fraction:g})" for part, fraction in held_out.items())
        raise ValueError(f"{names} leave no row to train on: their sum must be below 1.")
    parts |= _split(rows, held_out, seed)
    for part, some in parts.items():
        if not some:
            raise ValueError(_about_no_rows(part, len(rows), held_out.get(part)))
    return parts


def _about_no_rows(part: str, num_rows: int, fraction: float | None) -> str:
    if fraction is None or not num_rows:
        return f"there are no rows for {part}: {num_rows} rows are too few, or its table is empty."
    return (
        f"there are no rows for {part}: {fraction:g} of {num_rows} rows is none. Give more rows, a higher "
        f"--{part}_fraction, or other rows with --{part}_file."
    )


def _read_source(settings: RowsArguments, part: str, columns: Sequence[str] | None, option: str) -> list[Row]:
    if files := getattr(settings, f"{part}_file"):
        paths = [_table(f"--{part}_file", file) for file in files]
        return [
            Row(place_of(path, number), cells)
            for path in paths
            for number, cells in read_rows(path, columns, option, settings.reading)
        ]
    name = settings.dataset_name or ""
    split = settings.dataset_split if part == "train" else getattr(settings, f"{part}_split")
    rows = load_split(name, settings.dataset_config_name, split, columns, option=option)
    classes = {c: f.names for c, f in rows.features.items() if isinstance(f, datasets.ClassLabel)}
    rows = rows if columns is None else rows.select_columns(list(columns))
    named = (_with_class_names(cells, classes) for cells in rows)
    return [
        Row(f"dataset {name} ({split}), row {number}", cells if settings.keep_crlf else with_line_feeds(cells))
        for number, cells in enumerate(named)
    ]


def _table(option: str, file: str) -> Path:
    """The path of a table.

    Raises:
        ValueError, FileNotFoundError: it is a folder, or does not exist.
    """
    path = Path(file)
    check_name(path)
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: give the tables in it one by one.")
    check_exists(option, path)
    return path


def _with_class_names(cells: dict[str, Any], classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Replace class numbers by class names; -1 stands for an unknown class."""
    known = {c: classes[c][v] for c, v in cells.items() if c in classes and isinstance(v, int) and v >= 0}
    unknown = {c: None for c, v in cells.items() if c in classes and v == -1}
    return cells | known | unknown


def _split(rows: list[Row], fractions: Mapping[str, float], seed: int) -> dict[str, list[Row]]:
    """Divide the rows, in random order, into "train" and the parts of `fractions`."""
    order = np.random.default_rng(seed).permutation(len(rows)) if fractions else range(len(rows))
    ends = [0, *itertools.accumulate([1 - sum(fractions.values()), *fractions.values()])]
    places = [round(end * len(rows)) for end in ends]
    return {
        part: [rows[i] for i in order[first:last]]
        for part, (first, last) in zip(["train", *fractions], itertools.pairwise(places), strict=True)
    }
