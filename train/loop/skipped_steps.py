"""Steps that `rollback` excludes from a run."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..settings.run_folder import SKIPPED_STEPS_FILE


def read_skip_windows(run: Path) -> list[tuple[int, int]]:
    """The (first, last) steps to skip, counted from 1."""
    path = run / SKIPPED_STEPS_FILE
    return [(first, last) for first, last in json.loads(path.read_text())] if path.exists() else []


def write_skip_windows(run: Path, windows: Sequence[tuple[int, int]]) -> None:
    """Record the steps to skip."""
    (run / SKIPPED_STEPS_FILE).write_text(json.dumps(windows) + "\n", encoding="utf-8")
