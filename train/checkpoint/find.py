"""Find checkpoints in a run folder, and remove old ones. No tensor is read here."""

import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..settings.run_folder import CHECKPOINT_PREFIX, MANIFEST_FILE
from .manifest import DamagedError, verified_manifest
from .read import Checkpoint

logger = logging.getLogger(__name__)


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, or would be."""
    return run / f"{CHECKPOINT_PREFIX}{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX))


def checkpoint_paths(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    return sorted(path for path in run.glob(f"{CHECKPOINT_PREFIX}*") if path.is_dir())


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all intact.

    A damaged one is renamed to `damaged-...`; the reason is logged and written into that folder.
    """
    for path in reversed(checkpoint_paths(run)):
        try:
            return Checkpoint(path, verified_manifest(path))
        except DamagedError as error:
            aside = free_name(run / f"damaged-{path.name}")
            logger.warning("%s is damaged (%s): moved to %s", path, error, aside.name)
            path.rename(aside)
            (aside / "reason.txt").write_text(f"{error}\n", encoding="utf-8")
    return None


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, among those saved right after an evaluation."""
    losses = {
        path: float(state["eval_loss"])
        for path, state in _saved_states(run).items()
        if state.get("eval_loss") is not None and state.get("eval_step") == state.get("step")
    }
    return min(losses, key=losses.__getitem__, default=None)


def last_good_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint whose last step was not skipped."""
    good = [path for path, state in _saved_states(run).items() if not state.get("skipped_in_a_row")]
    return good[-1] if good else None


def _saved_states(run: Path) -> dict[Path, dict[str, Any]]:
    """The `TrainState` of each checkpoint as a dictionary, oldest first; its other files are not verified."""
    states = {}
    for path in checkpoint_paths(run):
        with suppress(OSError, ValueError, KeyError, TypeError):  # skip damaged manifests
            states[path] = dict(json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))["state"])
    return states


def prune(run: Path, save_total_limit: int) -> list[str]:
    """Remove all checkpoints except the newest `save_total_limit` and the one with the lowest validation loss."""
    best = best_checkpoint(run)
    old = [path for path in checkpoint_paths(run)[:-save_total_limit] if path != best]
    for path in old:
        trash = free_name(path.with_name(f".trash-{path.name}"))
        path.rename(trash)  # a kill while deleting must not leave half a checkpoint under its name
        shutil.rmtree(trash)
    return [path.name for path in old]


def remove_leftovers(run: Path) -> None:
    """Remove checkpoints that were being written or deleted when their process was killed."""
    for path in [*run.glob(f".tmp-{CHECKPOINT_PREFIX}*"), *run.glob(f".trash-{CHECKPOINT_PREFIX}*")]:
        shutil.rmtree(path)


def free_name(path: Path) -> Path:
    """`path`, or the first of `path~2`, `path~3` ... that does not exist."""
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.partition('~')[0]}~{number}")
    return path
