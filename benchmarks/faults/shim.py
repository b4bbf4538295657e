"""Load shim.c into a process, arm it, and read the log of the calls that it has seen."""

import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
VARIABLE = "FAULT_SHIM"  # path of the compiled shim, for the process that runs under it
RECORD = struct.Struct("<iiiiiiqqii")


class Action(IntEnum):
    """What happens at the chosen call; the order is that of shim.c."""

    PASS = 0
    FAIL = 1
    FAIL_FROM_HERE = 2
    KILL_BEFORE = 3
    KILL_AFTER = 4
    KILL_WITHIN = 5  # a write: half of its bytes are written


class Kind(IntEnum):
    """Kinds of calls; the order is that of shim.c."""

    OPEN = 0
    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    RENAME = 4
    LINK = 5
    UNLINK = 6
    RMDIR = 7
    MKDIR = 8
    MODE = 9
    FSYNC = 10
    CLOSE = 11
    READ = 12
    STAT = 13
    LIST = 14
    MAP_SHARED_WRITE = 15
    CLOSE_READ = 16


@dataclass(frozen=True)
class Call:
    """One call below the watched folder."""

    kind: Kind
    fd: int
    flags: int
    error: int
    thread: int
    is_change: bool
    offset: int
    path: str
    other: str
    data: bytes


@dataclass(frozen=True)
class Injection:
    """At which call something happens: the `number`-th, from 1, of those that change something or only read."""

    action: Action = Action.PASS
    is_change: bool = True
    number: int = 0
    error: int = 0


def is_available() -> bool:
    """Whether this machine can compile and preload the shim."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and shutil.which("cc") is not None


def restart_with_shim() -> None:
    """Compile the shim and start this process again with it; returns if that has been done."""
    if VARIABLE in os.environ:
        return
    if not is_available():
        raise ValueError("faults are injected with a C library: this needs Linux on x86-64 and a C compiler (cc).")
    library = Path(tempfile.mkdtemp(prefix="fault-shim-")) / "shim.so"
    command = ["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    environment = os.environ | {VARIABLE: str(library), "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def forget_shim() -> None:
    """Remove the compiled shim, and keep it out of the programs that this process starts."""
    shutil.rmtree(Path(os.environ[VARIABLE]).parent, ignore_errors=True)
    os.environ.pop("LD_PRELOAD", None)


def arm(folder: Path, injection: Injection, log: Path | None = None) -> None:
    """Watch the calls of this process below `folder` from now on."""
    library = ctypes.CDLL(os.environ[VARIABLE])
    d = injection
    library.faults_arm(
        os.fsencode(folder),
        os.fsencode(log) if log else b"",
        int(d.action),
        int(d.is_change),
        ctypes.c_long(d.number),
        d.error,
    )


def read_log(path: Path) -> Iterator[Call]:
    """The calls in the order in which they were made; a call that killed the process is not logged."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        kind, fd, flags, error, thread, is_change, offset, length, *sizes = RECORD.unpack_from(content, at)
        at += RECORD.size
        names = []
        for size in sizes:
            names.append(os.fsdecode(content[at : at + size]))
            at += size
        data = content[at : at + length]
        at += length
        yield Call(Kind(kind), fd, flags, error, thread, bool(is_change), offset, names[0], names[1], data)
