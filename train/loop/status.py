"""status.json: the state of a run, for schedulers and people. Launchers do not pass on exit codes."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint.find import checkpoint_paths
from ..checkpoint.state import TrainState
from ..settings.run_folder import STATUS_FILE
from .run import Run


def write_status(folder: Path, state: str, **facts: Any) -> None:
    """Record that the run is "running", "stopped" (run it again), "complete" or "failed". The write is atomic."""
    record = {"state": state, **facts, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    partial = folder / f".tmp-{STATUS_FILE}"
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / STATUS_FILE)


def read_status(folder: Path) -> dict[str, Any]:
    """The last status of a run; empty if there is none."""
    try:
        status: dict[str, Any] = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return status


@contextmanager
def recorded_status(run: Run, state: TrainState) -> Iterator[None]:
    """Keep status.json true: "running" during the block, then how it ended."""

    def record(what: str, **facts: str) -> None:
        if run.accelerator.is_main_process:
            newest = "".join(path.name for path in checkpoint_paths(run.folder)[-1:])
            last = run.arguments.max_steps
            write_status(run.folder, what, step=state.step, max_steps=last, checkpoint=newest, **facts)

    record("running")
    try:
        yield
    except BaseException as error:
        record("failed", reason=str(error) or type(error).__name__)
        raise
    record("complete" if state.step == run.arguments.max_steps else "stopped")
