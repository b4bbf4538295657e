"""Rows of tables: .jsonl, .csv, .tsv and .parquet files, datasets of the Hub or of `save_to_disk`.

A broken table stops the run with the place that is broken: a row that is skipped or shifted without
a word would change what a model learns from.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
ROWS_AT_ONCE = 256  # of a .parquet file: whole row groups of long texts need not fit into memory
# https://www.iana.org/assignments/media-types/text/tab-separated-values: no quoting, so no tab in a cell
DIALECTS: dict[str, dict[str, Any]] = {
    ".csv": {"strict": True},
    ".tsv": {"strict": True, "delimiter": "\t", "quoting": csv.QUOTE_NONE},
}


def read_rows(
    path: Path, columns: Sequence[str] | None = None, option: str = "--text_column"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with their places: the (last) line of the row, or in .parquet its number from 0.

    Cells of .jsonl and .parquet keep their type, those of .csv and .tsv are strings. Empty lines are
    no rows. The first line of a .csv or .tsv file names its columns.

    Args:
        columns: what a row is cut down to; all of its columns without.
        option: what the user names the columns with, for the message when one is missing.

    Raises:
        ValueError: the suffix is none of TABLES, or (while reading) a file that is not UTF-8, a
            broken line, too few or too many fields in it, a missing column; the message names the place.
    """
    if path.suffix not in TABLES:
        raise ValueError(f"{path} is not a table: tables end in {', '.join(TABLES)}.")
    readers = {".jsonl": _json_rows, ".csv": _delimited_rows, ".tsv": _delimited_rows, ".parquet": _parquet_rows}
    return readers[path.suffix](path, columns, option)


def missing_column(where: str, column: str, columns: Iterable[str], option: str = "--text_column") -> ValueError:
    """The error to raise when `where` has `columns`, but not the one that was asked for."""
    return ValueError(
        f"{where} has no column {column!r}; its columns are {', '.join(columns) or 'none'}. "
        f"Name one of them with {option}."
    )


def utf8_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends as they are, so that joined they are the text.

    Raises:
        ValueError: a byte is not UTF-8 or NUL; the message counts bytes from 0.
    """
    offset = 0
    with path.open("rb") as file:
        for raw in file:
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"byte {offset + error.start} is 0x{raw[error.start]:02x} ({error.reason})"
                raise ValueError(f"{path} is not UTF-8 text: {where}. Convert or remove it.") from None
            if "\0" in line:
                raise ValueError(f"{path} is not text: byte {offset + raw.index(0)} is NUL. Remove it from the corpus.")
            yield line if offset else line.removeprefix("\ufeff")
            offset += len(raw)


def load_split(
    name: str, config: str | None, split: str, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """A split of a dataset of the Hugging Face Hub, or of a folder that `save_to_disk` has written.

    A folder that holds a single `Dataset` has no splits: it is given whole.

    Raises:
        ValueError: no such split or configuration.
        OSError: no such dataset, or no network.
    """
    folder = Path(name)
    if not ((folder / "state.json").exists() or (folder / "dataset_dict.json").exists()):
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise ValueError(
            f"{folder} has no split {split!r}; it has {', '.join(saved)}. Name one of them with --dataset_split."
        )
    return saved[split]


def _columns_to_read(where: str, columns: Sequence[str] | None, found: Sequence[str], option: str) -> Sequence[str]:
    missing = [column for column in columns or () if column not in found]
    if missing:
        raise missing_column(where, missing[0], found, option)
    return found if columns is None else columns


def _json_rows(path: Path, columns: Sequence[str] | None, option: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(utf8_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number}: column {error.colno}: not JSON ({error.msg}). "
                "A .jsonl file holds one JSON object per line."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: not a JSON object but {type(row).__name__}.")
        names = _columns_to_read(f"{path}:{number}", columns, list(row), option)
        yield number, {name: row[name] for name in names}


def _delimited_rows(path: Path, columns: Sequence[str] | None, option: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # its default refuses fields above 128 KiB
    reader = csv.reader(utf8_lines(path), **DIALECTS[path.suffix])
    try:
        header = next(reader, [])
        names = _columns_to_read(str(path), columns, header, option)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}:{reader.line_num}: {len(cells)} fields, but the first line names {len(header)} columns. "
                    "Mend or remove the line."
                )
            row = dict(zip(header, cells, strict=True))
            yield reader.line_num, {name: row[name] for name in names}
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not {path.suffix[1:].upper()} ({error}).") from None


def _parquet_rows(path: Path, columns: Sequence[str] | None, option: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with pyarrow.OSFile(str(path)) as file:  # opened here: a missing file is a FileNotFoundError, not a broken one
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = _columns_to_read(str(path), columns, table.schema_arrow.names, option)
            batches = table.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(names))
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield number, {name: row[name] for name in names}
        except (pyarrow.ArrowException, OSError) as error:  # pyarrow's word for damaged pages is OSError
            raise ValueError(f"{path} is not a readable .parquet file: {error}") from None
