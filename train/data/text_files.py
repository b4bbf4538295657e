"""Read text from files: any encoding, .gz, both kinds of line ends. Errors name the file, the place and the remedy."""

import codecs
import gzip
import os
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..settings.reading import DEFAULT_READING, Reading, is_gzip

CHUNK_SIZE = 1 << 20  # bytes
SAMPLE_SIZE = 1 << 16  # bytes on each side of an undecodable byte, which show the encoding
# a format that is not text -> its first bytes, and how to get the text
BINARY_FORMATS = {
    "PDF": (b"%PDF-", "Extract its text, for example with pdftotext."),
    "ZIP": (b"PK\x03\x04", "Unpack it; save documents (.docx, .odt, .epub) as plain text."),
    "gzip": (b"\x1f\x8b", "Let its name end in .gz, or unpack it with gunzip."),
    "bzip2": (b"BZh", "Unpack it with bunzip2."),
    "xz": (b"\xfd7zXZ", "Unpack it with unxz."),
    "Zstandard": (b"\x28\xb5\x2f\xfd", "Unpack it with unzstd."),
    "Parquet": (b"PAR1", "Let its name end in .parquet."),
    "PNG": (b"\x89PNG", "Remove it."),
    "JPEG": (b"\xff\xd8\xff", "Remove it."),
}
LARGE_SHARE = 0.3  # of letters outside of ASCII: more than in any language with Latin letters


def read_text(path: Path, reading: Reading = DEFAULT_READING) -> str:
    """The text of a file, without its byte order mark.

    Raises:
        ValueError: it is not text in the encoding of `reading`; the message counts bytes from 0.
    """
    return "".join(text_chunks(path, reading))


def text_lines(path: Path, reading: Reading = DEFAULT_READING) -> Iterator[str]:
    """The lines of a text file with their line ends: joined, they are the text. Only a line feed ends a line."""
    parts: list[str] = []
    for chunk in text_chunks(path, reading):
        *complete, rest = chunk.split("\n")
        for line in complete:
            parts.append(line)
            yield "".join(parts) + "\n"
            parts = []
        parts.append(rest)
    if last := "".join(parts):
        yield last


def text_chunks(path: Path, reading: Reading = DEFAULT_READING) -> Iterator[str]:
    """The text of a file in parts of about CHUNK_SIZE bytes.

    Raises:
        ValueError: the name or the content is not text in its encoding, or a .gz file is damaged.
    """
    check_name(path)
    held_back = ""  # a CR, of which the next chunk may have the LF
    is_first = True
    for chunk in _decoded_chunks(path, reading):
        text = held_back + (chunk.removeprefix("\ufeff") if is_first else chunk)
        is_first = False
        if not reading.keep_crlf:
            held_back = "\r" if text.endswith("\r") else ""
            text = text.removesuffix(held_back).replace("\r\n", "\n")
        yield text
    if held_back:
        yield held_back


def _decoded_chunks(path: Path, reading: Reading) -> Iterator[str]:
    decoder, offset = codecs.getincrementaldecoder(reading.encoding)(), 0
    for raw in _raw_chunks(path):
        pending = len(decoder.getstate()[0])  # bytes of an incomplete character, which begin the next text
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeError as error:
            start = error.start if isinstance(error, UnicodeDecodeError) else 0
            raise ValueError(_undecodable(path, reading, offset - pending + start, str(error))) from None
        if "\0" in text:
            raise ValueError(_with_a_null_byte(path, reading, offset + raw.find(0)))
        offset += len(raw)
        yield text


def _raw_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked; the last chunk is empty."""
    with open_unpacked(path) as file:
        try:
            while raw := file.read(CHUNK_SIZE):
                yield raw
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} is not a complete .gz file ({error}): download it again, or rename it if it is not compressed."
            ) from None
    yield b""


def open_unpacked(path: Path) -> BinaryIO:
    """Open a file, or what a .gz file contains."""
    return gzip.open(path, "rb") if is_gzip(path) else path.open("rb")  # type: ignore[return-value]


def check_name(path: Path) -> None:
    """Refuse a path that is not UTF-8: names of documents are text.

    Raises:
        ValueError: the name, and how to change it.
    """
    raw = os.fsencode(path)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        shown, quoted = ascii(raw)[2:-1], re.sub(rb"[^ -~]|['\\]", lambda byte: b"\\x%02x" % byte[0][0], raw)
        raise ValueError(
            f"the name of the file {shown} is not UTF-8: rename it, for example with "
            f"mv $'{quoted.decode()}' {shlex.quote(raw.decode('ascii', errors='replace').replace(chr(0xFFFD), '_'))}"
        ) from None


# What is wrong with a file
def _undecodable(path: Path, reading: Reading, offset: int, why: str) -> str:
    encoding = reading.encoding
    with open_unpacked(path) as file:
        begin = file.read(16)
        file.seek(max(0, offset - SAMPLE_SIZE))
        sample = file.read(2 * SAMPLE_SIZE)
    if found := _binary_format(begin):
        return f"{path} is not text: byte {offset} is not {encoding}. It is a {found}"
    if encoding != "utf-8":
        return f"{path} is not {encoding} text at byte {offset} ({why}): choose another --encoding."
    place = f"byte {offset} is 0x{sample[offset - max(0, offset - SAMPLE_SIZE)]:02x}"
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"{path} is not UTF-8 text: {place}. It is UTF-16: {_remedy(path, reading, 'utf-16', 'UTF-16')}"
    return f"{path} is not UTF-8 text: {place}. {_guess(path, reading, sample)}"


def _guess(path: Path, reading: Reading, sample: bytes) -> str:
    """The likely encoding of bytes that are not UTF-8, and what to do."""
    valid = sum(not c.isascii() for c in sample.decode("utf-8", errors="ignore"))
    high = sum(byte >= 0x80 for byte in sample)
    if valid > high / 4:  # characters of two to four bytes
        clean = f"{_unpacked(path)}iconv -c -f UTF-8 -t UTF-8{_source(path)} > {_target(path)}"
        return f"Most of it is UTF-8: the byte is damaged. Correct it, or remove all such bytes: {clean}"
    letters = sum(byte >= 0x80 or chr(byte).isalpha() for byte in sample)
    if high > LARGE_SHARE * letters:
        remedy = "name it with --encoding" if reading.has_encoding_option else "convert it to UTF-8 with iconv"
        return (
            "It has another encoding, such as cp1251 (Russian), cp1253 (Greek), shift_jis (Japanese), gb18030 "
            f"(Chinese) or euc_kr (Korean): {remedy}."
        )
    is_windows = any(0x80 <= byte < 0xA0 for byte in sample)
    names = ("cp1252", "WINDOWS-1252") if is_windows else ("latin-1", "ISO-8859-1")
    return f"It looks like {'Windows-1252' if is_windows else 'Latin-1'}: {_remedy(path, reading, *names)}"


def _remedy(path: Path, reading: Reading, name: str, iconv_name: str) -> str:
    convert = f"convert it with {_unpacked(path)}iconv -f {iconv_name} -t UTF-8{_source(path)} > {_target(path)}"
    return f"read it with --encoding {name}, or {convert}" if reading.has_encoding_option else convert


def _unpacked(path: Path) -> str:
    return f"gunzip -c {shlex.quote(str(path))} | " if is_gzip(path) else ""


def _source(path: Path) -> str:
    return "" if is_gzip(path) else f" {shlex.quote(str(path))}"


def _target(path: Path) -> str:
    """The name of the converted file."""
    path = path.with_suffix("") if is_gzip(path) else path
    return shlex.quote(str(path.with_suffix(f".utf8{path.suffix}")))


def _with_a_null_byte(path: Path, reading: Reading, offset: int) -> str:
    with open_unpacked(path) as file:
        begin = file.read(64)
    if found := _binary_format(begin):
        return f"{path} is not text: byte {offset} is NUL. It is a {found}"
    is_utf_16 = codecs.lookup(reading.encoding).name.startswith("utf-16")
    if not is_utf_16 and begin.count(0) > len(begin) / 4:  # two bytes per character, without a mark
        order = "le" if begin[1:2] == b"\0" else "be"
        remedy = _remedy(path, reading, f"utf-16-{order}", f"UTF-16{order.upper()}")
        return f"{path} is not text: byte {offset} is NUL. It looks like UTF-16: {remedy}"
    return f"{path} is not text: byte {offset} is NUL. Remove it from the corpus."


def _binary_format(begin: bytes) -> str:
    return next(
        (f"{name} file. {remedy}" for name, (magic, remedy) in BINARY_FORMATS.items() if begin.startswith(magic)), ""
    )
