"""Find the process that hangs or has ended: each one shows in a file every two seconds that it is alive.

The file of a process also has its id, and the reason when it ends. Other processes read it when they have waited for it
in vain.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..settings.json_files import read_json
from ..settings.run_folder import HEARTBEAT_FOLDER

SECONDS = 2.0
DEAD_AFTER = 5 * SECONDS
# in the errors of gloo, NCCL and the store when another process hangs or has ended
SILENCE = ("timed out", "timeout", "connection closed by peer", "connection reset", "connection refused", "broken pipe")
LONGEST_REASON = 300  # characters of an error in the message of another process
SHAPE = {"pid": int, "host": str, "namespace": str, "ended?": str}


class EndedError(RuntimeError):
    """Another process has ended; the message names it."""


class SilentError(RuntimeError):
    """Another process has shown no sign of life for longer than the timeout; the message names it."""


@dataclass(frozen=True)
class Heartbeat:
    """The files in which the processes of a launch show that they are alive.

    Args:
        folder: of all files; emptied at the start of a launch.
        timeout: seconds after which a silent process counts as lost.
    """

    folder: Path
    process_index: int
    num_processes: int
    timeout: float

    def path(self, process: int) -> Path:
        """The file of a process."""
        return self.folder / f"{process}.json"

    def start(self, stop: threading.Event) -> None:
        """Write the file of this process, and touch it every two seconds until `stop` is set."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write({})
        threading.Thread(target=self._beat, args=(stop,), daemon=True).start()

    def _beat(self, stop: threading.Event) -> None:
        """A stopped or dead process no longer gets here, nor does one whose machine is unreachable."""
        while not stop.wait(SECONDS):
            with suppress(OSError):  # a full disk must not end the run here
                os.utime(self.path(self.process_index))

    def end(self, reason: str) -> None:
        """Record why this process ends."""
        with suppress(OSError):
            self._write({"ended": reason})

    def _write(self, facts: dict[str, Any]) -> None:
        path = self.path(self.process_index)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(whoami() | facts), encoding="utf-8")
        os.replace(partial, path)

    def ended(self, process: int) -> str:
        """A sentence that names a process that has ended; empty if it is alive, or elsewhere and silent."""
        facts = self._facts(process)
        if "ended" in facts:
            return f"{name_of(process, facts)} has ended {facts['ended']}"
        here = whoami()
        is_here = bool(facts) and all(facts[key] == here[key] for key in ("host", "namespace"))
        return f"{name_of(process, facts)} has ended" if is_here and not is_alive(facts["pid"]) else ""

    def silent(self, process: int, limit: float) -> str:
        """A sentence that names a process without a heartbeat for more than `limit` seconds; otherwise empty."""
        with suppress(OSError):
            age = time.time() - self.path(process).stat().st_mtime
            if age > limit:
                return f"{name_of(process, self._facts(process))} has been silent for {age:.0f} s"
        return ""

    def lost(self) -> str:
        """Names the processes that have ended or are silent; empty if all are alive."""
        others = [process for process in range(self.num_processes) if process != self.process_index]
        return ", ".join(filter(None, (self.ended(other) or self.silent(other, DEAD_AFTER) for other in others)))

    def _facts(self, process: int) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = read_json(self.path(process), SHAPE)
        except (OSError, ValueError):
            return {}
        return facts


_current: list[Heartbeat] = []  # that of this process, during a run


@contextmanager
def heartbeat(run: Path, accelerator: Accelerator, timeout: float) -> Iterator[None]:
    """Write heartbeats during the block; if it waits in vain for another process, name that one in the error.

    Raises:
        ValueError: the processes that have ended or did not respond.
    """
    if accelerator.num_processes == 1:
        yield
        return
    own = Heartbeat(run / HEARTBEAT_FOLDER, accelerator.process_index, accelerator.num_processes, timeout)
    stop = threading.Event()
    own.start(stop)
    _current.append(own)
    try:
        yield
        own.end("normally")
    except BaseException as error:
        own.end(f"with the error: {str(error) or type(error).__name__}"[:LONGEST_REASON])
        is_loss = isinstance(error, EndedError | SilentError)
        if not is_loss and not (isinstance(error, RuntimeError) and _is_silence(error)):
            raise
        sign = "" if is_loss else f" ({str(error).strip().splitlines()[0][:LONGEST_REASON]})"
        raise ValueError(
            f"process {own.process_index} lost contact with the others: {error if is_loss else find_lost(own)}{sign}. "
            "Run the same command again to continue from the last checkpoint."
        ) from error
    finally:
        _current.remove(own)
        stop.set()


def find_lost(own: Heartbeat) -> str:
    """The processes that are lost, after a short wait for one that is just ending; the error of gloo names none."""
    deadline = time.monotonic() + 2 * SECONDS
    while not (lost := own.lost()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return lost or (
        f"all of them are alive, so one was more than {own.timeout:g} s slower (--ddp_timeout), or the network failed"
    )


def check_alive(process: int, waiting_for: float) -> None:
    """Return if it makes sense to wait longer for a process.

    Args:
        waiting_for: seconds so far.

    Raises:
        EndedError: it has ended.
        SilentError: it has been silent for longer than the timeout.
    """
    if not _current:
        return
    own = _current[-1]
    limit = max(own.timeout, DEAD_AFTER)
    if ended := own.ended(process):
        raise EndedError(ended)
    if silent := own.silent(process, limit):
        raise SilentError(silent)
    if waiting_for > limit and not own.path(process).exists():  # the run folder is not shared with its machine
        raise SilentError(f"process {process} did not answer within {waiting_for:.0f} s")


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs, or is stopped. One that has ended may still have its id."""
    with suppress(OSError, IndexError):  # Linux
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def whoami() -> dict[str, Any]:
    """This process: its id, host, and on Linux the namespace of ids, which differs between containers."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {"pid": os.getpid(), "host": platform.node(), "namespace": namespace}


def name_of(process: int, facts: dict[str, Any]) -> str:
    """How messages call a process."""
    return f"process {process} (pid {facts['pid']} on {facts['host']})" if facts else f"process {process}"


def _is_silence(error: RuntimeError) -> bool:
    return any(words in str(error).lower() for words in SILENCE)
