"""Predicting the next token: the objective of pretraining and of fine-tuning on conversations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .metrics import IGNORED_LABEL, bits_per_byte, perplexity
from .schedule import seed_at

# how samples are drawn where nothing else is asked for
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 50}


@dataclass(frozen=True)
class Prompt:
    """What a sample continues."""

    shown: str
    ids: list[int]


@dataclass
class LanguageModelling:
    """The loss of each target token, -log p in nats; a batch holds `input_ids` and `shift_labels`, (batch, seq).

    Args:
        token_bytes: bytes of text per token id, from `metrics.token_byte_lengths`.
        prompts: what the samples of an evaluation continue.
        generation: arguments of `generate` for them, with `max_new_tokens`.
        seed: decides what is sampled.
        forward_kwargs: more keyword arguments for the model's forward.
    """

    tokenizer: PreTrainedTokenizerBase
    token_bytes: Tensor
    prompts: Sequence[Prompt] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    forward_kwargs: dict[str, Any] = field(default_factory=dict)

    def sizes(self, batch: dict[str, Tensor]) -> tuple[float, int]:
        """The number of target tokens, twice."""
        num_targets = int((batch["shift_labels"] != IGNORED_LABEL).sum())
        return num_targets, num_targets

    def loss(self, model: nn.Module, batch: dict[str, Tensor], total: float) -> Tensor:
        """Sum of the losses of a micro-batch divided by `total`."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "shift_labels"}
        labels = batch["shift_labels"]
        return model(
            **inputs,
            labels=labels,  # asks for a loss; the labels used are those that are shifted already
            shift_labels=labels,
            num_items_in_batch=torch.tensor(float(total), device=labels.device),
            use_cache=False,
            **self.forward_kwargs,
        ).loss

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> list[float]:
        """Nats, target tokens, and the bytes that these stand for."""
        targets = batch["shift_labels"]
        targets = targets[targets != IGNORED_LABEL].cpu()
        nats = float(self.loss(model, batch, total=1))
        return [nats, targets.numel(), int(self.token_bytes[targets].sum())]

    def figures(self, sums: Sequence[float]) -> dict[str, Any]:
        """Loss in nats per token, perplexity and bits per byte."""
        nats, num_tokens, num_bytes = sums
        loss = nats / num_tokens
        return {
            "eval_loss": loss,
            "eval_perplexity": perplexity(loss),
            "eval_bits_per_byte": bits_per_byte(nats, num_bytes),
        }

    def in_words(self, figures: dict[str, Any]) -> str:
        """The figures as a line."""
        return (
            f"validation loss {figures['eval_loss']:.4f} | perplexity {figures['eval_perplexity']:.2f} | "
            f"{figures['eval_bits_per_byte']:.4f} bits per byte"
        )

    def illustrate(self, figures: dict[str, Any], folder: Path, step: int) -> None:
        """The loss curve of the whole run is drawn at its end."""

    def samples(self, model: Any) -> list[tuple[str, str]]:
        """Each prompt and how the model continues it; the seed is fixed, so that samples of different steps compare."""
        completions = []
        for number, prompt in enumerate(self.prompts):
            torch.manual_seed(seed_at(self.seed, "sample", number))
            input_ids = torch.tensor([prompt.ids], device=model.device)  # (1, prompt)
            output = model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                pad_token_id=self.tokenizer.pad_token_id,
                **self.generation,
            )  # (1, prompt + completion)
            text: Any = self.tokenizer.decode(output[0, len(prompt.ids) :], skip_special_tokens=True)
            completions.append((prompt.shown, str(text)))
        return completions
