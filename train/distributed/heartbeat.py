"""Find the process that hangs: each writes a file every two seconds, and a process whose wait times out reads them."""

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator

from ..settings.run_folder import HEARTBEAT_FOLDER

SECONDS = 2.0
DEAD_AFTER = 5 * SECONDS
# in the errors of gloo and NCCL when another process hangs or has ended
SILENCE = ("timed out", "timeout", "connection closed by peer", "connection reset", "connection refused", "broken pipe")


@contextmanager
def heartbeat(run: Path, accelerator: Accelerator) -> Iterator[None]:
    """Write heartbeats during the block, and name the silent processes in the error of one that waited in vain.

    Raises:
        ValueError: the processes that did not respond.
    """
    if accelerator.num_processes == 1:
        yield
        return
    path = run / HEARTBEAT_FOLDER / f"{accelerator.process_index}.json"
    path.parent.mkdir(exist_ok=True)
    stop = threading.Event()
    threading.Thread(target=_beat, args=(path, stop), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error).lower() for words in SILENCE):
            raise
        silent = silent_processes(path.parent, accelerator.num_processes)
        raise ValueError(
            f"process {accelerator.process_index} lost contact with the others: {silent}. "
            "Run the same command again to continue from the last checkpoint."
        ) from error
    finally:
        stop.set()


def _beat(path: Path, stop: threading.Event) -> None:
    """A stopped or dead process no longer gets here, nor does one whose machine is unreachable."""
    facts = {"pid": os.getpid(), "host": platform.node()}
    while not stop.is_set():
        with suppress(OSError):  # a full disk must not end the run here
            path.write_text(json.dumps(facts), encoding="utf-8")
        stop.wait(SECONDS)


def silent_processes(folder: Path, num_processes: int) -> str:
    """Names the processes without a recent heartbeat. The folder may contain more, from an earlier launch."""
    paths = [folder / f"{process}.json" for process in range(num_processes)]
    last_beat = {path: path.stat().st_mtime for path in paths if path.exists()}
    now = time.time()
    names = []
    for path, moment in last_beat.items():
        if now - moment > DEAD_AFTER:
            with suppress(OSError, ValueError):
                facts = json.loads(path.read_text(encoding="utf-8"))
                place = f"pid {facts['pid']} on {facts['host']}"
                names.append(f"process {path.stem} ({place}) has been silent for {now - moment:.0f} s")
    return ", ".join(names) or "all of them are alive, so one has failed or is much slower; see its own output"
