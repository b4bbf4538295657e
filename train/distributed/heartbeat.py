"""Which process hangs: each says every two seconds that it lives and where it is, and those that wait read it."""

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
# what gloo and NCCL say when a process does not answer, or has gone
SILENCE = ("timed out", "timeout", "connection closed by peer", "connection reset", "connection refused", "broken pipe")


@contextmanager
def heartbeat(run: Path, accelerator: Accelerator) -> Iterator[None]:
    """Beats while the block runs, and turns the error of a process that waited in vain into one that names the others.

    Raises:
        ValueError: which processes did not answer.
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
            f"process {accelerator.process_index} waited in vain for the others: {silent}. "
            "The same command continues from the last checkpoint."
        ) from error
    finally:
        stop.set()


def _beat(path: Path, stop: threading.Event) -> None:
    """A stopped or dead process does not get here any more, nor does one whose machine is away."""
    facts = {"pid": os.getpid(), "host": platform.node()}
    while not stop.is_set():
        with suppress(OSError):  # a full disk must not end the run here
            path.write_text(json.dumps(facts), encoding="utf-8")
        stop.wait(SECONDS)


def silent_processes(folder: Path, num_processes: int) -> str:
    """The processes whose heart has stopped, in words; the folder may know more of them, from an earlier launch."""
    paths = [folder / f"{process}.json" for process in range(num_processes)]
    last_beat = {path: path.stat().st_mtime for path in paths if path.exists()}
    now = time.time()
    names = []
    for path, moment in last_beat.items():
        if now - moment > DEAD_AFTER:
            with suppress(OSError, ValueError):
                facts = json.loads(path.read_text(encoding="utf-8"))
                names.append(
                    f"process {path.stem} (pid {facts['pid']} on {facts['host']}) is silent since {now - moment:.0f} s"
                )
    return ", ".join(names) or "all of them are alive, so one has ended or is much slower; its own output says more"
