"""Which learning rate suits which preset and optimizer? `python -m benchmarks.learning_rates`.

Each job pretrains a new model for a few hundred steps on the blocks of `--data_dir` (those of the quickstart), several
jobs at a time, and appends its validation loss to a file; run the same command again to continue. Finally it prints one
table per preset, batch and number of steps.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTTokenizer
from train.data.blocks import TOKENIZER_FOLDER, open_data
from train.distributed.device import build_accelerator
from train.loop.language_modeling import next_token_objective
from train.loop.run import Run, build_run
from train.model.new import new_model
from train.settings.command import run_command
from train.settings.finetuning import FinetuneArguments
from train.settings.recipe import option, option_list, parse_recipe

from .report import print_table
from .sweep import Job, compared, read_results, run_jobs

NUM_VALIDATION = 128  # blocks


@dataclass
class RateArguments:
    """Options of the benchmark."""

    data_dir: str = option("Folder written by scratch-gpt prepare_data.", "runs/quickstart/data", is_path=True)
    output_dir: str = option("Folder for the results.", "runs/learning_rates", is_path=True)
    processes: int = option("Jobs at the same time.", 2)
    seconds: float = option("Give up jobs that are not finished by then.", 3600.0)
    presets: list[str] = option_list("Presets (default: tiny laptop small gpt2).")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the jobs, and print the tables."""
    (arguments,) = parse_recipe([RateArguments], argv, description=__doc__ or "")
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "blocks.npz").exists():
        copy_blocks(Path(arguments.data_dir), folder)
    common = {"data_dir": str(folder), "tokenizer": str(Path(arguments.data_dir) / TOKENIZER_FOLDER)}
    jobs = [job | common for job in all_jobs() if job["preset"] in (arguments.presets or ALL_RATES)]
    run_jobs(build_run_of, jobs, folder / "results.jsonl", arguments.processes, arguments.seconds)
    print_tables(folder / "results.jsonl")


# Jobs
MUON_RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
ADAMW_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
ALL_RATES: dict[str, dict[str, tuple[float, ...]]] = {  # of each preset and optimizer
    "tiny": {"muon": (*MUON_RATES, 3.2e-2, 6.4e-2), "adamw": (*ADAMW_RATES, 8e-3, 1.6e-2)},
    "laptop": {"muon": (*MUON_RATES, 3.2e-2), "adamw": (*ADAMW_RATES, 8e-3)},
    "small": {"muon": MUON_RATES, "adamw": (2.5e-4, *ADAMW_RATES)},
    "gpt2": {"muon": MUON_RATES[:4], "adamw": ADAMW_RATES[:2]},
}
NUM_STEPS, BATCH = 200, 32


def all_jobs() -> list[Job]:
    """The jobs of every preset."""
    return [
        {"preset": preset, "optimizer": optimizer, "rate": rate, "steps": NUM_STEPS, "batch": BATCH}
        for preset, optimizers in ALL_RATES.items()
        for optimizer, rates in optimizers.items()
        for rate in rates
    ]


# One training, in another process
def build_run_of(job: Job) -> Run:
    """The run of a job, as `pretrain` builds it, without samples."""
    arguments = FinetuneArguments(  # so that the speed of the device is not measured each time
        output_dir=job["folder"],
        optimizer=job["optimizer"],
        learning_rate=job["rate"],
        global_batch_size=job["batch"],
        micro_batch_size=job["batch"],
        max_steps=job["steps"],
        eval_steps=0,
        max_eval_samples=0,
    )
    tokenizer = ScratchGPTTokenizer.from_pretrained(job["tokenizer"])
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = ScratchGPTConfig.from_preset(job["preset"], vocab_size=len(tokenizer), **special)
    model = new_model(config, arguments.seed)
    train, validation = read_blocks(Path(job["data_dir"]), min(256, config.max_position_embeddings))
    objective = next_token_objective(model, tokenizer, arguments)
    return build_run(arguments, build_accelerator("auto"), model, objective, train, validation, {})


# Data
@dataclass(frozen=True)
class Blocks:
    """Blocks of tokens in memory."""

    rows: np.ndarray  # (blocks, block size + 1)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mean_length(self) -> float:
        """Input tokens per block."""
        return self.rows.shape[1] - 1

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids` and `shift_labels`, both (len(indices), block size)."""
        rows = torch.from_numpy(self.rows[np.asarray(indices)].astype(np.int64))
        return {"input_ids": rows[:, :-1].contiguous(), "shift_labels": rows[:, 1:].contiguous()}


def copy_blocks(data_dir: Path, folder: Path) -> None:
    """Store the prepared blocks as arrays, which every process reads at once."""
    data = open_data(data_dir)
    some = [int(number * len(data.validation) / NUM_VALIDATION) for number in range(NUM_VALIDATION)]
    parts = data.train.rows(range(len(data.train))), data.validation.rows(some)
    train, validation = (rows.numpy().astype(np.uint16) for rows in parts)
    np.savez_compressed(folder / "blocks.npz", train=train, validation=validation)


@cache
def read_blocks(folder: Path, block_size: int) -> tuple[Blocks, Blocks]:
    """The blocks for training and validation; of longer ones the beginning."""
    with np.load(folder / "blocks.npz") as file:
        return Blocks(file["train"][:, : block_size + 1]), Blocks(file["validation"][:, : block_size + 1])


def print_tables(results: Path) -> None:
    """A table for each preset and length."""
    lines = read_results(results)
    names = ("preset", "steps", "batch")
    for key in dict.fromkeys(tuple(line["job"][name] for name in names) for line in lines):
        some = [line for line in lines if tuple(line["job"][name] for name in names) == key]
        print_table(
            "{}, {} steps of {} sequences".format(*key),
            [
                "optimizer",
                "learning rate",
                "updates",
                "validation loss",
                "above the best",
            ],
            compared(some, ("optimizer", "rate")),
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
