"""Kill commands at random moments and run them again: `python -m benchmarks.faults.kills`.

Each run is killed (SIGKILL) until it is done: at a random moment, or while a checkpoint or the model is being written.
With two processes, half of the kills after the start hit only one of them, and the other must end by itself. All files
are then compared with those of an uninterrupted run.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

from ..report import print_table
from .disk import Tree, read_tree, write_tree
from .operations import Inputs, Operation, differences, operation
from .trial import Trial, finish, import_everything, kill, run, start

PHASES = ("start", "training", "save", "model")
MAX_KILLS = 4  # of one run
NAMES = ("pretrain", "async_save", "lora", "classifier")


@dataclass
class KillArguments:
    """How many kills."""

    kills: int = option("Kills of runs of one process, over all commands.", 300)
    pair_kills: int = option("Kills of pretraining runs of two processes (DDP).", 60)
    seed: int = option("Seed of the moments.", 0)


@dataclass
class Kills:
    """The kills of one command.

    Args:
        num_processes: of each run.
    """

    operation: Operation
    num_processes: int
    dice: random.Random
    phases: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    runs: int = 0
    hung: int = 0

    def trial(self) -> Trial:
        """One start of the command."""
        return self.operation.trial(num_processes=self.num_processes)

    def record(self) -> None:
        """Run it twice without kills.

        Raises:
            ValueError: the two differ, or one fails.
        """
        trees, seconds = [], []
        for _ in range(2):
            write_tree(self.operation.folder, self.operation.before)
            started = time.monotonic()
            ending = run(self.trial())
            seconds.append(time.monotonic() - started)
            if any(ending.codes):
                raise ValueError(f"{self.operation.name} fails without kills:\n{ending.text[-3000:]}")
            trees.append(read_tree(self.operation.folder))
        if problem := differences(*trees):
            raise ValueError(f"{self.operation.name}: two runs without faults differ: {problem}")
        self.expected: Tree = trees[0]
        self.seconds = max(seconds)

    def kill_often(self, kills: int) -> None:
        """Start and kill runs until there were so many kills."""
        while sum(self.phases.values()) < kills:
            write_tree(self.operation.folder, self.operation.before)
            self.runs += 1
            for _ in range(self.dice.randint(1, MAX_KILLS)):
                if not self._killed():
                    break
            ending = run(self.trial())
            problem = differences(self.expected, read_tree(self.operation.folder))
            if any(ending.codes) or problem:
                self.problems.append(problem or f"exit codes {ending.codes}: {ending.text.strip()[-300:]}")
                print(f"{self.operation.name}: {self.problems[-1]}", flush=True)

    def _killed(self) -> bool:
        """Start the command and kill it; False if it has ended before."""
        trial, started = self.trial(), time.time()
        children = start(trial)
        self._wait_for_the_moment(started)
        phase = self._phase(trial, started)
        # before the processes have met, the other one would wait for minutes; a launcher ends it
        is_one = phase != "start" and self.dice.random() < 0.5
        hit = [self.dice.choice(children)] if is_one else children
        kill(hit)
        killed = time.monotonic()
        ending = finish(trial, children)
        if time.monotonic() - killed > 60:
            self.hung += 1
        if not any(code < 0 for code in ending.codes):
            return False
        self.phases[phase] += 1
        return True

    def _wait_for_the_moment(self, started: float) -> None:
        """Until a random moment, or shortly after this launch has made a temporary folder."""
        deadline = time.monotonic() + self.dice.uniform(0.1, 1.1) * self.seconds
        name = self.dice.choice(["", ".tmp-checkpoint-*", ".tmp-model", ".tmp-model"])
        output = self.operation.folder / self.operation.output
        while time.monotonic() < deadline + (self.seconds if name else 0):
            if name and any(is_newer(path, started) for path in output.glob(name)):
                time.sleep(self.dice.uniform(0, 0.1))
                return
            time.sleep(0.002)

    def _phase(self, trial: Trial, started: float) -> str:
        """What the processes are doing; an earlier kill may have left the files of a later phase."""
        output = self.operation.folder / self.operation.output
        status = output / "status.json"
        if not is_newer(status, started):
            return "start"
        if (output / ".tmp-model").exists() or (output / "model").exists():
            return "model"
        if any(output.glob(".t*-checkpoint-*")):
            return "save"
        return "training"


def is_newer(path: Path, moment: float) -> bool:
    """Whether a file or folder exists and was changed after a moment."""
    with suppress(OSError):  # removed in the meantime
        return path.stat().st_mtime > moment
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; returns 1 if a run ends with other files."""
    (arguments,) = parse_recipe([KillArguments], argv, description=__doc__ or "")
    import_everything()
    dice, rows, num_problems = random.Random(arguments.seed), [], 0
    with tempfile.TemporaryDirectory(prefix="kills-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        inputs = Inputs(Path(name) / "inputs")
        operations = [operation(one, Path(name), inputs) for one in NAMES]
        share = -(-arguments.kills // len(operations))
        plan = [(one, 1, share) for one in operations] + [(operations[0], 2, arguments.pair_kills)]
        for one, num_processes, kills in plan:
            if not kills:
                continue
            some = Kills(one, num_processes, dice)
            some.record()
            some.kill_often(kills)
            num_problems += len(some.problems)
            title = one.name + (", two processes" if num_processes > 1 else "")
            counts = [some.phases[phase] for phase in PHASES]
            rows.append([title, some.runs, sum(counts), *counts, some.hung, len(some.problems)])
            print(" | ".join(map(str, rows[-1])), flush=True)
    header = ["command", "runs", "kills", *(f"at {phase}" for phase in PHASES), "hung", "runs with other files"]
    print_table("Kills at random moments", header, rows)
    return int(num_problems > 0)


if __name__ == "__main__":
    sys.exit(run_command(main))
