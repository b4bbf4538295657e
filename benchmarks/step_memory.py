"""Peak memory of a training step compared with GPT-2 and Llama of transformers: `python -m benchmarks.step_memory`.

A model of 124M parameters (12 layers, 768 wide, vocabulary 50257, context 1024) with AdamW, with and without gradient
checkpointing. On CUDA the steps run in bf16 autocast and are compiled, as `scratch-gpt pretrain` does there; on a CPU
in float32, not compiled. Every row is a fresh process. The memory is what was added since before the model was built:
weights, gradients, optimizer and step.
"""

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from train.model.recomputation import set_gradient_checkpointing
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

from .report import default_device, in_new_process, peak_memory, print_table, seconds_of

NUM_STEPS = 2  # the optimizer has state from the second step on
NO_DROPOUT: dict[str, Any] = {"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0}


@dataclass
class Shape:
    """Options of the benchmark; 0 chooses by the device."""

    micro_batch: int = option("Sequences per step (0: 32 on CUDA, 4 on a CPU).", 0)
    sequence: int = option("Tokens per sequence.", 1024)
    hidden_size: int = option("Hidden size; heads are 64 wide.", 768)
    num_hidden_layers: int = option("Number of layers.", 12)
    vocab_size: int = option("Vocabulary size.", 50257)

    def __post_init__(self) -> None:
        if self.hidden_size % 64:
            raise ValueError(f"--hidden_size is {self.hidden_size}: it must be a multiple of 64.")
        if not self.micro_batch:
            self.micro_batch = 32 if default_device().type == "cuda" else 4


@dataclass
class StepMemory:
    """The result of one candidate."""

    megabytes: float
    seconds: float  # fastest step
    loss: float  # of the last step


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (shape,) = parse_recipe([Shape], argv, description=__doc__ or "")
    compiled = default_device().type == "cuda"
    candidates: dict[str, tuple[str, str]] = {
        "transformers GPT-2": ("gpt2", "false"),
        "transformers Llama": ("llama", "false"),
        "ours, shape of GPT-2": ("ours, GPT-2", "false"),
        "ours, shape of Llama": ("ours, Llama", "false"),
        "ours, shape of GPT-2, selective checkpointing": ("ours, GPT-2", "selective"),
        "ours, shape of Llama, selective checkpointing": ("ours, Llama", "selective"),
        "transformers GPT-2, checkpointing": ("gpt2", "true"),
        "transformers Llama, checkpointing": ("llama", "true"),
        "ours, shape of GPT-2, checkpointing": ("ours, GPT-2", "true"),
        "ours, shape of Llama, checkpointing": ("ours, Llama", "true"),
    }
    results = {name: in_new_process(measure, shape, *settings) for name, settings in candidates.items()}
    gpt2, llama = results["transformers GPT-2"].megabytes, results["transformers Llama"].megabytes
    print_table(
        f"Memory of a training step, {shape.num_hidden_layers} layers, {shape.hidden_size} wide, vocabulary "
        f"{shape.vocab_size}, {shape.micro_batch} x {shape.sequence} tokens, "
        + ("bf16 autocast, compiled" if compiled else "float32, not compiled"),
        ["", "peak (MB)", "relative to GPT-2", "relative to Llama", "seconds per step (fastest)", "last loss"],
        [
            [
                name,
                f"{result.megabytes:,.0f}",
                f"{result.megabytes / gpt2:.2f}",
                f"{result.megabytes / llama:.2f}",
                f"{result.seconds:.3f}",
                f"{result.loss:.4f}",
            ]
            for name, result in results.items()
        ],
    )


def measure(shape: Shape, kind: str, checkpointing: str) -> StepMemory:
    """Train a new model for a few steps on random tokens; see `set_gradient_checkpointing`."""
    device = default_device()
    before = allocated_peak(device)
    step = training_step(shape, kind, device.type == "cuda", checkpointing)
    losses: list[torch.Tensor] = []
    seconds = [seconds_of(lambda: losses.append(step())) for _ in range(NUM_STEPS + 2 * (device.type == "cuda"))]
    return StepMemory(allocated_peak(device) - before, min(seconds), losses[-1].item())


def allocated_peak(device: torch.device) -> float:
    """Peak memory of this process on the device, in MB."""
    gc.collect()
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak_memory()


def training_step(shape: Shape, kind: str, compiled: bool, checkpointing: str = "false") -> Callable[[], torch.Tensor]:
    """One step with AdamW on the same random tokens each time; returns the loss."""
    device = default_device()
    torch.manual_seed(0)
    model, forward_kwargs = build_model(shape, kind)
    model = model.to(device).train()
    set_gradient_checkpointing(model, checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(shape.vocab_size, (shape.micro_batch, shape.sequence), device=device)
    forward: Any = torch.compile(model) if compiled else model

    def step() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss: torch.Tensor = forward(input_ids=ids, labels=ids, use_cache=False, **forward_kwargs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def build_model(shape: Shape, kind: str) -> tuple[Any, dict[str, Any]]:
    """A model in float32, and the arguments of its forward pass; no dropout, tied embeddings."""
    heads, inner = shape.hidden_size // 64, 8 * shape.hidden_size // 3  # inner: as many parameters as GPT-2's MLP
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": shape.sequence,
        "tie_word_embeddings": True,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(intermediate_size=inner, **sizes)), {}
    if kind == "ours, Llama":
        config = ScratchGPTConfig(intermediate_size=inner, qk_norm=False, **sizes)
        return ScratchGPTForCausalLM(config), {"skip_logits": True}
    if kind == "ours, GPT-2":
        config = ScratchGPTConfig.from_preset("gpt2", **sizes, intermediate_size=4 * shape.hidden_size, **NO_DROPOUT)
        return ScratchGPTForCausalLM(config), {"skip_logits": True}
    gpt2: dict[str, Any] = {"n_embd": shape.hidden_size, "n_layer": shape.num_hidden_layers, "n_head": heads}
    no_dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "n_positions": shape.sequence}
    return GPT2LMHeadModel(GPT2Config(vocab_size=shape.vocab_size, **gpt2, **no_dropout, **tokens)), {}


if __name__ == "__main__":
    sys.exit(run_command(main))
