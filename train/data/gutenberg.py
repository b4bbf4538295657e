"""The header and the license that Project Gutenberg adds to each of its books."""

import gzip
import re
import zlib
from pathlib import Path

from .text_files import open_unpacked

BEGIN_SIZE = 1 << 16  # bytes in which a header begins
MARK = r"\*\*\* ?{} OF (?:THE|THIS) PROJECT GUTENBERG EBOOK[^*]{{0,300}}\*\*\*[^\S\n]*\n?"
START = re.compile(MARK.format("START"), re.IGNORECASE)
END = re.compile(r"^(?:End of (?:the )?Project Gutenberg.*\n\s*)?" + MARK.format("END"), re.IGNORECASE | re.MULTILINE)
CREDITS = re.compile(r"\s*(?:Produced by|E-?text prepared by)[^\n]*(?:\n[^\n]+)*\n\n", re.IGNORECASE)


def has_gutenberg_header(path: Path, encoding: str) -> bool:
    """Whether a text file begins as those of Project Gutenberg do. A file that cannot be read does not."""
    try:
        with open_unpacked(path) as file:
            begin = file.read(BEGIN_SIZE)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return False
    return bool(START.search(begin.decode(encoding, errors="ignore")))


def without_gutenberg(text: str) -> str:
    """The book: what is between the marks of Project Gutenberg, without the credits. Other text as it is."""
    start = START.search(text)
    if not start:
        return text
    end = END.search(text, start.end())
    book = text[start.end() : end.start() if end else None]
    if credits := CREDITS.match(book):
        book = book[credits.end() :]
    return book.strip("\n") + "\n"
