"""Muon compared with AdamW at equal wall time: `python -m benchmarks.optimizers --minutes 3`.

Both train the preset laptop on the quickstart's text, once for each of their learning rates. A few timed steps
determine how many steps fit into the time. Runs are not repeated; `--seed` changes initial weights and batches.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_scratch_gpt import ScratchGPTConfig
from train import pretrain, quickstart
from train.distributed.device import keep_freed_memory
from train.loop.forecast import measure_speed
from train.model.new import new_model
from train.settings.command import run_command
from train.settings.corpus import CorpusArguments
from train.settings.recipe import option, parse_recipe

from .report import print_table

CPU = torch.device("cpu")
BATCH = {"global_batch_size": 8, "micro_batch_size": 8, "max_eval_samples": 128, "min_lr_ratio": 0.0}
LEARNING_RATES = {"muon": (2e-3, 4e-3, 8e-3), "adamw": (5e-4, 1e-3, 2e-3, 4e-3)}


@dataclass
class OptimizerArguments:
    """Options of the benchmark."""

    minutes: float = option("Training time of each run.", 3.0)
    seed: int = option("Seed of initial weights and batches of every run.", 0)

    def __post_init__(self) -> None:
        if not 0 < self.minutes < float("inf"):
            raise ValueError(f"--minutes is {self.minutes}: it must be a positive number.")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([OptimizerArguments], argv, description=__doc__ or "")
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder, size, corpus = Path(name), quickstart.SIZES["cpu"], CorpusArguments()
        quickstart.make_tokenizer(folder / "tokenizer", size, corpus)
        quickstart.make_data(folder, size, corpus)
        base = {"config": "laptop", "data_dir": str(folder / "data"), "seed": arguments.seed} | BATCH
        rows = []
        for optimizer, learning_rates in LEARNING_RATES.items():
            rows.append(train(base | {"optimizer": optimizer}, folder, learning_rates, arguments.minutes))
    print_table(
        f"Optimizers, preset laptop, {arguments.minutes:g} minutes each, seed {arguments.seed}",
        ["", "peak learning rate", "steps", "seconds", "validation loss", "bits per byte"],
        [row for part in rows for row in part],
    )


def train(
    settings: dict[str, object], folder: Path, learning_rates: Sequence[float], minutes: float
) -> list[list[str]]:
    """Train for `minutes` at each learning rate; returns one table row per run."""
    model = new_model(ScratchGPTConfig.from_preset("laptop"), 0)
    speed = measure_speed(
        model, optimizer=str(settings["optimizer"]), micro_batch_size=8, block_size=256, precision="fp32", device=CPU
    )
    steps = max(20, int(60 * minutes / speed.step(1)))
    rows = []
    for rate in learning_rates:
        run = folder / f"{settings['optimizer']}_{rate:g}"
        changes = {"output_dir": run, "learning_rate": rate, "max_steps": steps, "warmup_steps": min(50, steps // 10)}
        only_at_the_end = {"eval_steps": 0, "save_steps": 0, "logging_steps": max(1, steps // 10)}
        options = settings | changes | only_at_the_end
        started = time.perf_counter()
        pretrain.main([f"--{name}={value}" for name, value in options.items() if value != []])
        seconds = time.perf_counter() - started
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        results = [f"{seconds:.0f}", f"{last['eval_loss']:.4f}", f"{last['eval_bits_per_byte']:.4f}"]
        rows.append([str(settings["optimizer"]), f"{rate:g}", str(steps), *results])
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
