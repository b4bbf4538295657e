"""Options for loading a trained model, which `generate`, `chat`, `serve` and `evaluate` share."""

from dataclasses import dataclass
from typing import Literal

from .recipe import option


@dataclass
class InferenceArguments:
    """How the weights are kept in memory."""

    quantization: Literal["int8"] | None = option(
        "Round the weights to 8 bits when they are loaded: half the memory of bfloat16, and faster on a CPU (default: "
        "as they are stored)."
    )


@dataclass
class GenerationModelArguments(InferenceArguments):
    """How the weights are kept in memory, and how they are used to generate text."""

    torch_compile: bool = option(
        "Compile the model for generation, with a cache of fixed size: faster per token, but it takes up to a minute "
        "first.",
        False,
    )
