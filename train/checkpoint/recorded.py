"""The settings that a run was started with."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..settings.run_folder import MANIFEST_FILE
from .find import checkpoint_paths


def recorded_settings(run: Path) -> dict[str, Any]:
    """The settings in the newest checkpoint with a readable manifest; empty for a new run.

    They only replace values that were not given. `Checkpointer.restore` then compares all settings.
    """
    for path in reversed(checkpoint_paths(run)):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            settings: dict[str, Any] = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))["settings"]
            return dict(settings)
    return {}
