"""Rewind a run to an earlier checkpoint, and skip steps whose data caused trouble.

    scratch-gpt rollback --output_dir runs/mine --to_step 4000 --skip_steps 4100 4110

Newer checkpoints are renamed, not deleted. Then continue the run with the same command as before. Training depends only
on the seed and the step, so without --skip_steps it would repeat itself (PaLM skipped batches in the same way:
https://huggingface.co/papers/2204.02311, section 5.1).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .checkpoint.find import checkpoint_paths, free_name, step_of
from .checkpoint.manifest import verified_manifest
from .loop.claim import lock
from .loop.skipped_steps import read_skip_windows, write_skip_windows
from .loop.status import write_status
from .settings.command import run_command
from .settings.recipe import option, option_list, parse_recipe, required
from .settings.run_folder import ADAPTER_FOLDER, MODEL_FOLDER


@dataclass
class RollbackArguments:
    """The run, the checkpoint to return to, and the steps to skip."""

    output_dir: str = required("Run folder.", is_path=True)
    to_step: int | None = option("Step of the checkpoint to return to (default: the newest one).")
    skip_steps: list[int] = option_list("First and last step to skip.")

    def __post_init__(self) -> None:
        if self.skip_steps and (len(self.skip_steps) != 2 or not 1 <= self.skip_steps[0] <= self.skip_steps[1]):
            given = " ".join(map(str, self.skip_steps))
            raise ValueError(f"--skip_steps {given}: it takes a first and a last step, counted from 1.")


def main(argv: Sequence[str] | None = None) -> None:
    """Rename newer checkpoints, and record the steps to skip."""
    (arguments,) = parse_recipe([RollbackArguments], argv, description=__doc__ or "")
    run = Path(arguments.output_dir)
    checkpoints = {step_of(path): path for path in checkpoint_paths(run)}
    if not checkpoints:
        raise ValueError(f"--output_dir {run} has no checkpoint to return to.")
    target = max(checkpoints) if arguments.to_step is None else arguments.to_step
    if target not in checkpoints:
        raise ValueError(
            f"--to_step {target} has no checkpoint; there are checkpoints of steps {', '.join(map(str, checkpoints))}."
        )
    if arguments.skip_steps and arguments.skip_steps[1] <= target:
        raise ValueError(
            f"--skip_steps {arguments.skip_steps[0]} {arguments.skip_steps[1]} is before step {target}, which is done: "
            "return to an earlier checkpoint with --to_step."
        )
    with lock(run):
        verified_manifest(checkpoints[target])
        outdated = [path for step, path in checkpoints.items() if step > target]
        if outdated or arguments.skip_steps:  # what the run has written will not be its result
            outdated += [path for path in (run / MODEL_FOLDER, run / ADAPTER_FOLDER) if path.exists()]
        for path in outdated:
            renamed = free_name(run / f"rolled-back-{path.name}")
            path.rename(renamed)
            print(f"renamed {path.name} to {renamed.name}")
        if arguments.skip_steps:
            windows = [*read_skip_windows(run), arguments.skip_steps]
            write_skip_windows(run, windows)
            print(f"skipped from now on: steps {', '.join(f'{first} to {last}' for first, last in windows)}")
        if outdated or arguments.skip_steps:
            write_status(run, "stopped", step=target, checkpoint=checkpoints[target].name)
    print(f"the run is at step {target}: continue it with the same command as before")


if __name__ == "__main__":
    sys.exit(run_command(main))
