"""All rows of docs/performance.md for a CPU: `python -m benchmarks.cpu --text input.txt --nanogpt nanoGPT`.

Runs the benchmarks in `ROWS` one after the other, each in its own process. Their tables are appended to a JSON Lines
file, and `benchmarks.picture` draws a picture with the same name. Run nothing else on the machine meanwhile.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.settings.command import run_command
from train.settings.recipe import option, option_list, parse_recipe, required

ROWS = {
    "tiny_shakespeare": ["--text", "{text}", "--nanogpt", "{nanogpt}"],
    "nanogpt_step": ["--nanogpt", "{nanogpt}"],
    "preparation": [],
    "decoding": [],
    "step_memory": [],
    "compile_time": ["--nanogpt", "{nanogpt}"],
    "budget": ["--minutes", "0.5", "2", "5"],
}


@dataclass
class CpuArguments:
    """Options of the benchmark."""

    text: str = required("Tiny Shakespeare, a file of 1,115,394 characters.", is_path=True)
    nanogpt: str = required("Folder of a clone of https://github.com/karpathy/nanoGPT.", is_path=True)
    rows: list[str] = option_list("Benchmarks to run (default: all).")
    output: str = option("File for the tables, as JSON.", "runs/cpu.jsonl", is_path=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns how many failed."""
    (arguments,) = parse_recipe([CpuArguments], argv, description=__doc__ or "")
    if unknown := set(arguments.rows) - ROWS.keys():
        raise ValueError(f"--rows {' '.join(sorted(unknown))}: unknown. Known: {', '.join(ROWS)}.")
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"BENCHMARK_JSON": str(Path(arguments.output).resolve())}
    commands = [
        [name, *(text.format(text=arguments.text, nanogpt=arguments.nanogpt) for text in ROWS[name])]
        for name in arguments.rows or ROWS
    ]
    picture = str(Path(arguments.output).with_suffix(".png"))
    commands.append(["picture", "--cpu", arguments.output, "--output", picture])
    failed = 0
    for name, *options in commands:
        print(f"$ python -m benchmarks.{name} {' '.join(options)}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        failed += subprocess.run(command, env=environment).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(run_command(main))
