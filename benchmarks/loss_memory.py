"""Memory of a training step with and without `skip_logits`: `python -m benchmarks.loss_memory`.

Without `skip_logits` the (tokens x vocabulary) logits, their gradient and the intermediate results of the loss are in
memory at the same time. The peer is transformers' LlamaForCausalLM with the same weights.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

from .report import in_new_process, peak_memory, print_table, seconds_of

SEQUENCE = 512  # tokens
NUM_STEPS = 3  # the optimizer has state from the second step on


@dataclass
class MemoryArguments:
    """Options of the benchmark."""

    tokens: int = option("Tokens per step, a multiple of 512.", 4096)
    hidden_size: int = option("Hidden size of the model.", 512)
    num_hidden_layers: int = option("Layers of the model.", 2)
    vocab_size: int = option("Vocabulary size.", 32768)

    def __post_init__(self) -> None:
        if self.tokens < SEQUENCE or self.tokens % SEQUENCE:
            raise ValueError(f"--tokens is {self.tokens}: it must be a multiple of {SEQUENCE}.")


@dataclass
class Measurement:
    """The result of one candidate."""

    megabytes_before: float  # peak with the model built, before the first step
    megabytes: float  # peak after all steps
    seconds: float  # fastest step
    losses: list[float]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([MemoryArguments], argv, description=__doc__ or "")
    candidates = {"LlamaForCausalLM": ("llama", False), "ours": ("ours", False), "ours, skip_logits": ("ours", True)}
    rows = []
    for name, (kind, skip_logits) in candidates.items():
        result = in_new_process(measure, arguments, kind, skip_logits)
        above = result.megabytes - result.megabytes_before
        losses = ", ".join(f"{loss:.5f}" for loss in result.losses)
        rows.append([name, f"{result.megabytes:,.0f}", f"{above:,.0f}", f"{result.seconds:.2f}", losses])
    logits = arguments.tokens * arguments.vocab_size * 4 / 2**20
    print_table(
        f"Memory of a training step, {arguments.tokens} tokens, hidden {arguments.hidden_size}, "
        f"{arguments.num_hidden_layers} layers, vocabulary {arguments.vocab_size}, float32; "
        f"the logits alone are {logits:,.0f} MB",
        ["", "peak (MB)", "above the loaded model (MB)", "seconds per step (fastest)", "loss of each step"],
        rows,
    )


def measure(arguments: MemoryArguments, kind: str, skip_logits: bool) -> Measurement:
    """Train a new model for a few steps on the CPU."""
    model = build_model(arguments, kind).train()
    torch.manual_seed(0)  # the same batch for every model
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(arguments.vocab_size, (arguments.tokens // SEQUENCE, SEQUENCE))
    forward_kwargs = {"skip_logits": True} if skip_logits else {}
    losses: list[float] = []

    def step() -> None:
        loss = model(input_ids=ids, labels=ids, use_cache=False, **forward_kwargs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    before = peak_memory()
    seconds = [seconds_of(step) for _ in range(NUM_STEPS)]
    return Measurement(before, peak_memory(), min(seconds), losses)


def build_model(arguments: MemoryArguments, kind: str) -> ScratchGPTForCausalLM | LlamaForCausalLM:
    """A model of either architecture, with the same weights."""
    shape: dict[str, Any] = {
        "vocab_size": arguments.vocab_size,
        "hidden_size": arguments.hidden_size,
        "intermediate_size": 3 * arguments.hidden_size,
        "num_hidden_layers": arguments.num_hidden_layers,
        "num_attention_heads": 8,
        "tie_word_embeddings": True,
    }
    model = (
        LlamaForCausalLM(LlamaConfig(**shape))
        if kind == "llama"
        else ScratchGPTForCausalLM(ScratchGPTConfig(qk_norm=False, **shape))
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 2:
                parameter.normal_(std=0.02)
    return model


if __name__ == "__main__":
    sys.exit(run_command(main))
