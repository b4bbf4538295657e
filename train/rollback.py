"""Take a run back to an earlier checkpoint, and leave out steps whose data did harm.

    scratch-gpt rollback --output_dir runs/mine --to_step 4000 --skip_steps 4100 4110

What was newer is set aside, not deleted. Training is a function of (seed, step), so without leaving out steps the
same command would only repeat what has happened (PaLM did the same by hand, https://huggingface.co/papers/2204.02311,
section 5.1). Then continue with the same command as before.
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
from .settings.run_folder import MODEL_FOLDER


@dataclass
class RollbackArguments:
    """Settings of train.rollback."""

    output_dir: str = required("Folder of the run.")
    to_step: int | None = option("Step of the checkpoint to go back to; without it the newest one.")
    skip_steps: list[int] = option_list("First and last step whose examples are not trained on.")

    def __post_init__(self) -> None:
        """Refuse what is no window."""
        if self.skip_steps and (len(self.skip_steps) != 2 or not 1 <= self.skip_steps[0] <= self.skip_steps[1]):
            raise ValueError(f"--skip_steps takes a first and a last step, counted from 1, not {self.skip_steps}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Set newer checkpoints aside and write down what to leave out."""
    (arguments,) = parse_recipe([RollbackArguments], argv, description=__doc__ or "")
    run = Path(arguments.output_dir)
    steps = {step_of(path): path for path in checkpoint_paths(run)}
    if not steps:
        raise ValueError(f"--output_dir {run} holds no checkpoint: there is nothing to go back to.")
    target = max(steps) if arguments.to_step is None else arguments.to_step
    if target not in steps:
        raise ValueError(
            f"--to_step {target} has no checkpoint; there are those of steps {', '.join(map(str, steps))}."
        )
    if arguments.skip_steps and arguments.skip_steps[1] <= target:
        raise ValueError(
            f"--skip_steps {arguments.skip_steps[0]} {arguments.skip_steps[1]} lies before step {target}, which is done: "
            "go back further with --to_step."
        )
    with lock(run):
        verified_manifest(steps[target])
        newer = [path for step, path in steps.items() if step > target]
        if newer or arguments.skip_steps:  # a finished model is no longer that of the run
            newer += [path for path in (run / MODEL_FOLDER,) if path.exists()]
        for path in newer:
            aside = free_name(run / f"rolled-back-{path.name}")
            path.rename(aside)
            print(f"set aside: {path.name} -> {aside.name}")
        if arguments.skip_steps:
            windows = [*read_skip_windows(run), arguments.skip_steps]
            write_skip_windows(run, windows)
            print(f"left out from now on: steps {', '.join(f'{first} to {last}' for first, last in windows)}")
        write_status(run, "stopped", step=target, checkpoint=steps[target].name)
    print(f"the run is at step {target}: continue it with the same command as before")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
