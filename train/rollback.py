"""Take a run back to an earlier checkpoint, and leave out steps whose data did harm.

    python -m train.rollback --output_dir runs/mine --to_step 4000 --leave_out 4100 4110

What was newer is set aside, not deleted. Training is a function of (seed, step), so without leaving out steps the
same command would only repeat what has happened (PaLM did the same by hand, https://huggingface.co/papers/2204.02311,
section 5.1). Then continue with the same command as before.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import checkpoint
from .arguments import option, option_list, parse_recipe, required, run_script
from .manifest import verified_manifest
from .resume import LEFT_OUT_FILE, read_left_out
from .session import MODEL_FOLDER
from .status import write_status


@dataclass
class RollbackArguments:
    """Settings of train.rollback."""

    output_dir: str = required("Folder of the run.")
    to_step: int | None = option("Step of the checkpoint to go back to; without it the newest one.")
    leave_out: list[int] = option_list("First and last step whose examples are not trained on.")

    def __post_init__(self) -> None:
        """Refuse what is no window."""
        if self.leave_out and (len(self.leave_out) != 2 or not 1 <= self.leave_out[0] <= self.leave_out[1]):
            raise ValueError(f"--leave_out takes a first and a last step, counted from 1, not {self.leave_out}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Set newer checkpoints aside and write down what to leave out."""
    (arguments,) = parse_recipe([RollbackArguments], argv, description=__doc__ or "")
    run = Path(arguments.output_dir)
    steps = {int(path.name.removeprefix(checkpoint.PREFIX)): path for path in checkpoint.checkpoint_paths(run)}
    if not steps:
        raise ValueError(f"--output_dir {run} holds no checkpoint: there is nothing to go back to.")
    target = max(steps) if arguments.to_step is None else arguments.to_step
    if target not in steps:
        raise ValueError(
            f"--to_step {target} has no checkpoint; there are those of steps {', '.join(map(str, steps))}."
        )
    if arguments.leave_out and arguments.leave_out[1] <= target:
        raise ValueError(
            f"--leave_out {arguments.leave_out[0]} {arguments.leave_out[1]} lies before step {target}, which is done: "
            "go back further with --to_step."
        )
    with checkpoint.lock(run):
        verified_manifest(steps[target])
        newer = [path for step, path in steps.items() if step > target]
        if newer or arguments.leave_out:  # a finished model is no longer that of the run
            newer += [path for path in (run / MODEL_FOLDER,) if path.exists()]
        for path in newer:
            aside = checkpoint.free_name(run / f"rolled-back-{path.name}")
            path.rename(aside)
            print(f"set aside: {path.name} -> {aside.name}")
        if arguments.leave_out:
            windows = [*read_left_out(run), arguments.leave_out]
            (run / LEFT_OUT_FILE).write_text(json.dumps(windows) + "\n", encoding="utf-8")
            print(f"left out from now on: steps {', '.join(f'{first} to {last}' for first, last in windows)}")
        write_status(run, "stopped", step=target, checkpoint=steps[target].name)
    print(f"the run is at step {target}: continue it with the same command as before")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
