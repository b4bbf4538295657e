"""Claim a run folder for one training at a time, and set up its processes."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

from ..distributed.device import build_accelerator, keep_freed_memory
from ..distributed.errors import end_after_the_others, run_on_main
from ..distributed.heartbeat import heartbeat
from ..settings.durable import flush
from ..settings.run_folder import HEARTBEAT_FOLDER, LOCK_FILE
from ..settings.training import TrainArguments, check_allow_change
from .status import recorded_failure

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LONGEST_AFTER_ERROR = 5.0  # seconds


@contextmanager
def claimed(arguments: TrainArguments) -> Iterator[Accelerator]:
    """Yield the Accelerator of a training that alone uses its run folder; status.json says if it fails.

    Do the work in a function called from the block: the wrapper of a distributed model can hang in its destructor when
    the process group is gone.

    Raises:
        ValueError: settings that do not work here, a folder in use or of something else, a process that hangs.
        OSError: the folder cannot be written.
    """
    check_allow_change(arguments.allow_change, type(arguments))
    keep_freed_memory()
    transformers_logging.disable_progress_bar()  # of each save
    folder = Path(arguments.output_dir)
    accelerator = build_accelerator(
        arguments.precision, arguments.report_to, arguments.output_dir, arguments.ddp_timeout
    )
    with ExitStack() as claim:

        def claim_folder() -> None:
            claim.callback(release, lock(open_run_folder(folder)))
            shutil.rmtree(folder / HEARTBEAT_FOLDER, ignore_errors=True)  # of an earlier launch

        run_on_main(accelerator, claim_folder)
        with recorded_failure(folder, accelerator), heartbeat(folder, accelerator, arguments.ddp_timeout):
            try:
                yield accelerator
            except (OSError, ValueError):  # often an error of the main process that the others must still read
                with suppress(Exception):  # the error that is known matters more
                    end_after_the_others(accelerator, LONGEST_AFTER_ERROR)
                raise
            end_after_the_others(accelerator)
    accelerator.free_memory()
    accelerator.end_training()


def open_run_folder(folder: Path) -> Path:
    """Create the run folder, or recognize it as one, and check that it can be written; returns it.

    Raises:
        ValueError: it contains something else, or is a file.
        OSError: it cannot be written.
    """
    if folder.is_dir():
        found = {entry.name for entry in folder.iterdir()}
        # looks again: another process may be creating the run
        if found and LOCK_FILE not in found and not (folder / LOCK_FILE).exists():
            raise ValueError(f"--output_dir {folder} is not empty and not a run folder: choose a new folder.")
    elif folder.exists():
        raise ValueError(f"--output_dir {folder} is a file: choose a new folder.")
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK_FILE).touch()
    for parent in {folder.parent, *(path.parent for path in new)}:
        with suppress(PermissionError):  # to list it
            flush(parent)  # or a power loss could take the run folder with all its checkpoints
    return folder


def release(handle: TextIO) -> None:
    """Give up a claim. An error no longer matters: the outcome of the run is recorded, and the process ends."""
    with suppress(OSError):
        handle.close()


def lock(run: Path) -> TextIO:
    """Claim the run folder until the returned file is closed or the process ends.

    Raises:
        ValueError: another process is training in it.
    """
    handle = (run / LOCK_FILE).open("a")
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise ValueError(
            f"another process is training in {run}: wait for it, or choose another --output_dir."
        ) from None
    return handle
