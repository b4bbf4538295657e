"""How a run is saved and continued; what may change in between."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from . import checkpoint
from .manifest import versions
from .metrics import RunLog
from .optimizer import load_optimizer_tensors, optimizer_tensors
from .run import Run, TrainState

LEFT_OUT_FILE = "left_out_steps.json"


def save(run: Run, state: TrainState) -> None:
    """Writes a checkpoint; all processes return when it is whole, or, with `async_save`, when it is copied.

    Raises:
        OSError: it, or the one before that was written in the background, could not be written.
    """
    finish_saving(run)
    scaler = run.accelerator.scaler  # only fp16 has one
    facts = {"progress": asdict(state) | {"scaler": scaler and scaler.state_dict()}, "frozen": run.frozen}
    tensors = optimizer_tensors(run.bare_model, run.bare_optimizers)
    keep = run.arguments.keep_checkpoints
    if not run.arguments.async_save:
        checkpoint.save(
            run.folder, state.step, model=run.bare_model, optimizer_tensors=tensors, manifest=facts,
            accelerator=run.accelerator, keep=keep,
        )  # fmt: skip
    elif run.accelerator.is_main_process:
        manifest = checkpoint.manifest_of(state.step, facts, run.accelerator.num_processes)
        weights, tensors = (
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in originals.items()}
            for originals in (checkpoint.named_weights(run.bare_model), tensors)
        )
        write = partial(checkpoint.save_alone, run.folder, run.bare_model, weights, tensors, manifest, keep)
        run.saving = Background(write)


class Background(threading.Thread):
    """A function that runs in a thread of its own, and whose error is raised where one waits for it."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Called by the thread."""
        try:
            self.function()
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        """Waits until the function has returned.

        Raises:
            BaseException: what the function has raised.
        """
        self.join()
        if self.error is not None:
            raise self.error


def finish_saving(run: Run) -> None:
    """Waits for a checkpoint that is being written in the background.

    Raises:
        OSError: it could not be written.
    """
    saving, run.saving = run.saving, None
    if saving is not None:
        saving.finish()


def resume(run: Run) -> TrainState:
    """Loads the newest whole checkpoint of the run, and cuts its logs back to that step.

    Raises:
        ValueError: settings that must not change have changed; all of them are listed.
    """
    # the first process reads all files and sets damaged checkpoints aside; the others believe it
    found = checkpoint.newest(run.folder) if run.accelerator.is_main_process else None
    if run.accelerator.num_processes > 1:
        (found,) = broadcast_object_list([found])
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
        RunLog.cut_back(run.folder, state.step or -1)  # a run that has saved nothing yet begins anew
    return state


def check_settings(run: Run, found: checkpoint.Checkpoint) -> None:
    """Refuses to continue with settings that would have given another run, unless they are allowed by name.

    Raises:
        ValueError: the settings that differ, with old and new value.
    """
    changes = changed_settings(found.manifest["frozen"], run.frozen)
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
        *((name, old, versions()[name]) for name, old in found.manifest["versions"].items()),
    ):
        if old != new:
            run.accelerator.print(
                f"{name}: was {old}, now {new}. The run continues with the same examples, but it is no longer "
                "bit-identical to an uninterrupted one."
            )


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """The dotted name of each setting that differs, and "name: was old, now new"."""
    saved, current = json.loads(json.dumps([saved, current]))
    changes: dict[str, str] = {}
    for name in sorted({*saved, *current}):
        old, new = saved.get(name), current.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes |= {f"{name}.{inner}": f"{name}.{line}" for inner, line in changed_settings(old, new).items()}
        elif old != new:
            changes[name] = f"{name}: was {old!r}, now {new!r}"
    return changes


def read_left_out(folder: Path) -> list[tuple[int, int]]:
    """The (first, last) steps, counted from 1, that `train.rollback` has asked to leave out."""
    path = folder / LEFT_OUT_FILE
    return [(first, last) for first, last in json.loads(path.read_text())] if path.exists() else []
