"""How right is the forecast of `pretrain --minutes`? `python -m benchmarks.budget --minutes 0.5 2 5`

Trains on Python's own text, once per budget, and compares time and validation loss with what was expected.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train import quickstart
from train.settings.command import run_command
from train.settings.corpus import CorpusArguments
from train.settings.recipe import option_list, parse_recipe

from .report import print_table


@dataclass
class BudgetBenchmark:
    """Options of the benchmark."""

    minutes: list[float] = option_list("Budgets to try (default: 0.5 2 5).")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([BudgetBenchmark], argv, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder, size, corpus = Path(name), quickstart.SIZES["cpu"], CorpusArguments()
        quickstart.make_tokenizer(folder / "tokenizer", size, corpus)
        quickstart.make_data(folder, size, corpus)
        rows = [train(folder, minutes) for minutes in arguments.minutes or [0.5, 2.0, 5.0]]
    header = ["minutes", "chosen", "steps", "expected loss", "loss", "bits per byte", "expected seconds", "seconds"]
    print_table("Forecasts of pretrain --minutes on Python's own text", header, rows)


def train(folder: Path, minutes: float) -> list[str]:
    """Train in a process of its own; returns a row of the table."""
    run = folder / f"run-{minutes:g}"
    options = [f"--minutes={minutes}", f"--data_dir={folder / 'data'}", f"--output_dir={run}", "--max_eval_samples=128"]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "train.pretrain", *options], check=True)
    seconds = time.perf_counter() - started
    choice = json.loads((run / "budget.json").read_text())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min((record for record in records if "eval_loss" in record), key=lambda record: record["eval_loss"])
    shape = (
        choice["settings"]["config_overrides"].replace("num_hidden_layers", "layers").replace("hidden_size", "width")
    )
    return [
        f"{minutes:g}",
        ", ".join(shape.split(",")[:2]),
        f"{choice['settings']['max_steps']:,}",
        f"{choice['expected_loss']:.3f}",
        f"{best['eval_loss']:.3f}",
        f"{best['eval_bits_per_byte']:.3f}",
        f"{choice['expected_seconds']:.0f}",
        f"{seconds:.0f}",
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
