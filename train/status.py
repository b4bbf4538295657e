"""status.json: what became of a run, for schedulers and people; launchers do not pass on exit codes."""

import json
import os
import time
from pathlib import Path
from typing import Any

STATUS_FILE = "status.json"


def write_status(folder: Path, state: str, **facts: Any) -> None:
    """Says that the run is "running", "stopped" (start it again), "complete" or "failed"; old or new, never half."""
    record = {"state": state, **facts, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    partial = folder / f".tmp-{STATUS_FILE}"
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / STATUS_FILE)


def read_status(folder: Path) -> dict[str, Any]:
    """The last status of a run; empty where there is none."""
    try:
        status: dict[str, Any] = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return status
