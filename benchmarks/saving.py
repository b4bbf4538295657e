"""Time to save a checkpoint, compared with `Accelerator.save_state` on the same disk: `python -m benchmarks.saving`.

Both write the weights and the state of both optimizers. Ours also flushes them to the disk and computes the SHA-256 of
every file; save_state does neither. In the background (`--async_save`) training only waits for a copy in memory. The
last column is relative to the training time between two checkpoints, with one in 250 steps (the default).
"""

import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM, ScratchGPTTokenizer
from train.checkpoint.checkpointer import Checkpointer
from train.checkpoint.state import TrainState
from train.data.sampler import StepSampler
from train.distributed.device import keep_freed_memory
from train.loop import train as loop
from train.loop.language_modeling import LanguageModeling
from train.loop.optimizers import build_optimizers
from train.loop.run import Run
from train.metrics.perplexity import token_byte_lengths
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe
from train.settings.training import TrainArguments

from .report import interleaved, print_table, seconds_of

BLOCK = 64
STEPS_PER_CHECKPOINT = 250


@dataclass
class SavingArguments:
    """Options of the benchmark."""

    config: str = option("Preset of the model.", "gpt2")
    rounds: int = option("Measured rounds.", 5)


class RandomRows:
    """Sequences of random tokens."""

    def __init__(self, vocab_size: int) -> None:
        self.ids = torch.randint(vocab_size, (64, BLOCK + 1))
        self.mean_length = BLOCK

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """`input_ids` and `shift_labels`, both (len(indices), BLOCK)."""
        rows = self.ids[torch.as_tensor(list(indices))]
        return {"input_ids": rows[:, :-1].contiguous(), "shift_labels": rows[:, 1:].contiguous()}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([SavingArguments], argv, description=__doc__ or "")
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        run, state = build(Path(name), arguments.config), TrainState()
        step = statistics.median(loop.train_step(run, TrainState(step=number)).seconds for number in range(3))
        candidates = {
            "Accelerator.save_state": lambda: save_state(run, Path(name) / "state"),
            "ours": lambda: save(run, state, in_background=False),
            "ours, in the background": lambda: save(run, state, in_background=True),
        }
        seconds = interleaved(candidates, arguments.rounds, warmup=1)
        megabytes = sum(path.stat().st_size for path in (Path(name) / "state").rglob("*")) / 1e6
    rows = [
        [name, f"{(median := statistics.median(values)):.2f}", f"{median / (STEPS_PER_CHECKPOINT * step):.2%}"]
        for name, values in seconds.items()
    ]
    print_table(
        f"A checkpoint of {arguments.config} with its optimizers, {megabytes:,.0f} MB; a step takes {step:.2f} s "
        f"(8 sequences of {BLOCK} tokens); median of {arguments.rounds}",
        ["", "training waits (s)", f"share of {STEPS_PER_CHECKPOINT} steps"],
        rows,
    )


def build(folder: Path, preset: str) -> Run:
    """A run on random tokens; its optimizers have state after one step."""
    tokenizer = ScratchGPTTokenizer.train_from_texts(["text"], 266, show_progress=False)
    config = ScratchGPTConfig.from_preset(preset)
    model = ScratchGPTForCausalLM(config)
    optimizers = build_optimizers(model, optimizer="muon", learning_rate=1e-3)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    checkpoints = Checkpointer(folder, accelerator, model, optimizers, settings={}, save_total_limit=1)
    prepared, *optimizers = accelerator.prepare(model, *optimizers)
    data = RandomRows(config.vocab_size)
    return Run(
        arguments=TrainArguments(str(folder), global_batch_size=8, micro_batch_size=8, save_total_limit=1),
        accelerator=accelerator,
        model=prepared,
        optimizers=optimizers,
        sampler=StepSampler(data, 8, 8, seed=0),
        validation=data,
        objective=LanguageModeling(tokenizer, token_byte_lengths(tokenizer), forward_kwargs={"skip_logits": True}),
        checkpoints=checkpoints,
    )


def save(run: Run, state: TrainState, *, in_background: bool) -> float:
    """Seconds that training waits. Background work is finished before the function returns."""
    state.step += 1
    run.checkpoints.async_save = in_background
    seconds = seconds_of(lambda: run.checkpoints.save(state))
    run.checkpoints.finish()
    return seconds


def save_state(run: Run, folder: Path) -> float:
    """Seconds that `Accelerator.save_state` needs to write a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    return seconds_of(lambda: run.accelerator.save_state(str(folder)))


if __name__ == "__main__":
    sys.exit(run_command(main))
