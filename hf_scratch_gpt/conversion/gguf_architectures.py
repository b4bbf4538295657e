"""The architectures of llama.cpp that compute our models, and what each of them cannot express."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ..configuration_scratch_gpt import ScratchGPTConfig
from . import gpt2, llama
from .families import UnsupportedModelError

FUSED = {"self_attn.q_proj": "attn_qkv", "self_attn.k_proj": "attn_qkv", "self_attn.v_proj": "attn_qkv"}


@dataclass(frozen=True, eq=False)
class Architecture:
    """A decoder that llama.cpp can compute.

    Args:
        name: in llama.cpp.
        requires: fields of our config, and the value that it can express.
        limits: further reasons why a config cannot be expressed.
        modules: our modules within a layer whose tensors have another name than in the other architectures.
        is_interleaved: rotary positions turn neighbors, not halves, so the rows of queries and keys are reordered.
        needs_biases: a model without biases gets zeros.
    """

    name: str
    requires: Mapping[str, Any]
    limits: Callable[[ScratchGPTConfig], list[str]]
    modules: Mapping[str, str] = field(default_factory=dict)
    is_interleaved: bool = False
    needs_biases: bool = False


def rope_limits(config: ScratchGPTConfig, requires: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """Why llama.cpp cannot express the rotary positions of a config.

    Args:
        requires: for entries of rope_parameters, the values that it can express.
    """
    rope = {"partial_rotary_factor": 1.0, **(config.rope_parameters or {})}
    return [
        f"rope_parameters[{name!r}] is {rope[name]!r}, but must be {either(values)}"
        for name, values in {**requires, "partial_rotary_factor": (1.0,)}.items()
        if name in rope and rope[name] is not None and rope[name] not in values
    ]


def either(values: tuple[Any, ...]) -> str:
    """Values as the end of a sentence: 'a', 'b' or 'c'."""
    *first, last = map(repr, values)
    return f"{', '.join(first)} or {last}" if first else last


def head_limits(config: ScratchGPTConfig) -> list[str]:
    """GPT-2 has no other width of a head than hidden_size / num_attention_heads."""
    assert config.head_dim is not None
    if config.head_dim * config.num_attention_heads == config.hidden_size:
        return []
    width = config.hidden_size / config.num_attention_heads
    return [f"head_dim is {config.head_dim}, but must be hidden_size / num_attention_heads ({width:g})"]


# The range of frequencies that YaRN scales: the only one that llama.cpp computes itself.
YARN_RANGE = {"beta_fast": (32,), "beta_slow": (1,), "truncate": (True,)}
ROTARY = {**llama.REQUIRED, "sliding_window": None}
LLAMA = Architecture(
    "llama",
    requires={**ROTARY, "qk_norm": False},
    limits=lambda config: rope_limits(config, {"rope_type": ("default", "linear", "yarn", "llama3")}),
    is_interleaved=True,
)
QWEN3 = Architecture(
    "qwen3",
    requires={**ROTARY, "qk_norm": True, "attention_bias": False, "mlp_bias": False},
    limits=lambda config: rope_limits(config, {"rope_type": ("default", "linear", "yarn"), **YARN_RANGE}),
)
GPT2 = Architecture(
    "gpt2",
    requires=gpt2.GPT2.export_requires,
    limits=head_limits,
    modules=FUSED,
    needs_biases=True,
)
ARCHITECTURES = (LLAMA, QWEN3, GPT2)


def architecture_of(config: ScratchGPTConfig) -> Architecture:
    """The architecture that computes a model.

    Raises:
        UnsupportedModelError: none does; the message names the fields that are in the way of the nearest ones.
    """
    distances = {architecture: tuple(map(len, limits(config, architecture))) for architecture in ARCHITECTURES}
    nearest = [architecture for architecture in ARCHITECTURES if distances[architecture] == min(distances.values())]
    if any(distances[nearest[0]]):
        reasons = [f"{each.name}: {'; '.join(chain(*limits(config, each)))}" for each in nearest]
        raise UnsupportedModelError(f"llama.cpp cannot compute this model. As {', or as '.join(reasons)}.")
    return nearest[0]


def limits(config: ScratchGPTConfig, architecture: Architecture) -> tuple[list[str], list[str]]:
    """Why an architecture cannot express a config: its parts, and their details."""
    parts = [
        f"{name} is {getattr(config, name)!r}, but must be {required!r}"
        for name, required in architecture.requires.items()
        if getattr(config, name) != required
    ]
    return parts, architecture.limits(config)
