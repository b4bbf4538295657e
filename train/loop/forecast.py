"""How long a training will take on this machine: a few steps of a model that is then discarded are timed."""

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..distributed.device import wait_for
from .language_modeling import skips_logits
from .optimizers import build_optimizers

ENOUGH_SECONDS = 1.0  # of timing
MAX_REPEATS = 5
TIMED_TOKENS = 8  # of a sample


@dataclass(frozen=True)
class Speed:
    """Measured seconds of the parts of a step and of an evaluation, in one process."""

    micro_batch: float  # forward and backward pass
    update: float  # of the optimizer
    evaluation: float  # forward pass of a micro-batch
    sampled_token: float = 0.0  # one more token for all sample prompts

    def step(self, num_micro_batches: float) -> float:
        """Seconds of a step."""
        return num_micro_batches * self.micro_batch + self.update


def measure_speed(
    model: PreTrainedModel,
    *,
    optimizer: str,
    micro_batch_size: int,
    block_size: int,
    precision: str,
    device: torch.device,
    num_prompts: int = 0,
    enough_seconds: float = ENOUGH_SECONDS,
) -> Speed:
    """Time the training of a model on dummy tokens. It changes the model, which should be discarded.

    Args:
        model: with its vocabulary size in `model.config`.
        precision: fp32, bf16 or fp16.
        num_prompts: that an evaluation completes; 0: none is timed.
        enough_seconds: of timing, for each part of a step.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides its signature
    model.train()
    matrix_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    optimizers = build_optimizers(model, optimizer=optimizer, learning_rate=0.0, matrix_dtype=matrix_dtype)
    ids = torch.zeros(micro_batch_size, block_size, dtype=torch.long, device=device)  # their values take no time
    arguments = {"input_ids": ids, "labels": ids, "use_cache": False, **skips_logits(model)}

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss: torch.Tensor = model(**arguments).loss
        return loss

    def update() -> None:
        for one in optimizers:
            one.step()

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        micro_batch, step, evaluation = (
            seconds_of(part, device, enough_seconds)
            for part in (lambda: forward().backward(), update, torch.no_grad()(forward))
        )
        model.zero_grad()
        sampled_token = seconds_per_sampled_token(model, num_prompts, device) if num_prompts else 0.0
    return Speed(micro_batch, step, evaluation, sampled_token)


def seconds_per_sampled_token(model: Any, num_prompts: int, device: torch.device) -> float:
    """Seconds of generating one more token for all prompts."""
    ids = torch.zeros(num_prompts, 1, dtype=torch.long, device=device)
    model.eval()

    def generate() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=TIMED_TOKENS,
            max_new_tokens=TIMED_TOKENS,
            pad_token_id=0,
        )

    return seconds_of(generate, device, 0.0) / TIMED_TOKENS


def seconds_of(function: Callable[[], object], device: torch.device, enough_seconds: float = ENOUGH_SECONDS) -> float:
    """The median time of a few calls after the first one, which allocates memory."""
    seconds: list[float] = []
    while len(seconds) < 2 or (sum(seconds[1:]) < enough_seconds and len(seconds) <= MAX_REPEATS):
        wait_for(device)
        started = time.perf_counter()
        function()
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def free_memory() -> None:
    """Return the memory of a discarded model, also that of the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def seconds_of_run(
    speed: Speed, *, max_steps: int, num_micro_batches: int, eval_steps: int, eval_micro_batches: int
) -> float:
    """Seconds of a run with its evaluations; without its samples and checkpoints."""
    num_evaluations = math.ceil(max_steps / eval_steps) if eval_steps else 1
    return max_steps * speed.step(num_micro_batches) + num_evaluations * eval_micro_batches * speed.evaluation


def format_duration(seconds: float) -> str:
    """A duration as people say it, in the largest suitable unit."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 2 else f"{seconds:.1f} seconds"
