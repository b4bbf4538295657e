"""Steps that `rollback` excludes from a run."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..settings.durable import replace_text
from ..settings.json_files import DamagedFileError, read_json
from ..settings.run_folder import SKIPPED_STEPS_FILE

REMEDY = "It has pairs of a first and a last step, such as [[4100, 4110]]: correct it, or delete it to skip no step."


def read_skip_windows(run: Path) -> list[tuple[int, int]]:
    """The (first, last) steps to skip, counted from 1.

    Raises:
        DamagedFileError: the file has something else.
    """
    path = run / SKIPPED_STEPS_FILE
    if not path.exists():
        return []
    windows = read_json(path, [[int]], REMEDY)
    if any(len(window) != 2 for window in windows):
        raise DamagedFileError(f"{path} is damaged: {windows}. {REMEDY}")
    return [(first, last) for first, last in windows]


def write_skip_windows(run: Path, windows: Sequence[tuple[int, int]]) -> None:
    """Record the steps to skip. The write is atomic."""
    replace_text(run / SKIPPED_STEPS_FILE, json.dumps(windows) + "\n")
