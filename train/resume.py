"""How a run is saved and continued; what may change in between."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from . import checkpoint
from .metrics import RunLog
from .optimizer import load_optimizer_tensors, optimizer_tensors
from .run import Run, TrainState

logger = logging.getLogger(__name__)

LEFT_OUT_FILE = "left_out_steps.json"


def save(run: Run, state: TrainState) -> None:
    """Writes a checkpoint; all processes return when it is whole."""
    scaler = run.accelerator.scaler  # only fp16 has one
    checkpoint.save(
        run.folder,
        state.step,
        model=run.bare_model,
        optimizer_tensors=optimizer_tensors(run.bare_model, run.bare_optimizers),
        manifest={"progress": asdict(state) | {"scaler": scaler and scaler.state_dict()}, "frozen": run.frozen},
        accelerator=run.accelerator,
        keep=run.arguments.keep_checkpoints,
    )


def resume(run: Run) -> TrainState:
    """Loads the newest whole checkpoint of the run, and cuts its logs back to that step.

    Raises:
        ValueError: settings that must not change have changed; all of them are listed.
    """
    with run.accelerator.main_process_first():  # it sets damaged checkpoints aside
        found = checkpoint.newest(run.folder)
    state = TrainState()
    if found is not None:
        check_settings(run, found)
        found.load_model(run.bare_model)
        load_optimizer_tensors(run.bare_model, run.bare_optimizers, found)
        progress = dict(found.manifest["progress"])
        if (scaler := progress.pop("scaler")) is not None:
            run.accelerator.scaler.load_state_dict(scaler)
        state = TrainState(**progress)
    run.left_out = read_left_out(run.folder)
    if run.accelerator.is_main_process:
        RunLog.cut_back(run.folder, state.step)
    return state


def check_settings(run: Run, found: checkpoint.Checkpoint) -> None:
    """Refuses to continue with settings that would have given another run, unless they are allowed by name.

    Raises:
        ValueError: the settings that differ, with old and new value.
    """
    changes = checkpoint.changed_settings(found.manifest["frozen"], run.frozen)
    allowed = set(run.arguments.allow_change)
    refused = [line for name, line in changes.items() if name.partition(".")[0] not in allowed]
    if refused:
        names = sorted({name.partition(".")[0] for name in changes})
        raise ValueError(
            f"{run.folder} was started with other settings:\n  "
            + "\n  ".join(refused)
            + "\nContinue it with the old ones, start a new run with another --output_dir, or allow the change with "
            f"--allow_change {' '.join(names)}."
        )
    for line in changes.values():
        run.accelerator.print(f"changed on request: {line}")
    for name, old, new in (
        ("processes", found.manifest["num_processes"], run.accelerator.num_processes),
        *((name, old, checkpoint.versions()[name]) for name, old in found.manifest["versions"].items()),
    ):
        if old != new:
            run.accelerator.print(
                f"{name}: was {old}, now {new}. The run continues with the same examples, but it is no longer "
                "bit-identical to an uninterrupted one."
            )


def read_left_out(folder: Path) -> list[tuple[int, int]]:
    """The (first, last) steps, counted from 1, that `train.rollback` has asked to leave out."""
    path = folder / LEFT_OUT_FILE
    return [(first, last) for first, last in json.loads(path.read_text())] if path.exists() else []
