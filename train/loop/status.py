"""status.json: the state of a run, for schedulers and people. Launchers do not pass on exit codes."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from ..checkpoint.find import checkpoint_paths
from ..checkpoint.state import TrainState
from ..settings.durable import replace_text
from ..settings.json_files import read_json
from ..settings.run_folder import STATUS_FILE

if TYPE_CHECKING:
    from .run import Run

SHAPE = {"state": str, "step?": int, "max_steps?": int, "checkpoint?": str, "reason?": str, "time?": str}


def write_status(folder: Path, state: str, **facts: Any) -> None:
    """Record that the run is "running", "stopped" (run it again), "complete" or "failed". The write is atomic."""
    record = {"state": state, **facts, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    replace_text(folder / STATUS_FILE, json.dumps(record, indent=2) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """The last status of a run; empty if there is none, or if it is damaged: nothing depends on it."""
    try:
        status: dict[str, Any] = read_json(folder / STATUS_FILE, SHAPE)
    except (OSError, ValueError):
        return {}
    return status


def write_run_status(run: "Run", what: str, step: int, **facts: str) -> None:
    """Record the state of a run with its step and newest checkpoint. Main process only; the others do nothing."""
    if run.accelerator.is_main_process:
        newest = "".join(path.name for path in checkpoint_paths(run.folder)[-1:])
        last = run.arguments.max_steps
        write_status(run.folder, what, step=step, max_steps=last, checkpoint=newest, **facts)


@contextmanager
def recorded_status(run: "Run", state: TrainState) -> Iterator[None]:
    """Keep status.json true: "running" during the block, then how it ended."""
    write_run_status(run, "running", state.step)
    try:
        yield
    except BaseException as error:
        what, reason = end_of(error)
        with suppress(OSError):  # a full disk must not hide the first error
            write_run_status(run, what, state.step, reason=reason)
        raise
    write_run_status(run, "complete" if state.step == run.arguments.max_steps else "stopped", state.step)


@contextmanager
def recorded_failure(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Record an error of the block with its reason, unless the run is complete: then the block has not changed it."""
    try:
        yield
    except BaseException as error:
        before = read_status(folder)
        if accelerator.is_main_process and before.get("state") != "complete":
            what, reason = end_of(error)
            kept = {name: before[name] for name in ("step", "max_steps", "checkpoint") if name in before}
            with suppress(OSError):
                write_status(folder, what, **kept, reason=reason)
        raise


def end_of(error: BaseException) -> tuple[str, str]:
    """The state of a run after an error, and the reason. After a second Ctrl-C it is stopped, not failed."""
    state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
    return state, str(error) or type(error).__name__
