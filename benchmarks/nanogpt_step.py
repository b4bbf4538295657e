"""Time of a training step compared with nanoGPT: `python -m benchmarks.nanogpt_step --nanogpt FOLDER`.

Both train on random characters in one process, step by step in turn, in float32 and not compiled: nanoGPT with its
AdamW, ours with Muon and with AdamW alone. The first shape is that of nanoGPT's recipe for a CPU.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from train.distributed.device import keep_freed_memory
from train.loop.optimizers import build_optimizers
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe, required

from .report import interleaved, median_ratio, print_table, seconds_of

VOCAB_SIZE = 65
SHAPES = ((12, 64, 4, 4, 128), (16, 256, 6, 6, 384))  # sequences, characters, layers, heads, width


@dataclass
class StepArguments:
    """Options of the benchmark."""

    nanogpt: str = required("Folder of a clone of https://github.com/karpathy/nanoGPT.", is_path=True)
    steps: int = option("Measured steps of the small shape; the large one gets a fifth.", 60)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table per shape."""
    (arguments,) = parse_recipe([StepArguments], argv, description=__doc__ or "")
    if not Path(arguments.nanogpt, "model.py").exists():
        raise ValueError(f"--nanogpt {arguments.nanogpt} has no model.py: give the folder of a clone of nanoGPT.")
    sys.path.insert(0, arguments.nanogpt)
    keep_freed_memory()
    for shape, steps in zip(SHAPES, (arguments.steps, max(2, arguments.steps // 5)), strict=True):
        compare(shape, steps)


def compare(shape: tuple[int, ...], steps: int) -> None:
    """Time the candidates in one shape."""
    batch, length, layers, heads, width = shape
    candidates = {
        "nanoGPT, AdamW": nanogpt_step(shape),
        "ours, Muon": our_step(shape, "muon"),
        "ours, AdamW": our_step(shape, "adamw"),
    }
    seconds = interleaved(candidates, steps, warmup=2)
    base = seconds["nanoGPT, AdamW"]
    print_table(
        f"Training step, {batch} x {length} characters, {layers} layers, {heads} heads, {width} wide, float32",
        ["", "milliseconds (median)", "relative to nanoGPT (median of ratios)"],
        [[name, f"{1e3 * statistics.median(s):.1f}", f"{median_ratio(s, base):.2f}"] for name, s in seconds.items()],
    )


def stepper(loss_of: Callable[[Any, Any], Any], model: Any, optimizers: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """A function that makes one step on new random characters and returns its seconds."""
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        ids = torch.randint(VOCAB_SIZE, (shape[0], shape[1] + 1), generator=generator)
        loss = loss_of(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return lambda: seconds_of(step)


def nanogpt_step(shape: tuple[int, ...]) -> Any:
    """nanoGPT's model and optimizer."""
    from model import GPT, GPTConfig  # type: ignore[import-not-found]  # nanoGPT's

    _, length, layers, heads, width = shape
    size: dict[str, Any] = {
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "block_size": length,
        "vocab_size": VOCAB_SIZE,
    }
    model = GPT(GPTConfig(dropout=0.0, bias=False, **size))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    return stepper(lambda ids, targets: model(ids, targets)[1], model, [optimizer], shape)


def our_step(shape: tuple[int, ...], optimizer: str) -> Any:
    """Our default architecture with the optimizers of `pretrain`."""
    _, length, layers, heads, width = shape
    size: dict[str, Any] = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width}
    model = ScratchGPTForCausalLM(
        ScratchGPTConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=length, **size)
    ).train()
    optimizers = build_optimizers(model, optimizer=optimizer, learning_rate=1e-3)

    def loss_of(ids: torch.Tensor, targets: torch.Tensor) -> Any:
        return model(input_ids=ids, labels=targets, shift_labels=targets, use_cache=False, skip_logits=True).loss

    return stepper(loss_of, model, optimizers, shape)


if __name__ == "__main__":
    sys.exit(run_command(main))
