"""Read text files, tables (.jsonl, .csv, .tsv, .parquet) and datasets of the Hugging Face Hub.

Invalid input is an error that names the place: skipping or shifting a row would silently change the training data.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
PARQUET_BATCH = 256  # rows read at once: a row group of long texts may be larger than memory
# https://www.iana.org/assignments/media-types/text/tab-separated-values: no quoting, so no tab in a cell
DIALECTS: dict[str, dict[str, Any]] = {
    ".csv": {"strict": True},
    ".tsv": {"strict": True, "delimiter": "\t", "quoting": csv.QUOTE_NONE},
}


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, exactly, except for a byte order mark.

    Raises:
        ValueError: a byte is NUL or not UTF-8; the message counts bytes from 0.
    """
    return "".join(_utf8_lines(path))


def read_rows(
    path: Path, columns: Sequence[str] | None = None, option: str = "--text_column"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a table, each with its line (the last one of a row of several), in .parquet its number from 0.

    Cells of .jsonl and .parquet keep their type; those of .csv and .tsv are strings. Empty lines are skipped. The
    first line of a .csv or .tsv file names its columns.

    Args:
        columns: read only these (default: all).
        option: the option that sets the columns, for the error message.

    Raises:
        ValueError: the suffix is not in TABLE_SUFFIXES, or (while reading) the file is not UTF-8, a line is invalid
            or has too few or too many fields, or a column is missing; the message names the place.
    """
    readers = {".jsonl": _jsonl_rows, ".csv": _delimited_rows, ".tsv": _delimited_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise ValueError(f"{path} is not a table: the suffix must be one of {', '.join(TABLE_SUFFIXES)}.")
    return readers[path.suffix](path, columns, option)


def _jsonl_rows(path: Path, columns: Sequence[str] | None, option: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_utf8_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number}: column {error.colno}: not JSON ({error.msg}). "
                "A .jsonl file has one JSON object per line."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: must be a JSON object, not {type(row).__name__}.")
        names = _columns_to_read(f"{path}:{number}", columns, list(row), option)
        yield number, {name: row[name] for name in names}


def _delimited_rows(path: Path, columns: Sequence[str] | None, option: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses fields above 128 KiB
    reader = csv.reader(_utf8_lines(path), **DIALECTS[path.suffix])
    try:
        header = next(reader, [])
        names = _columns_to_read(str(path), columns, header, option)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}:{reader.line_num}: {len(cells)} fields, but the first line names {len(header)} columns. "
                    "Fix or remove the line."
                )
            row = dict(zip(header, cells, strict=True))
            yield reader.line_num, {name: row[name] for name in names}
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not {path.suffix[1:].upper()} ({error}).") from None


def _parquet_rows(path: Path, columns: Sequence[str] | None, option: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with pyarrow.OSFile(str(path)) as file:  # opened here, so that a missing file is a FileNotFoundError
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = _columns_to_read(str(path), columns, table.schema_arrow.names, option)
            batches = table.iter_batches(batch_size=PARQUET_BATCH, columns=list(names))
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield number, {name: row[name] for name in names}
        except (pyarrow.ArrowException, OSError) as error:  # pyarrow raises OSError for damaged pages
            raise ValueError(f"{path} is not a readable .parquet file: {error}") from None


def _utf8_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends: joined, they are the text."""
    offset = 0
    with path.open("rb") as file:
        for raw in file:
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                place = f"byte {offset + error.start} is 0x{raw[error.start]:02x} ({error.reason})"
                raise ValueError(f"{path} is not UTF-8 text: {place}. Convert or remove it.") from None
            if "\0" in line:
                raise ValueError(f"{path} is not text: byte {offset + raw.index(0)} is NUL. Remove it from the corpus.")
            yield line if offset else line.removeprefix("\ufeff")
            offset += len(raw)


def load_split(
    name: str,
    config: str | None,
    split: str,
    columns: Sequence[str] | None = None,
    streaming: bool = False,
    option: str = "--text_column",
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a split of a dataset of the Hugging Face Hub, or of a folder written by `save_to_disk`.

    A folder that contains a single `Dataset` has no splits: all of it is loaded.

    Args:
        columns: must exist.
        option: the option that sets the columns, for the error message.

    Raises:
        ValueError: no such split, configuration or column.
        OSError: no such dataset, or no network.
    """
    rows = _saved_split(Path(name), split)
    if rows is None:
        rows = datasets.load_dataset(name, config, split=split, streaming=streaming)
    if columns is not None:
        found = rows.column_names or list(next(iter(rows), {}))  # a stream may know its columns only from a row
        _columns_to_read(f"dataset {name} ({split})", columns, found, option)
    return rows


def _saved_split(folder: Path, split: str) -> datasets.Dataset | None:
    if not ((folder / "state.json").exists() or (folder / "dataset_dict.json").exists()):
        return None
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise ValueError(f"{folder} has no split {split!r}; choose one of {', '.join(saved)}.")
    return saved[split]


def _columns_to_read(place: str, columns: Sequence[str] | None, found: Sequence[str], option: str) -> Sequence[str]:
    """`columns`, or all that were found.

    Raises:
        ValueError: one of `columns` is missing.
    """
    for column in columns or ():
        if column not in found:
            raise ValueError(
                f"{place} has no column {column!r}; its columns are {', '.join(found) or 'none'}. "
                f"Name one of them with {option}."
            )
    return found if columns is None else columns
