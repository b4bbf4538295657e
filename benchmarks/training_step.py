"""Speed of a training step compared with transformers' LlamaForCausalLM: `python -m benchmarks.training_step`.

It prints two tables. Network: both models with the same weights and batches in one process, float32, not compiled,
AdamW. Training: tokens per second of scratch-gpt pretrain with default settings, compared with a plain float32 loop
around Llama; each runs in fresh processes, because the settings of the memory allocator apply to a whole process.
"""

import functools
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM, ScratchGPTTokenizer
from train import prepare_data, train_tokenizer
from train.checkpoint.state import TrainState
from train.data.blocks import TOKENIZER_FOLDER, open_data
from train.distributed.device import build_accelerator, keep_freed_memory, resolve_precision
from train.loop import train as loop
from train.loop.language_modeling import LanguageModeling
from train.pretrain import build_pretraining
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe
from train.settings.training import DataArguments, ModelArguments, TrainArguments

from .report import default_device, in_new_process, interleaved, median_ratio, print_table, seconds_of

WARMUP_STEPS = 2
SHAPE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_parameters"),
)


@dataclass
class StepArguments:
    """Options of the benchmark."""

    part: Literal["network", "training", "both"] = option("Table to measure.", "both")
    preset: str = option("Shape of the models.", "laptop")
    vocab_size: int = option("Vocabulary size.", 4096)
    batch_size: int = option("Sequences per step.", 16)
    block_size: int = option("Tokens per sequence.", 256)
    rounds: int = option("Rounds of the training part; each starts one process per row.", 3)
    steps: int = option("Measured steps per candidate, in each round.", 8)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    (arguments,) = parse_recipe([StepArguments], argv, description=__doc__ or "")
    if arguments.part != "training":
        compare_networks(arguments)
    if arguments.part != "network":
        compare_training(arguments)


# The network


def compare_networks(arguments: StepArguments) -> None:
    """Time forward, backward and AdamW of models with the same initial weights and batches."""
    llama = llama_like(arguments)
    candidates = {
        "LlamaForCausalLM": stepper(llama, arguments),
        "ours": stepper(ours_like(llama), arguments),
        "ours, skip_logits": stepper(ours_like(llama), arguments, skip_logits=True),
    }
    losses: dict[str, list[float]] = {name: [] for name in candidates}
    timers = {name: timed(step, losses[name]) for name, step in candidates.items()}
    seconds = interleaved(timers, arguments.steps, WARMUP_STEPS)
    base = seconds["LlamaForCausalLM"]
    rows = [
        [name, f"{statistics.median(times):.3f}", f"{median_ratio(times, base):.3f}", f"{losses[name][-1]:.5f}"]
        for name, times in seconds.items()
    ]
    print_table(
        f"Training step, {shape(arguments, llama)}, float32, AdamW, one process, {arguments.steps} interleaved steps",
        ["", "seconds per step (median)", "relative to Llama (median of ratios)", "loss of the last step"],
        rows,
    )


def llama_like(arguments: StepArguments) -> LlamaForCausalLM:
    """A new Llama with the shape of our preset, on the default device."""
    ours = ScratchGPTConfig.from_preset(arguments.preset, vocab_size=arguments.vocab_size, qk_norm=False)
    torch.manual_seed(0)
    with default_device():
        return LlamaForCausalLM(LlamaConfig(**{name: getattr(ours, name) for name in SHAPE}))


def ours_like(llama: LlamaForCausalLM) -> ScratchGPTForCausalLM:
    """Our model with the shape and the weights of `llama`."""
    shape = {name: getattr(llama.config, name) for name in SHAPE}
    with llama.device:
        model = ScratchGPTForCausalLM(ScratchGPTConfig(qk_norm=False, **shape))
    model.load_state_dict(llama.state_dict())
    return model


def stepper(model: PreTrainedModel, arguments: StepArguments, **forward_kwargs: bool) -> Callable[[], float]:
    """A function that makes one training step on the next random batch and returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)  # the same batches for every model
    size = (arguments.batch_size, arguments.block_size)

    def step() -> float:
        ids = torch.randint(arguments.vocab_size, size, generator=generator).to(model.device)
        loss = model(input_ids=ids, labels=ids, use_cache=False, **forward_kwargs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    model.train()
    return step


def timed(step: Callable[[], float], losses: list[float]) -> Callable[[], float]:
    """`step`, but it returns its duration in seconds and appends the loss to `losses`."""
    return lambda: seconds_of(lambda: losses.append(step()))


# The training


def compare_training(arguments: StepArguments) -> None:
    """Time whole training steps on Python's own text, each candidate in fresh processes."""
    precision = resolve_precision("auto", default_device())
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments)
        ours = functools.partial(in_new_process, our_speed, folder, arguments)
        llama = functools.partial(in_new_process, llama_speed, folder, arguments)
        candidates = {
            "LlamaForCausalLM, float32, AdamW": llama,
            "LlamaForCausalLM, also keeps freed memory": functools.partial(llama, keep_memory=True),
            f"pretrain with default settings (Muon, {precision})": ours,
            "- does not keep freed memory": functools.partial(ours, keep_memory=False),
            "- keeps all logits": functools.partial(ours, skip_logits=False),
            "- AdamW for all parameters": functools.partial(ours, optimizer="adamw"),
        }
        if precision != "fp32":
            candidates["- float32"] = functools.partial(ours, precision="fp32")
        speeds = interleaved(candidates, arguments.rounds)
    base = next(iter(speeds.values()))
    rows = [[name, f"{statistics.median(s):,.0f}", f"{median_ratio(s, base):.2f}"] for name, s in speeds.items()]
    print_table(
        f"Training, preset {arguments.preset}, {arguments.batch_size} x {arguments.block_size} tokens per step, "
        f"{arguments.rounds} rounds of fresh processes",
        ["", "tokens per second (median)", "relative to row 1 (median of ratios)"],
        rows,
    )


def prepare(folder: Path, arguments: StepArguments) -> None:
    """Write tokenizer and blocks of Python's own text."""
    tokenizer = str(folder / "tokenizer")
    train_tokenizer.main(["--output_dir", tokenizer, f"--vocab_size={arguments.vocab_size}"])
    data = str(folder / "data")
    prepare_data.main(["--tokenizer", tokenizer, "--output_dir", data, f"--block_size={arguments.block_size}"])


def our_speed(
    folder: str, arguments: StepArguments, keep_memory: bool = True, skip_logits: bool = True, **settings: str
) -> float:
    """Tokens per second of the steps of scratch-gpt pretrain."""
    if keep_memory:
        keep_freed_memory()
    options = {
        "config": arguments.preset,
        "data_dir": f"{folder}/data",
        "output_dir": f"{folder}/run",
        "global_batch_size": arguments.batch_size,
        "micro_batch_size": arguments.batch_size,
        **settings,
    }
    kinds = (ModelArguments, DataArguments, TrainArguments)
    model, data, train = parse_recipe(kinds, [f"--{name}={value}" for name, value in options.items()])
    accelerator = build_accelerator(train.precision)
    tokenizer = ScratchGPTTokenizer.from_pretrained(Path(data.data_dir) / TOKENIZER_FOLDER)
    run = build_pretraining(model, train, open_data(data.data_dir), tokenizer, accelerator)
    if not skip_logits and isinstance(run.objective, LanguageModeling):
        run.objective.forward_kwargs.pop("skip_logits")
    return tokens_per_second(lambda number: loop.train_step(run, TrainState(step=number)), arguments)


def llama_speed(folder: str, arguments: StepArguments, keep_memory: bool = False) -> float:
    """Tokens per second of a minimal training loop."""
    if keep_memory:
        keep_freed_memory()
    step = stepper(llama_like(arguments), arguments)
    return tokens_per_second(lambda number: step(), arguments)


def tokens_per_second(step: Callable[[int], object], arguments: StepArguments) -> float:
    """Throughput of the median step, after the warmup."""
    seconds = [seconds_of(lambda: step(number)) for number in range(WARMUP_STEPS + arguments.steps)]  # noqa: B023
    return arguments.batch_size * arguments.block_size / statistics.median(seconds[WARMUP_STEPS:])


def shape(arguments: StepArguments, model: PreTrainedModel) -> str:
    """The size of model and batch, for the title."""
    return (
        f"{model.num_parameters() / 1e6:.1f}M parameters (preset {arguments.preset}, vocabulary "
        f"{arguments.vocab_size}), {arguments.batch_size} x {arguments.block_size} tokens"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
