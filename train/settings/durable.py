"""Files and folders that survive a kill and a power loss, and lists of them that do not hide errors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO


def flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Wait until a folder with all its files and folders is on the disk."""
    for path in (*reversed(files_and_folders(folder)), folder):
        flush(path)


def files_and_folders(folder: Path) -> list[Path]:
    """Everything below a folder, sorted; links to folders are not followed.

    Raises:
        OSError: a folder cannot be read. (`Path.glob` and `Path.rglob` then take it for empty.)
    """
    walk = os.walk(folder, onerror=_raise)
    return sorted(Path(place, name) for place, folders, files in walk for name in (*folders, *files))


def _raise(error: OSError) -> NoReturn:
    raise error


def replace_text(path: Path, text: str) -> None:
    """Write a text file at once: a kill or a power loss leaves the old content or the new one."""
    with replaced(path) as file:
        file.write(text)


@contextmanager
def replaced(path: Path) -> Iterator[TextIO]:
    """Yield a new text file that replaces `path`, once it is on the disk, if the block ends without an error."""
    partial = path.with_name(f".tmp-{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        yield file
    flush(partial)
    os.replace(partial, path)
    flush(path.parent)
