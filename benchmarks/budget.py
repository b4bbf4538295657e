"""How right is the forecast of `pretrain --minutes`, and does a choice by hand beat its choice?

    python -m benchmarks.budget --minutes 0.5 2 5
    python -m benchmarks.budget --minutes 0.5 2 --sweep

Trains on Python's own text, once per budget, and compares time and validation loss with what was expected. With
--sweep, settings around the choice are trained for the same time: other models, batches and learning rates.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from train import quickstart
from train.model.new import FAMILY, LADDER, changes_of, parse_overrides
from train.settings.command import run_command
from train.settings.corpus import CorpusArguments
from train.settings.recipe import option, option_list, parse_recipe
from train.settings.run_folder import BUDGET_FILE, METRICS_FILE, RECIPE_FILE

from .report import print_table

DIAL = "the dial"
MICRO_BATCH = 8  # sequences
HEADER = ["minutes", "chosen", "steps", "expected loss", "loss", "bits per byte", "expected seconds", "seconds"]
SWEEP_HEADER = ["setting", "model", "steps", "loss", "relative to the dial"]


@dataclass
class BudgetBenchmark:
    """Options of the benchmark."""

    minutes: list[float] = option_list("Budgets to try (default: 0.5 2 5).")
    sweep: bool = option("Also train with settings around each choice, for the same time.", False)
    settings: list[str] = option_list(
        "Settings of the sweep (default: all): smaller, larger, half-batch, double-batch, half-rates, double-rates."
    )
    data_dir: str | None = option("Prepared data to train on (default: Python's own text).", is_path=True)


@dataclass(frozen=True)
class Result:
    """A run that has ended."""

    choice: dict[str, Any]
    recipe: dict[str, Any] = field(repr=False)
    loss: float  # nats per token
    bits_per_byte: float
    seconds: float

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and width."""
        changes = parse_overrides(self.recipe["config_overrides"])
        return int(changes["num_hidden_layers"]), int(changes["hidden_size"])

    @property
    def model(self) -> str:
        """The shape as text."""
        return "{} x {}".format(*self.shape)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return int(self.recipe["max_steps"])

    @property
    def batch_size(self) -> int:
        """Sequences per step."""
        return int(self.recipe["global_batch_size"])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    (arguments,) = parse_recipe([BudgetBenchmark], argv, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = Path(arguments.data_dir) if arguments.data_dir else make_data(folder)
        text = "Python's own text" if arguments.data_dir is None else data.name
        rows = []
        for minutes in arguments.minutes or [0.5, 2.0, 5.0]:
            found = train(folder / f"dial-{minutes:g}", data, minutes)
            rows.append(row_of(minutes, found))
            if arguments.sweep:
                others = sweep(folder / f"sweep-{minutes:g}", data, minutes, found, arguments.settings)
                print_table(f"Settings around the choice for {minutes:g} minutes, {text}", SWEEP_HEADER, others)
        print_table(f"Forecasts of pretrain --minutes on {text}", HEADER, rows)


def make_data(folder: Path) -> Path:
    """Python's own text, prepared as in the quickstart."""
    size, corpus = quickstart.SIZES["cpu"], CorpusArguments()
    quickstart.make_tokenizer(folder / "tokenizer", size, corpus)
    quickstart.make_data(folder, size, corpus)
    return folder / "data"


def sweep(folder: Path, data: Path, minutes: float, found: Result, names: Sequence[str]) -> list[list[str]]:
    """Train with settings around a choice; returns rows of the table.

    Raises:
        ValueError: no such setting.
    """
    settings = settings_around(found)
    if unknown := set(names) - set(settings):
        raise ValueError(f"--settings {' '.join(sorted(unknown))}: choose from {', '.join(settings)}.")
    results = {DIAL: found}
    for name in names or settings:
        results[name] = train(folder / name, data, minutes, *settings[name])
    return [
        [name, one.model, f"{one.steps:,} x {one.batch_size}", f"{one.loss:.3f}", f"{one.loss / found.loss - 1:+.1%}"]
        for name, one in results.items()
    ]


def settings_around(found: Result) -> dict[str, list[str]]:
    """Options of `pretrain` for one change each: of the model, of the batch, and of the learning rates."""
    place, recipe, same = LADDER.index(found.shape), found.recipe, options_of_shape(found.shape)
    settings = {
        "smaller": options_of_shape(LADDER[place - 1]) if place else None,
        "larger": options_of_shape(LADDER[place + 1]) if place + 1 < len(LADDER) else None,
    }
    for name, factor in (("half", 0.5), ("double", 2)):
        batch = max(1, int(found.batch_size * factor))
        sizes = [f"--global_batch_size={batch}", f"--micro_batch_size={min(batch, MICRO_BATCH)}"]
        rates = [f"--{rate}={recipe[rate] * factor}" for rate in ("learning_rate", "matrix_learning_rate")]
        settings |= {f"{name}-batch": [*same, *sizes], f"{name}-rates": [*same, *rates]}
    return {name: options for name, options in settings.items() if options}


def options_of_shape(shape: tuple[int, int]) -> list[str]:
    """Options of `pretrain` for a model of the ladder."""
    return [f"--config={FAMILY}", f"--config_overrides={changes_of(*shape)}"]


def train(run: Path, data: Path, minutes: float, *options: str) -> Result:
    """Train in a process of its own."""
    command = [sys.executable, "-m", "train.pretrain", f"--minutes={minutes}", f"--data_dir={data}"]
    started = time.perf_counter()
    subprocess.run([*command, f"--output_dir={run}", "--max_eval_samples=128", *options], check=True)
    seconds = time.perf_counter() - started
    records = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    best = min((record for record in records if "eval_loss" in record), key=lambda record: record["eval_loss"])
    choice = json.loads((run / BUDGET_FILE).read_text())
    recipe = yaml.safe_load((run / RECIPE_FILE).read_text())
    return Result(choice, recipe, best["eval_loss"], best["eval_bits_per_byte"], seconds)


def row_of(minutes: float, found: Result) -> list[str]:
    """A row of the table of forecasts."""
    return [
        f"{minutes:g}",
        found.model,
        f"{found.steps:,} x {found.batch_size}",
        f"{found.choice['expected_loss']:.3f}",
        f"{found.loss:.3f}",
        f"{found.bits_per_byte:.3f}",
        f"{found.choice['expected_seconds']:.0f}",
        f"{found.seconds:.0f}",
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
