"""Next-token prediction: the objective of pretraining and of fine-tuning on conversations."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..data.examples import IGNORE_INDEX
from ..data.plain_text import plain_ids
from ..distributed.device import wide_dtype
from ..metrics.perplexity import bits_per_byte, perplexity, token_byte_lengths
from ..settings.seeds import seed_at
from ..settings.training import TrainArguments
from .samples import complete

# of samples during pretraining
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 50}
SAMPLES_AT_ONCE = 16


@dataclass(frozen=True)
class Prompt:
    """A prompt to complete: as text for people, as ids for the model."""

    shown: str
    ids: list[int]


@dataclass
class LanguageModeling:
    """The loss of each target token, -log p in nats; a batch has `input_ids` and `shift_labels`, (batch, seq).

    Args:
        token_bytes: bytes of text per token id, from `token_byte_lengths`.
        prompts: completed at each evaluation.
        generation: how; see `complete`.
        seed: of the samples.
        forward_kwargs: more keyword arguments for the model's forward.
    """

    tokenizer: PreTrainedTokenizerBase
    token_bytes: Tensor
    prompts: Sequence[Prompt] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    forward_kwargs: dict[str, Any] = field(default_factory=dict)

    def count_targets(self, batch: dict[str, Tensor]) -> tuple[float, int]:
        """(denominator of the loss, tokens to log): here both are the number of target tokens."""
        num_targets = int(np.count_nonzero(batch["shift_labels"].numpy() != IGNORE_INDEX))
        return num_targets, num_targets

    def loss(self, model: nn.Module, batch: dict[str, Tensor], denominator: Tensor) -> Tensor:
        """Sum of the losses of a micro-batch divided by `denominator`."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "shift_labels"}
        labels = batch["shift_labels"]
        loss: Tensor = model(
            **inputs,
            labels=labels,  # unused, but transformers models return no loss if it is missing
            shift_labels=labels,  # already shifted: no target is lost at the end of a row
            num_items_in_batch=denominator,  # loss = sum / this
            use_cache=False,
            **self.forward_kwargs,
        ).loss
        return loss

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Nats, number of target tokens, and the bytes of text they stand for."""
        targets = batch["shift_labels"]
        is_target = targets != IGNORE_INDEX
        self.token_bytes = self.token_bytes.to(targets.device)
        num_bytes = self.token_bytes[targets.clamp(min=0)] * is_target
        nats = self.loss(model, batch, torch.ones((), device=targets.device))
        return torch.stack([nats.to(wide_dtype(nats.device)), is_target.sum(), num_bytes.sum()])

    def compute_metrics(self, sums: Sequence[float]) -> dict[str, Any]:
        """Loss in nats per token, perplexity and bits per byte."""
        nats, num_tokens, num_bytes = sums
        loss = nats / num_tokens
        return {
            "eval_loss": loss,
            "eval_perplexity": perplexity(loss),
            "eval_bits_per_byte": bits_per_byte(nats, num_bytes),
        }

    def format_metrics(self, metrics: dict[str, Any]) -> str:
        """The metrics as one line."""
        return (
            f"validation loss {metrics['eval_loss']:.4f} | perplexity {metrics['eval_perplexity']:.2f} | "
            f"{metrics['eval_bits_per_byte']:.4f} bits per byte"
        )

    def plot(self, metrics: dict[str, Any], folder: Path, step: int) -> None:
        """Nothing: the loss curve is drawn at the end of the run."""

    def generate_samples(self, model: Any) -> list[tuple[str, str]]:
        """Each prompt and its completion; the seed is fixed, so that samples of different steps are comparable."""
        completions: list[list[int]] = []
        tokenizer, numbers = self.tokenizer, range(len(self.prompts))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else bos_id(tokenizer)
        for first in range(0, len(self.prompts), SAMPLES_AT_ONCE):
            some = numbers[first : first + SAMPLES_AT_ONCE]
            seeds = [seed_at(self.seed, "sample", number) for number in some]
            completions += complete(model, [self.prompts[i].ids for i in some], seeds, self.generation, pad)
        texts = [str(tokenizer.decode(completion, skip_special_tokens=True)) for completion in completions]
        return [(prompt.shown, text) for prompt, text in zip(self.prompts, texts, strict=True)]


def next_token_objective(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: TrainArguments
) -> LanguageModeling:
    """The objective of pretraining, with completions of `sample_prompts` as samples.

    Raises:
        ValueError: a prompt and its completion are too long for the model.
    """
    prompts = [Prompt(text, plain_ids(tokenizer, text) or [bos_id(tokenizer)]) for text in arguments.sample_prompts]
    check_prompts(model.config, prompts, arguments)
    return LanguageModeling(
        tokenizer,
        token_byte_lengths(tokenizer),
        prompts,
        SAMPLING | {"max_new_tokens": arguments.max_new_tokens},
        arguments.seed,
        skips_logits(model),
    )


def bos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that starts a text."""
    found: Any = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return int(found)


def skips_logits(model: PreTrainedModel) -> dict[str, bool]:
    """Forward arguments that skip the logits, most of the memory of a step, if the model has such an option."""
    return {"skip_logits": True} if "skip_logits" in inspect.signature(model.forward).parameters else {}


def check_prompts(config: PreTrainedConfig, prompts: Sequence[Prompt], arguments: TrainArguments) -> None:
    """Refuse prompts that are too long for the model, together with their completion.

    Raises:
        ValueError: the prompt and both lengths.
    """
    longest = config.max_position_embeddings
    for prompt in prompts:
        length = len(prompt.ids) + arguments.max_new_tokens
        if length > longest:
            raise ValueError(
                f"--sample_prompts {prompt.shown[:40]!r} and --max_new_tokens {arguments.max_new_tokens} are {length} "
                f"tokens, but the model reads at most {longest} (max_position_embeddings): shorten one of them."
            )
