"""Compile the step that generates one token: faster per token, after seconds to compile it.

`generate` of transformers compiles that step if it has a cache of fixed size, and reads the prompt without compiling.
The size is compiled as a variable, so that one compilation serves prompts and answers of any length. Layers with a
sliding window are compiled twice: before and after their window is full.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import CompileConfig
from transformers.generation import GenerationMode

FIRST_CACHE_LENGTH = 61  # no other dimension has this size: torch.compile takes equal ones for one and the same
FIRST_TOKENS = 3


def compile_generation(place: str, model: Any, first_id: int) -> None:
    """Compile a model's step, and let all further calls of its `generate` use it.

    On a GPU, all calls must come from one thread: CUDA graphs belong to the thread that records them.

    Args:
        place: the option of the model and its value, for error messages.
        first_id: of a token that may begin a text.

    Raises:
        ValueError: the model, its quantization or its generation config does not support compilation, or the machine
            has no C++ compiler.
    """
    if reason := why_not(model):
        raise ValueError(f"--torch_compile true: {place} {reason}. Remove --torch_compile.")
    model.generation_config.cache_implementation = "static"
    model.generation_config.compile_config = compile_settings()
    print("compiling the model, which takes up to a minute", file=sys.stderr, flush=True)
    ids = torch.tensor([[first_id, first_id]], device=model.device)  # (1, 2)
    with compile_errors(place):
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=FIRST_TOKENS,
            min_new_tokens=FIRST_TOKENS,
            max_cache_len=FIRST_CACHE_LENGTH,
            pad_token_id=first_id,
        )


def why_not(model: Any) -> str | None:
    """What keeps a model from being compiled; None if nothing does."""
    generation, quantizer = model.generation_config, getattr(model, "hf_quantizer", None)
    if not model._can_compile_fullgraph:
        return f"is a {model.config.model_type} model, which transformers cannot compile"
    if quantizer is not None and not quantizer.is_compileable:
        return f"is quantized with {quantizer.quantization_config.quant_method}, which cannot be compiled"
    mode = generation.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return f"has a generation_config.json that asks for {mode.value}, which cannot be compiled"
    if generation.use_cache is False:
        return "has a generation_config.json with use_cache false, but a compiled step needs a cache"
    return compiler_problem() if model.device.type == "cpu" else None


def compiler_problem() -> str | None:
    """What keeps torch from compiling for a CPU; None if nothing does."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "cannot be compiled, because this machine has no C++ compiler: install g++ or clang++"
    return None


def compile_settings() -> CompileConfig:
    """One graph, for every length, on every device."""
    config: Any = CompileConfig(fullgraph=True, dynamic=True)
    config._compile_all_devices = True  # generate compiles on accelerators only otherwise
    return config  # type: ignore[no-any-return]


@contextmanager
def compile_errors(place: str) -> Iterator[None]:
    """Turn an error of the compiler into one sentence.

    Raises:
        ValueError: the model cannot be compiled.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        reason = reason_of(error)
        raise ValueError(
            f"--torch_compile true: {place} cannot be compiled ({reason}). Remove --torch_compile."
        ) from None


def reason_of(error: Exception) -> str:
    """The line of a long message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    of_compiler = [line for line in lines if "error: " in line]
    others = [line for line in lines if line and not line.endswith("raised:")]
    return next(iter(of_compiler + others), type(error).__name__)
