"""Forked processes that run a command: they start in milliseconds, because their parent has imported everything."""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def free_port() -> int:
    """A port of this machine that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def set_rank(rank: int, num_processes: int, port: int) -> None:
    """Set the variables of a launcher for this process; MASTER_ADDR stays if it is set. One process needs none."""
    if num_processes > 1:
        world = str(num_processes)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"), "MASTER_PORT": str(port),
        }  # fmt: skip


def end_with(main: Callable[[], int], output: Path | str) -> NoReturn:
    """Call `main`, and end this process with its result as exit code; what it prints is appended to `output`."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 1
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
