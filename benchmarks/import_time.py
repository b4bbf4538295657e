"""Import time of hf_scratch_gpt compared with transformers' GPT-2 classes: `python -m benchmarks.import_time`."""

import functools
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

from .report import interleaved, median_ratio, print_table, seconds_of

IMPORTS = (
    "from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast",
    "import hf_scratch_gpt",
    "import torch",
)


@dataclass
class ImportArguments:
    """Options of the benchmark."""

    rounds: int = option("Fresh processes per row.", 15)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([ImportArguments], argv, description=__doc__ or "")
    cpu_seconds: dict[str, list[float]] = {program: [] for program in IMPORTS}
    runs = {program: functools.partial(run, program, cpu_seconds[program]) for program in IMPORTS}
    wall_seconds = interleaved(runs, arguments.rounds, warmup=1)
    rows = [
        [f"`{program}`", *cells(wall_seconds, program), *cells(cpu_seconds, program, skip=1)] for program in IMPORTS
    ]
    print_table(
        f"Import in fresh processes, {arguments.rounds} interleaved rounds",
        ["", "seconds (median)", "relative to GPT-2 (median of ratios)", "CPU seconds (median)", "relative to GPT-2"],
        rows,
    )


def run(program: str, cpu_seconds: list[float]) -> float:
    """Wall time of a new interpreter that runs `program`; appends its CPU time, which depends less on other load."""
    # cache our compiled modules, like those of installed packages
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = seconds_of(lambda: subprocess.run([sys.executable, "-c", program], check=True, env=environment))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return seconds


def cells(seconds: dict[str, list[float]], program: str, skip: int = 0) -> list[str]:
    """Median, and median of the ratios to GPT-2, without the first `skip` rounds."""
    own, base = seconds[program][skip:], seconds[IMPORTS[0]][skip:]
    return [f"{statistics.median(own):.2f}", f"{median_ratio(own, base):.3f}"]


if __name__ == "__main__":
    sys.exit(run_command(main))
