"""End a run: choose its final weights, and write the model folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint.find import best_checkpoint
from ..checkpoint.manifest import verified_manifest
from ..checkpoint.read import Checkpoint
from ..checkpoint.state import TrainState
from ..settings.run_folder import MODEL_FOLDER
from .run import Run

COMPLETE, STOPPED = 0, 130  # exit codes of training commands


def load_best_weights(run: Run, state: TrainState) -> int:
    """Load the weights with the lowest validation loss; returns their step. All processes must call."""
    best = best_checkpoint(run.folder)
    if best is None:
        run.accelerator.print("no checkpoint was saved right after an evaluation: using the last weights")
        return state.step
    found = Checkpoint(best, verified_manifest(best))
    found.load_model(run.bare_model)
    run.accelerator.print(f"lowest validation loss: step {found.step}; using its weights")
    return found.step


@contextmanager
def new_model_folder(run: Run) -> Iterator[Path]:
    """Yield the path of a folder that becomes `model/` if the block ends without an error. Main process only."""
    folder = run.folder / MODEL_FOLDER
    unfinished = folder.with_name(f".tmp-{MODEL_FOLDER}")
    yield unfinished
    unfinished.rename(folder)


def report_complete(run: Run) -> int:
    """Wait for the main process to write the model, say where it is, and return the exit code."""
    run.accelerator.wait_for_everyone()
    run.accelerator.print(f"complete: the model is in {run.folder / MODEL_FOLDER}")
    return COMPLETE
