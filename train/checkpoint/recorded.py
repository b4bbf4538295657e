"""The settings that a run was started with."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from ..settings.json_files import read_json
from ..settings.run_folder import MANIFEST_FILE, MODEL_FOLDER, TRAINING_FILE
from .find import checkpoint_paths


def recorded_settings(run: Path) -> dict[str, Any]:
    """The settings in the newest readable checkpoint, or in the finished model; empty for a new run.

    They only replace values that were not given. `Checkpointer.restore` then compares all settings.
    """
    manifests = [path / MANIFEST_FILE for path in reversed(checkpoint_paths(run))]
    for path in (*manifests, run / MODEL_FOLDER / TRAINING_FILE):
        with suppress(OSError, ValueError):
            return dict(read_json(path, {"settings": dict})["settings"])
    return {}
