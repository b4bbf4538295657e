"""Seconds to the first compiled training step with empty caches: `python -m benchmarks.compile_time --nanogpt FOLDER`.

Every row is a fresh process with fresh cache folders for torch.compile and Triton. The step is that of
`benchmarks.step_memory`; on a CPU the model is smaller, and the compiler's own time is that of the C++ compiler.
"""

import os
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

from .report import default_device, in_new_process, print_table, seconds_of
from .step_memory import Shape, training_step

SMALL = Shape(micro_batch=8, sequence=512, hidden_size=64, num_hidden_layers=2)  # for a CPU: 4 chunks of logits


@dataclass
class CompileArguments:
    """Options of the benchmark."""

    nanogpt: str = option("Folder of a clone of nanoGPT, to measure it too.", "")

    def __post_init__(self) -> None:
        if self.nanogpt and not os.path.exists(os.path.join(self.nanogpt, "model.py")):
            raise ValueError(f"--nanogpt is {self.nanogpt}: that folder has no model.py; clone karpathy/nanoGPT.")


@dataclass
class CompileTime:
    """The result of one candidate."""

    first: float  # seconds
    cpu: float  # CPU seconds of the first step, with the compiler's processes
    later: float  # seconds of the fastest step after it


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([CompileArguments], argv, description=__doc__ or "")
    shape = Shape() if default_device().type == "cuda" else SMALL
    candidates = {
        "transformers GPT-2": "gpt2",
        "transformers Llama": "llama",
        "ours, shape of GPT-2, skip_logits": "ours, GPT-2",
        "ours, shape of Llama, skip_logits": "ours, Llama",
    }
    results = {name: in_new_process(measure, shape, kind) for name, kind in candidates.items()}
    if arguments.nanogpt:
        results["nanoGPT"] = in_new_process(measure, shape, "nanoGPT", arguments.nanogpt)
    print_table(
        f"First compiled training step, empty caches, {shape.num_hidden_layers} layers, {shape.hidden_size} wide, "
        f"vocabulary {shape.vocab_size}, {shape.micro_batch} x {shape.sequence} tokens",
        ["", "first step (s)", "CPU seconds of the first step", "later steps (s, fastest)"],
        [[name, f"{result.first:.1f}", f"{result.cpu:.1f}", f"{result.later:.3f}"] for name, result in results.items()],
    )


def measure(shape: Shape, kind: str, nanogpt: str = "") -> CompileTime:
    """The first and later steps of a new model."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["TRITON_CACHE_DIR"] = folder, os.path.join(folder, "triton")
        step = nanogpt_step(shape, nanogpt) if nanogpt else training_step(shape, kind, compiled=True)
        before = cpu_seconds()
        first = seconds_of(step)
        cpu = cpu_seconds() - before
        return CompileTime(first, cpu, min(seconds_of(step) for _ in range(3)))


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def nanogpt_step(shape: Shape, folder: str) -> Callable[[], None]:
    """A compiled training step of nanoGPT's `GPT`, as its train.py builds it."""
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    device = default_device()
    sizes: dict[str, Any] = {"n_layer": shape.num_hidden_layers, "n_head": shape.hidden_size // 64}
    config = GPTConfig(block_size=shape.sequence, vocab_size=shape.vocab_size, n_embd=shape.hidden_size, **sizes)
    model = GPT(config).to(device).train()
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), device.type)
    ids = torch.randint(shape.vocab_size, (shape.micro_batch, shape.sequence), device=device)
    compiled: Any = torch.compile(model)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            _, loss = compiled(ids, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    sys.exit(run_command(main))
