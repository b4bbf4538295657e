"""How files of text and tables are read: the options that all commands with such files share."""

import codecs
import functools
from dataclasses import dataclass
from pathlib import Path

from .checks import requires

TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")  # and .json, which is often something else in a folder
FOLDER_SUFFIXES = (".txt", ".md", *TABLE_SUFFIXES)  # files that are read of a folder
GZIP = ".gz"

ENCODING = "Encoding of the files, such as cp1252, latin-1 or utf-16 (default: utf-8)."
UTF_8 = ("utf-8", "utf-8-sig")  # Python's names of all its spellings, such as utf8; a byte order mark is never text
KEEP_CRLF = "Keep the line ends of Windows (CR LF) instead of reading them as LF."
COLUMNS = "Names of the columns of .csv and .tsv files whose first line does not contain them."


@dataclass(frozen=True)
class Reading:
    """How files are read. UTF-8, however it is spelled, is `utf-8`."""

    encoding: str = "utf-8"
    keep_crlf: bool = False
    columns: tuple[str, ...] = ()  # names, if the first line of a .csv or .tsv file does not contain them
    suffixes: tuple[str, ...] = FOLDER_SUFFIXES  # files that are read of a folder
    strip_gutenberg: bool = False  # remove the header and the license of Project Gutenberg
    has_encoding_option: bool = True  # whether --encoding applies to the files, so that an error may suggest it

    def __post_init__(self) -> None:
        try:
            b"a".decode(self.encoding, errors="ignore")
        except (LookupError, ValueError):
            raise ValueError(
                f"--encoding {self.encoding} is unknown: choose one of Python's text encodings, such as utf-8, cp1252, "
                "latin-1, utf-16, shift_jis or gb18030."
            ) from None
        if codecs.lookup(self.encoding).name in UTF_8:
            object.__setattr__(self, "encoding", "utf-8")
        for column in self.columns:
            if self.columns.count(column) > 1:
                raise ValueError(f"--columns has {column!r} twice: each column needs its own name.")


DEFAULT_READING = Reading()


@functools.lru_cache  # read_rows asks for each row
def suffix_of(path: Path) -> str:
    """The kind of a file: its suffix in lower case; that before .gz for a compressed file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [GZIP]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_gzip(path: Path) -> bool:
    """Whether the name says that the file is compressed."""
    return path.suffix.lower() == GZIP


def require_files(arguments: object, names: tuple[str, ...], condition: str) -> None:
    """Refuse options of files where no file is read.

    Raises:
        ValueError: the option, its value, and what it requires.
    """
    for name in names:
        if value := getattr(arguments, name):
            shown = " ".join(value) if isinstance(value, list) else value
            raise ValueError(requires(name, shown, condition))
