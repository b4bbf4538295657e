"""Read tables (.jsonl, .json, .csv, .tsv, .parquet) and datasets of the Hugging Face Hub.

Invalid input is an error that names the place: skipping or shifting a row would silently change the training data.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from ..settings.reading import DEFAULT_READING, TABLE_SUFFIXES, Reading, is_gzip, suffix_of
from ..settings.words import counted, shown_names
from .text_files import check_name, text_chunks, text_lines

PARQUET_BATCH = 256  # rows read at once: a row group of long texts may be larger than memory
JSON_SUFFIX = ".json"
# https://www.iana.org/assignments/media-types/text/tab-separated-values: no quoting, so no tab in a cell
DIALECTS: dict[str, dict[str, Any]] = {
    ".csv": {"strict": True},
    ".tsv": {"strict": True, "delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
SURROGATE = re.compile(r"[\ud800-\udfff]")
JSON_SPACE = re.compile(r"[ \t\n\r]*")


def is_table(path: Path) -> bool:
    """Whether `read_rows` reads the file."""
    return suffix_of(path) in (*TABLE_SUFFIXES, JSON_SUFFIX)


def read_rows(
    path: Path, columns: Sequence[str] | None = None, option: str = "--text_column", reading: Reading = DEFAULT_READING
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a table, each with its line (the last one of a row of several); `place_of` describes it.

    Cells of .jsonl, .json and .parquet keep their type; those of .csv and .tsv are strings. Empty lines are skipped.
    The first line of a .csv or .tsv file names its columns, unless `reading` does. A .json file contains a list of
    rows, or rows one after the other. Rows of .json and .parquet are numbered from 0.

    Args:
        columns: read only these (default: all).
        option: the option that sets the columns, for the error message.

    Raises:
        ValueError: the suffix is not that of a table, or (while reading) the file is not text, a line is invalid, has
            too few or too many fields or a lone surrogate, or a column is missing or there twice; the message names
            the place.
    """
    readers = {
        ".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _delimited_rows, ".tsv": _delimited_rows,
        ".parquet": _parquet_rows,
    }  # fmt: skip
    suffix = suffix_of(path)
    if suffix not in readers:
        raise ValueError(f"{path} is not a table: the suffix must be one of {', '.join(readers)}, or these with .gz.")
    if reading.columns and suffix not in DIALECTS:
        raise ValueError(f"--columns names the columns of .csv and .tsv files, but {path} names its own: remove it.")
    return readers[suffix](path, columns, option, reading)


def place_of(path: Path, number: int) -> str:
    """Where a row is, for people: its line, or its number in a file without lines."""
    return f"{path}, row {number}" if suffix_of(path) in (".parquet", JSON_SUFFIX) else f"{path}:{number}"


def _jsonl_rows(
    path: Path, columns: Sequence[str] | None, option: str, reading: Reading
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text_lines(path, reading), start=1):
        if not line.strip():
            continue
        place = place_of(path, number)
        try:
            row = DECODER.decode(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{place}: column {error.colno}: not JSON ({error.msg}). A .jsonl file has one JSON object per line"
                f"{'; let the name of a JSON list end in .json.' if line.lstrip().startswith('[') else '.'}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: cannot be read as JSON ({error}). Fix or remove the line.") from None
        yield number, _checked_row(place, row, columns, option, reading, "\\u" in line)


def _json_rows(
    path: Path, columns: Sequence[str] | None, option: str, reading: Reading
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(_JsonFile(path, reading).values()):
        yield number, _checked_row(place_of(path, number), row, columns, option, reading, True)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _checked_row(
    place: str, row: Any, columns: Sequence[str] | None, option: str, reading: Reading, may_have_surrogates: bool
) -> dict[str, Any]:
    """The columns of a JSON value, which must be an object."""
    if not isinstance(row, dict):
        raise ValueError(f"{place}: must be a JSON object, not {type(row).__name__}.")
    names = _columns_to_read(place, columns, list(row), option)
    cells = {name: row[name] for name in names}
    try:
        if may_have_surrogates:
            for name, cell in cells.items():
                _refuse_surrogates(f"{place}: column {name!r}", cell)
        return cells if reading.keep_crlf else {name: with_line_feeds(cell) for name, cell in cells.items()}
    except RecursionError:
        raise ValueError(f"{place}: brackets are nested too deeply. Fix or remove the row.") from None


def _refuse_surrogates(place: str, cell: Any) -> None:
    if isinstance(cell, str):
        if found := SURROGATE.search(cell):
            raise ValueError(
                f"{place} has a lone surrogate (U+{ord(found[0]):04X}) at character {found.start()}: half of a "
                "character, which is not valid text. Fix or remove the row."
            )
    elif isinstance(cell, dict | list):
        for inner in [*cell, *cell.values()] if isinstance(cell, dict) else cell:
            _refuse_surrogates(place, inner)


def with_line_feeds(cell: Any) -> Any:
    """A cell in which the line ends of Windows (CR LF) are LF."""
    if isinstance(cell, str):
        return cell.replace("\r\n", "\n") if "\r" in cell else cell
    if isinstance(cell, list):
        return [with_line_feeds(inner) for inner in cell]
    if isinstance(cell, dict):
        return {name: with_line_feeds(inner) for name, inner in cell.items()}
    return cell


class _JsonFile:
    """The values of a JSON list, or JSON values one after the other, read in parts."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self.path, self.chunks = path, text_chunks(path, reading)
        self.buffer, self.position = "", 0
        self.line, self.column = 1, 0  # where the buffer begins

    def values(self) -> Iterator[Any]:
        """Yield each value.

        Raises:
            ValueError: the file is not JSON; the message names the line.
        """
        is_list = self._next_character() == "["
        self.position += is_list
        closing = "]" if is_list else ""
        while self._next_character() != closing:
            yield self._value()
            if is_list and self._next_character() == ",":
                self.position += 1
                if self._next_character() == closing:
                    raise self._error("a comma without a row after it", self.position)
            elif is_list and self._next_character() != closing:
                raise self._error("a comma or the end of the list is missing", self.position)
        self.position += is_list
        if self._next_character():
            raise self._error("text after the end of the list", self.position)

    def _next_character(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            space = JSON_SPACE.match(self.buffer, self.position)
            self.position = space.end() if space else self.position
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self._read_more():
                return ""

    def _read_more(self) -> bool:
        """Append at least as much as is left, so that reading a long value again and again stays linear."""
        self.line, self.column = self._place(self.position)
        parts, size = [self.buffer[self.position :]], 0
        for chunk in self.chunks:
            parts.append(chunk)
            size += len(chunk)
            if size >= len(parts[0]) and size > 0:
                break
        self.buffer, self.position = "".join(parts), 0
        return size > 0

    def _value(self) -> Any:
        while True:
            try:
                value, self.position = DECODER.raw_decode(self.buffer, self.position)
                return value
            except json.JSONDecodeError as error:
                may_be_cut = error.msg.startswith("Unterminated string") or error.pos > len(self.buffer) - 16
                distance = error.pos - self.position
                if not (may_be_cut and self._read_more()):
                    raise self._error(error.msg, self.position + distance) from None
            except (ValueError, RecursionError) as error:
                raise self._error(str(error), self.position) from None

    def _place(self, position: int) -> tuple[int, int]:
        """The line, counted from 1, and the column, counted from 0, of a place in the buffer."""
        line_start = self.buffer.rfind("\n", 0, position) + 1
        column = position - line_start + (0 if line_start else self.column)
        return self.line + self.buffer.count("\n", 0, position), column

    def _error(self, what: str, position: int) -> ValueError:
        line, column = self._place(position)
        return ValueError(
            f"{self.path}:{line}: column {column + 1}: not JSON ({what}). A .json file contains a list of rows: "
            '[{"text": "..."}, ...].'
        )


def _delimited_rows(
    path: Path, columns: Sequence[str] | None, option: str, reading: Reading
) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses fields above 128 KiB
    reader = csv.reader(text_lines(path, reading), **DIALECTS[suffix_of(path)])
    try:
        header = list(reading.columns) or next(reader, [])
        _refuse_twice(f"{path}:1", header)
        names = _columns_to_read(str(path), columns, header, option, _about_header(header, reading))
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                source = "--columns" if reading.columns else "the first line"
                raise ValueError(
                    f"{path}:{reader.line_num}: {counted(len(cells), 'field')}, but {source} names {len(header)} "
                    f"columns. {'Correct --columns, or fix' if reading.columns else 'Fix'} or remove the line."
                )
            row = dict(zip(header, cells, strict=True))
            yield reader.line_num, {name: row[name] for name in names}
    except csv.Error as error:
        kind = suffix_of(path)[1:].upper()
        raise ValueError(f"{path}:{reader.line_num}: not {kind} ({error}).") from None


def _about_header(header: Sequence[str], reading: Reading) -> str:
    """What may be wrong with a header that lacks a column."""
    if reading.columns:
        return "They come from --columns."
    if len(header) == 1:
        for name, separator in (("semicolons", ";"), ("tabs", "\t"), ("vertical bars", "|")):
            if separator in header[0]:
                return f"It seems to separate columns by {name}: save it with commas, or with tabs as .tsv."
    return "The first line must contain the names of the columns; if it is a row, name all columns with --columns."


def _refuse_twice(place: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen and name:
            raise ValueError(f"{place}: two columns have the name {name!r}: rename or remove one of them.")
        seen.add(name)


def _parquet_rows(
    path: Path, columns: Sequence[str] | None, option: str, reading: Reading
) -> Iterator[tuple[int, dict[str, Any]]]:
    check_name(path)
    if is_gzip(path):
        raise ValueError(f"{path}: .parquet files are compressed already: unpack it with gunzip.")
    with pyarrow.OSFile(str(path)) as file:  # opened here, so that a missing file is a FileNotFoundError
        try:
            table = pyarrow.parquet.ParquetFile(file)
            found = table.schema_arrow.names
            _refuse_twice(str(path), found)
            names = _columns_to_read(str(path), columns, found, option)
            batches = table.iter_batches(batch_size=PARQUET_BATCH, columns=list(names))
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows):
                cells = {name: row[name] for name in names}
                yield number, cells if reading.keep_crlf else dict(with_line_feeds(cells))
        except (pyarrow.ArrowException, OSError) as error:  # pyarrow raises OSError for damaged pages
            raise ValueError(f"{path} is not a readable .parquet file: {error}") from None


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


def _columns_to_read(
    place: str, columns: Sequence[str] | None, found: Sequence[str], option: str, hint: str = ""
) -> Sequence[str]:
    """`columns`, or all that were found.

    Raises:
        ValueError: one of `columns` is missing.
    """
    for column in columns or ():
        if column not in found:
            raise ValueError(
                f"{place} has no column {column!r}; its columns are {shown_names(found) or 'none'}. "
                f"Name one of them with {option}.{' ' * bool(hint)}{hint}"
            )
    return found if columns is None else columns
