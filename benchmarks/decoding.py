"""Speed of generating one sequence, token by token: `python -m benchmarks.decoding`.

Every token needs all weights once, so the bandwidth of the memory is the limit, and fewer bytes per weight are the way
beyond it. The table compares transformers' GPT-2 with a ScratchGPT of the same shape in float32, bfloat16 and with
`--quantization int8`, the last two also with `--torch_compile`, all in one process; on a GPU also a model of 1B. On a
CPU, a second table says how long compiling takes. With `--model`, a third one says what rounding the weights of that
model does to its perplexity.
"""

import math
import os
import pydoc_data.topics
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from train.model import int8
from train.model.compiled import compile_generation, compile_settings, compiler_problem
from train.model.inference import load_for_inference
from train.settings.checks import check_bounds
from train.settings.command import run_command
from train.settings.recipe import option, option_list, parse_recipe

from .report import default_device, in_new_process, interleaved, median_ratio, print_table, seconds_of

PEER = "transformers' GPT-2, bfloat16"
BASE = "ours, bfloat16"
GPU_PRESET = "llama3-1b"
PROMPT_TOKENS = 8
BANDWIDTHS = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.04e12}  # bytes per second, of the SXM cards' data sheets


@dataclass
class DecodingArguments:
    """Options of the benchmark."""

    presets: list[str] = option_list("Shapes of the models (default: gpt2, and on a GPU llama3-1b).")
    new_tokens: int = option("Tokens per measurement.", 64)
    rounds: int = option("Measurements of each row.", 3)
    torch_compile: bool | None = option("Rows with --torch_compile (default: on a GPU, or with a C++ compiler).")
    model: str | None = option("Language model for the perplexity: a folder (default: none).", is_path=True)
    text_tokens: int = option("Tokens of Python's documentation that its perplexity is measured on.", 8192)
    block_size: int = option("Tokens per window of that text.", 512)

    def __post_init__(self) -> None:
        check_bounds(self, {"new_tokens": 2, "rounds": 1, "text_tokens": 2, "block_size": 1})


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    (arguments,) = parse_recipe([DecodingArguments], argv, description=__doc__ or "")
    transformers_logging.set_verbosity_error()
    is_gpu = default_device().type != "cpu"
    can_compile = is_gpu or compiler_problem() is None
    has_compiled = can_compile if arguments.torch_compile is None else arguments.torch_compile
    presets = arguments.presets or ["gpt2", *([GPU_PRESET] if is_gpu else [])]
    for preset in presets:
        compare_speed(preset, arguments, has_compiled)
    if has_compiled and not is_gpu:
        measure_start(presets[0])
    if arguments.model is not None:
        compare_perplexity(arguments.model, arguments)


# Speed


def compare_speed(preset: str, arguments: DecodingArguments, has_compiled: bool) -> None:
    """Print tokens per second of each kind of model."""
    models = models_of(preset, has_compiled)
    candidates = {name: generator(model, name, arguments.new_tokens) for name, model in models.items()}
    seconds = interleaved(candidates, arguments.rounds, warmup=1)
    rows, limit = [], bandwidth()
    for name, times in seconds.items():
        rate = arguments.new_tokens / statistics.median(times)
        num_bytes = bytes_per_token(models[name])
        ratio = 1 / median_ratio(times, seconds[BASE])
        share = num_bytes * rate / limit if limit else None
        cells = [f"{num_bytes / 1e6:.0f}", f"{rate:.1f}", f"{num_bytes * rate / 1e9:.1f}", f"{ratio:.2f}"]
        rows.append([name, *cells, "" if share is None else f"{share:.0%}"])
    print_table(
        f"{preset}, one sequence, {arguments.new_tokens} new tokens, {arguments.rounds} interleaved rounds",
        ["", "weights (MB)", "tokens/s (median)", "GB/s of weights", f"relative to {BASE}", "of the card's bandwidth"],
        rows,
    )


def models_of(preset: str, has_compiled: bool) -> dict[str, PreTrainedModel]:
    """The models by their name in the table, with random weights."""
    config = ScratchGPTConfig.from_preset(preset)
    models: dict[str, PreTrainedModel] = {}
    if config.position_embedding_type == "learned":
        models[PEER] = new_model(GPT2LMHeadModel, gpt2_like(config), torch.bfloat16)
    models["ours, float32"] = new_model(ScratchGPTForCausalLM, config, torch.float32)
    models[BASE] = new_model(ScratchGPTForCausalLM, config, torch.bfloat16)
    models["ours, int8"] = new_model(ScratchGPTForCausalLM, config, torch.bfloat16)
    int8.quantize_model(models["ours, int8"])
    if has_compiled:
        models |= {f"{name}, compiled": models[name] for name in (BASE, "ours, int8")}
    return models


def gpt2_like(config: ScratchGPTConfig) -> GPT2Config:
    """transformers' GPT-2 with the shape of our model."""
    return GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.max_position_embeddings,
        n_embd=config.hidden_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
    )


def new_model(kind: Any, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A model with random weights that never ends a text."""
    torch.manual_seed(0)
    with default_device():
        model: PreTrainedModel = kind._from_config(config, dtype=dtype).eval()
    generation: Any = model.generation_config
    generation.eos_token_id, generation.pad_token_id = None, 0
    return model


def generator(model: Any, name: str, new_tokens: int) -> Callable[[], float]:
    """A function that generates a text and returns its seconds."""
    ids = torch.randint(model.config.vocab_size, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    if name.endswith("compiled"):
        settings |= {"cache_implementation": "static", "compile_config": compile_settings()}
    else:
        settings["disable_compile"] = True

    def generate() -> None:
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        if output.shape[1] != PROMPT_TOKENS + new_tokens:
            raise RuntimeError(f"{name} generated {output.shape[1] - PROMPT_TOKENS} tokens instead of {new_tokens}")

    return lambda: seconds_of(generate)


def measure_start(preset: str) -> None:
    """Print the seconds that --torch_compile takes before the first token, for int8, without and with cached code."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        rows = [[name, f"{in_new_process(seconds_to_compile, preset):.0f}"] for name in ("first start", "next start")]
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    print_table(f"{preset}, int8, --torch_compile true, before the first token", ["", "seconds"], rows)


def seconds_to_compile(preset: str) -> float:
    """Duration of `compile_generation`."""
    model = new_model(ScratchGPTForCausalLM, ScratchGPTConfig.from_preset(preset), torch.bfloat16)
    int8.quantize_model(model)
    return seconds_of(lambda: compile_generation(preset, model, first_id=0))


def bytes_per_token(model: Any) -> int:
    """Bytes of the weights that a step reads: of a table of embeddings, one row."""
    head = model.get_output_embeddings().weight
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding | int8.Int8Embedding)]
    skipped = {id(table) for table in tables if table is not head}
    return sum(
        parameter.numel() * parameter.element_size() for parameter in model.parameters() if id(parameter) not in skipped
    )


def bandwidth() -> float | None:
    """Bytes per second of the GPU's memory, if it is a known one."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((value for card, value in BANDWIDTHS.items() if card in name), None)


# Perplexity


def compare_perplexity(name: str, arguments: DecodingArguments) -> None:
    """Print the perplexity of a model with rounded weights, for both products of `Int8Linear`."""
    losses = {}
    few_rows = int8.FEW_ROWS
    for row, (dtype, quantization, limit) in {
        "float32": ("float32", None, few_rows),
        "bfloat16": ("bfloat16", None, few_rows),
        "int8, as for prompts": ("bfloat16", "int8", 0),
        "int8, as for single tokens": ("bfloat16", "int8", arguments.block_size),
    }.items():
        model, tokenizer = load_for_inference(name, dtype=dtype, quantization=quantization)
        ids = tokenizer("\n".join(pydoc_data.topics.topics.values()), return_tensors="pt", verbose=False)["input_ids"]
        int8.FEW_ROWS = limit
        losses[row] = loss_of(model, ids[0, : arguments.text_tokens], arguments.block_size)
    int8.FEW_ROWS = few_rows
    rows = [
        [row, f"{math.exp(loss):.3f}", f"{math.exp(loss - losses['bfloat16']) - 1:+.2%}"]
        for row, loss in losses.items()
    ]
    print_table(
        f"{name}, {arguments.text_tokens} tokens of Python's documentation", ["", "perplexity", "to bfloat16"], rows
    )


@torch.no_grad()
def loss_of(model: Any, ids: torch.Tensor, block_size: int) -> float:
    """The mean loss per token of ids, (length,), in windows that do not see each other."""
    total = 0.0
    for start in range(0, len(ids) - 1, block_size):
        window = ids[start : start + block_size + 1].to(model.device)
        logits = model(window[None, :-1], use_cache=False).logits[0].float()  # (block, vocab)
        total += float(nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return total / (len(ids) - 1)


if __name__ == "__main__":
    sys.exit(run_command(main))
