"""Find checkpoints in a run folder, and remove old ones. No tensor is read here."""

import logging
import math
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..settings.json_files import read_json
from ..settings.run_folder import CHECKPOINT_PREFIX, MANIFEST_FILE, REASON_FILE
from .manifest import STATE, DamagedError, verified_manifest
from .read import Checkpoint

logger = logging.getLogger(__name__)

NAME = re.compile(rf"{CHECKPOINT_PREFIX}\d+")  # not the copies that people make


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, or would be."""
    return run / f"{CHECKPOINT_PREFIX}{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX))


def checkpoint_paths(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    names = os.listdir(run) if run.exists() else []  # unlike `glob`, raises an error where it may not read the folder
    found = (run / name for name in names if NAME.fullmatch(name))
    return sorted((path for path in found if path.is_dir()), key=step_of)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all intact.

    A damaged one is renamed to `damaged-...`; the reason is logged and written into that folder.
    """
    for path in reversed(checkpoint_paths(run)):
        try:
            return Checkpoint(path, verified_manifest(path))
        except DamagedError as error:
            set_aside(path, "damaged", str(error))
    return None


def set_aside(path: Path, prefix: str, reason: str) -> Path:
    """Rename a folder to `{prefix}-...`; log the reason, and write it into the folder. Returns the new path."""
    aside = free_name(path.with_name(f"{prefix}-{path.name}"))
    logger.warning("%s is %s (%s): moved to %s", path, prefix, reason, aside.name)
    path.rename(aside)
    with suppress(OSError):  # a full disk
        (aside / REASON_FILE).write_text(f"{reason}\n", encoding="utf-8")
    return aside


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, among those saved right after an evaluation."""
    losses = {path: _loss_of(state) for path, state in _saved_states(run).items()}
    finite = [path for path, loss in losses.items() if math.isfinite(loss)]
    return min(finite, key=losses.__getitem__, default=None)


def _loss_of(state: dict[str, Any]) -> float:
    """The validation loss of the weights in a checkpoint; nan if they were not evaluated."""
    loss = state.get("eval_loss") if state.get("eval_step") == state["step"] else None
    return math.nan if loss is None else float(loss)


def last_good_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint whose last step was not skipped."""
    good = [path for path, state in _saved_states(run).items() if not state.get("skipped_in_a_row")]
    return good[-1] if good else None


def _saved_states(run: Path) -> dict[Path, dict[str, Any]]:
    """The `TrainState` of each checkpoint as a dictionary, oldest first; its other files are not verified."""
    states = {}
    for path in checkpoint_paths(run):
        with suppress(OSError, ValueError):  # skip damaged manifests
            states[path] = read_json(path / MANIFEST_FILE, {"state": STATE})["state"]
    return states


def prune(run: Path, save_total_limit: int) -> list[str]:
    """Remove all checkpoints except the newest `save_total_limit` and the one with the lowest validation loss."""
    best = best_checkpoint(run)
    old = [path for path in checkpoint_paths(run)[:-save_total_limit] if path != best]
    for path in old:
        trash = free_name(path.with_name(f".trash-{path.name}"))
        path.rename(trash)  # a kill while deleting must not leave half a checkpoint under its name
        remove(trash)
    return [path.name for path in old]


def remove_leftovers(run: Path, names: str = CHECKPOINT_PREFIX) -> None:
    """Remove checkpoints, or everything (""), that was being written or deleted when its process was killed."""
    for path in [*run.glob(f".tmp-{names}*"), *run.glob(f".trash-{names}*")]:
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder; of a link to one, only the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def free_name(path: Path) -> Path:
    """`path`, or the first of `path~2`, `path~3` ... that does not exist."""
    number = 1
    while os.path.lexists(path):
        number += 1
        path = path.with_name(f"{path.name.partition('~')[0]}~{number}")
    return path
