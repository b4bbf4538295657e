"""What to say about a folder that is not a run folder."""

from pathlib import Path

from .run_folder import METRICS_FILE, MODEL_FOLDER, STATUS_FILE

MARKS = (METRICS_FILE, STATUS_FILE)  # each run folder has one of them, and no other folder


def check_run_folder(folder: Path) -> None:
    """Refuse a folder that is not a run folder.

    Raises:
        ValueError: what it is instead, and the folder that was probably meant.
    """
    if not folder.exists():
        raise ValueError(f"--output_dir {folder} does not exist: give the --output_dir of a training run.")
    if folder.is_dir() and (is_run(folder) or any(folder.glob("checkpoint-*"))):
        return
    inside = sorted({found.parent for mark in MARKS for found in folder.glob(f"*/{mark}")}) if folder.is_dir() else []
    above = next((parent for parent in folder.resolve().parents[:2] if is_run(parent)), None)
    if inside:
        hint = f"did you mean {' '.join(map(str, inside))}?"
    elif above:
        what = "the model" if folder.name == MODEL_FOLDER else "part"
        hint = f"it is {what} of the run {above}: give that folder."
    else:
        hint = "give the --output_dir of a training run."
    raise ValueError(f"--output_dir {folder} is not a run folder: {hint}")


def is_run(folder: Path) -> bool:
    """Whether it has a file that only run folders have."""
    return any((folder / mark).is_file() for mark in MARKS)
