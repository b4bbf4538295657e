"""End a run: choose its final weights, and write the model folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoint.find import best_checkpoint
from ..checkpoint.manifest import DamagedError, verified_manifest
from ..checkpoint.read import Checkpoint
from ..checkpoint.state import TrainState
from ..distributed.errors import run_on_main
from ..distributed.heartbeat import SilentError
from ..settings.run_folder import MODEL_FOLDER
from .evaluation import evaluate, logged_evaluation
from .result import new_result
from .run import Run

COMPLETE, STOPPED = 0, 130  # exit codes of training commands


def load_best_weights(run: Run, state: TrainState) -> int:
    """Load the weights with the lowest validation loss; returns their step. All processes must call.

    Raises:
        ValueError: the checkpoint with these weights is damaged.
    """
    best = run_on_main(run.accelerator, lambda: verified_best(run))
    if best is None:
        run.accelerator.print("no checkpoint was saved right after an evaluation: using the last weights")
        return state.step
    found = Checkpoint(Path(best[0]), best[1])
    found.load_model(run.bare_model)
    run.accelerator.print(f"lowest validation loss: step {found.step}; using its weights")
    return found.step


def verified_best(run: Run) -> tuple[str, dict[str, object]] | None:
    """The path and manifest of the best checkpoint. The main process decides: others may see another state of the disk.

    Raises:
        ValueError: it is damaged.
    """
    best = best_checkpoint(run.folder)
    if best is None:
        return None
    try:
        return str(best), verified_manifest(best)
    except DamagedError as error:
        raise ValueError(
            f"{best} has the lowest validation loss, but it is damaged ({error}). Finish with the last weights with "
            "--load_best_model_at_end false, or train these weights again: scratch-gpt rollback to a checkpoint before."
        ) from None


def write_result(run: Run, state: TrainState, write: Callable[[Path, Path], None]) -> None:
    """Let the main process write `model/` and `adapter/`; all processes must call.

    Args:
        write: called with two paths; creates the folder of the model, and if there is one, that of the adapter.

    Raises:
        OSError: they could not be written.
    """
    record = {
        "step": state.step,
        "settings": run.checkpoints.settings,
        "num_processes": run.accelerator.num_processes,
    }

    def write_folders() -> None:
        with new_result(run.folder, record) as folders:
            write(*folders)

    try:
        run_on_main(run.accelerator, write_folders)
    except SilentError as silence:  # no hang: training is done, and nothing depends on this process any more
        print(f"{silence} while it writes the model: this process has nothing left to do and ends")


def final_evaluation(run: Run, step: int) -> dict[str, Any]:
    """The metrics of the final weights, those of `step`: from the log, or if it lacks them, evaluated again."""
    logged = run_on_main(run.accelerator, lambda: logged_evaluation(run.folder, step))
    return logged or {"step": step} | evaluate(run)


def report_complete(run: Run) -> int:
    """Say where the model is, and return the exit code."""
    run.accelerator.print(f"complete: the model is in {run.folder / MODEL_FOLDER}")
    return COMPLETE
