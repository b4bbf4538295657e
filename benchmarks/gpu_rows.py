"""The rows of `benchmarks.gpu`: each a function that measures in a process of its own."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM

from .report import default_device, seconds_of

# Dense bf16 FLOP/s by the datasheet. The H200 has the compute units of the H100 (SXM).
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclass(frozen=True)
class Shape:
    """Model and batch of a training step."""

    preset: str
    vocab_size: int
    context: int
    micro_batch: int
    overrides: tuple[tuple[str, Any], ...] = ()
    warmup: int = 4
    steps: int = 16

    def config(self, **changes: Any) -> ScratchGPTConfig:
        """Ours, in this shape, without dropout."""
        values = dict(self.overrides) | {"vocab_size": self.vocab_size, "max_position_embeddings": self.context}
        return ScratchGPTConfig.from_preset(self.preset, **values | changes)


GPT2_SMALL = Shape("gpt2", 50304, 1024, 32)
MODERN = Shape("small", 50304, 1024, 32, (("hidden_size", 768), ("num_hidden_layers", 12), ("num_attention_heads", 12)))
LLAMA_1B = Shape("llama3-1b", 128256, 2048, 8, steps=8)
LOOP = replace(MODERN, vocab_size=8192, micro_batch=32)
TINY = Shape("tiny", 64, 32, 4, warmup=1, steps=2)


@dataclass(frozen=True)
class Row:
    """How to measure a row, and the seconds after which it is stopped."""

    measure: Callable[[bool, str | None], dict[str, Any]]
    seconds: float


# Training steps in a plain loop


def ours(shape: Shape, **changes: Any) -> nn.Module:
    """Our model."""
    return ScratchGPTForCausalLM(shape.config(**changes))


def gpt2_of_transformers(shape: Shape) -> nn.Module:
    """GPT-2 in the shape of ours."""
    config = shape.config()
    size: dict[str, Any] = {
        "n_embd": config.hidden_size, "n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads,
        "vocab_size": shape.vocab_size, "n_positions": shape.context,
    }  # fmt: skip
    size |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**size))


def llama_of_transformers(shape: Shape) -> nn.Module:
    """Llama in the shape of our modern model."""
    config = shape.config(qk_norm=False)
    names = [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
        *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
    ]
    return LlamaForCausalLM(LlamaConfig(**{name: getattr(config, name) for name in names}))


class NanoGPT(nn.Module):
    """nanoGPT's model with the arguments of a transformers model."""

    def __init__(self, shape: Shape, clone: str) -> None:
        super().__init__()
        sys.path.insert(0, clone)
        from model import GPT, GPTConfig  # type: ignore[import-not-found]  # nanoGPT's

        config = shape.config()
        size = {"n_embd": config.hidden_size, "n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads}
        self.gpt = GPT(
            GPTConfig(block_size=shape.context, vocab_size=shape.vocab_size, dropout=0.0, bias=False, **size)
        )

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss; labels are shifted here, as transformers does."""
        targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-1)
        return self.gpt(input_ids, targets)[1]


def step_row(
    build: Callable[[Shape], nn.Module], shape: Shape, is_tiny: bool, **forward_arguments: bool
) -> dict[str, Any]:
    """Time compiled training steps: forward, backward and AdamW."""
    shape, device = TINY if is_tiny else shape, default_device()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    with device:
        model = build(shape).train()
        ids = torch.randint(shape.vocab_size, (shape.micro_batch, shape.context))
    compiled = compile_model(model, is_tiny)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    cast = torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else nullcontext()

    def step() -> None:
        with cast:
            output = compiled(input_ids=ids, labels=ids, **forward_arguments)
        (output if isinstance(output, Tensor) else output.loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    first = seconds_of(step)
    seconds = timed(step, shape.warmup, shape.steps)
    return speed_of(model, shape, shape.micro_batch, seconds) | {"cold_first_step_s": round(first, 1)} | peak_memory()


def compile_model(model: nn.Module, is_tiny: bool) -> Any:
    """The model, compiled; without a C++ compiler in the test of the benchmark."""
    return torch.compile(model, backend="aot_eager" if is_tiny else "inductor")


def timed(step: Callable[[], object], warmup: int, steps: int) -> float:
    """Seconds per step: the GPU is waited for only at the end, as training does."""
    for _ in range(warmup):
        step()
    return seconds_of(lambda: [step() for _ in range(steps)]) / steps


def speed_of(model: nn.Module, shape: Shape, batch: int, seconds: float) -> dict[str, Any]:
    """Tokens per second, and the share of the card's peak that its matrix products take."""
    config = shape.config()
    head = shape.vocab_size * config.hidden_size
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in tables)
    is_tied = not any(p.numel() == head and p.ndim == 2 and id(p) not in tables for p in model.parameters())
    attention = 12 * config.num_hidden_layers * shape.context * config.hidden_size
    flops = 6 * (matrices + head * is_tied) + attention
    speed = batch * shape.context / seconds
    result = {"tokens_per_second": round(speed), "step_ms": round(1e3 * seconds, 1)}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((peak for card, peak in PEAKS.items() if card in name), None)
    return result | ({"mfu": round(speed * flops / peak, 3)} if peak else {})


def peak_memory() -> dict[str, Any]:
    """Peak GiB of the card; empty without one."""
    return {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1)} if torch.cuda.is_available() else {}


def ours_gpt2(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """A step of our model in the shape of GPT-2 (124M)."""
    return step_row(ours, GPT2_SMALL, is_tiny, skip_logits=True, use_cache=False)


def ours_modern(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """A step of our default architecture."""
    return step_row(ours, MODERN, is_tiny, skip_logits=True, use_cache=False)


def ours_1b(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """A step of the preset llama3-1b."""
    return step_row(ours, LLAMA_1B, is_tiny, skip_logits=True, use_cache=False)


def gpt2(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """A step of transformers' GPT-2 (124M)."""
    return step_row(gpt2_of_transformers, GPT2_SMALL, is_tiny, use_cache=False)


def llama(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """A step of transformers' Llama in our default shape."""
    return step_row(llama_of_transformers, MODERN, is_tiny, use_cache=False)


def nanogpt(is_tiny: bool, clone: str | None) -> dict[str, Any]:
    """A step of nanoGPT's GPT-2 (124M)."""
    return step_row(lambda shape: NanoGPT(shape, clone or ""), GPT2_SMALL, is_tiny)
