"""Write a folder completely or not at all, even if processes are killed, the power fails, or two of them write it."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..settings.durable import flush, flush_tree


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which becomes `folder` when the block ends without an error.

    Processes that write the same folder at the same time do not disturb each other: the first to finish wins. What
    killed processes have left is removed.

    Raises:
        FileExistsError: when the block ends, `folder` is there and not empty.
        OSError: the disk is full, or the place cannot be written.
    """
    for other in folder.parent.iterdir():
        if other.name == f".tmp-{folder.name}" or other.name.startswith(f".tmp-{folder.name}-"):
            _remove_if_abandoned(other)
    partial, lock = _new_locked_folder(folder)
    try:
        yield partial
        flush_tree(partial)
        try:
            partial.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise FileExistsError(f"{folder} was written by another process in the meantime.") from None
        flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def _new_locked_folder(folder: Path) -> tuple[Path, int]:
    """A temporary folder, and the descriptor that locks it until it is closed or the process ends."""
    while True:
        partial = folder.with_name(f".tmp-{folder.name}-{secrets.token_hex(4)}")
        partial.mkdir()
        try:
            lock = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # taken for abandoned before it was locked
            continue
        _try_to_lock(lock)
        if partial.exists():
            return partial, lock
        os.close(lock)


def _remove_if_abandoned(partial: Path) -> None:
    try:
        lock = os.open(partial, os.O_RDONLY)
    except OSError:  # gone, or of another user
        return
    try:
        if _try_to_lock(lock):
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)


def _try_to_lock(descriptor: int) -> bool:
    """Whether no other process has locked it; False also where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for this folder (on a file system with locks)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
