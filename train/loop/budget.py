"""The dial: from minutes or FLOPs to a model, its batch, its steps and its learning rates.

The rule was fitted on our own runs; docs/performance.md has the runs and the fit.

- The loss of a model of N parameters after D tokens is a fraction of the loss of a bigram model on the same tokens, so
  that the rule follows the text and its vocabulary.
- Of the models in `model.new.ladder`, the one with the lowest expected loss is chosen. The larger a model is, the more
  it learns from a token, and the fewer tokens it reads within the budget.
- A token that is read again teaches less (https://huggingface.co/papers/2305.16264), so the corpus bounds the size too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..model.flops import training_flops_per_token
from .forecast import Speed

# loss / bigram loss = FLOOR + SIZE (N / 1e6) ** -SIZE_EXPONENT + TOKENS (D / 1e6) ** -TOKENS_EXPONENT
FLOOR, SIZE, SIZE_EXPONENT, TOKENS, TOKENS_EXPONENT = 0.300, 0.037, 1.02, 0.455, 0.273
HALF_LIFE = 15.4  # epochs after which repeated tokens have lost most of their worth: R* of the paper
MAX_EPOCHS = 10
MIN_STEPS = 20
FEWEST_EVALUATIONS, MOST_EVALUATIONS = 2, 8
EVALUATION_SHARE = 0.1  # of the time, unless that is too little for the fewest
BATCH_FACTOR = 1.0  # tokens per step / square root of all tokens
SMALLEST_BATCH, LARGEST_BATCH = 2048, 65536  # tokens
BIGRAM_TOKENS, BIGRAM_TEST_TOKENS = 2_000_000, 200_000


@dataclass(frozen=True)
class Text:
    """What the rule knows of the data."""

    num_tokens: int  # for training
    block_size: int
    bigram_loss: float  # nats per token


@dataclass(frozen=True)
class Training:
    """A training within the budget."""

    config: Any  # a ScratchGPTConfig
    batch_size: int  # sequences
    max_steps: int
    num_evaluations: int
    seconds: float  # with evaluations; 0 if no step was measured
    num_tokens: int
    expected_loss: float  # nats per token


@dataclass(frozen=True)
class Limits:
    """What a training must fit into.

    Args:
        seconds: for steps and evaluations.
        micro_batch_size: sequences of a measured micro-batch.
        batch_size: sequences per step, if it is given.
        eval_micro_batches: of an evaluation.
        sampled_tokens: per evaluation.
    """

    seconds: float
    micro_batch_size: int
    batch_size: int | None = None
    eval_micro_batches: int = 0
    sampled_tokens: int = 0


def best_for_seconds(
    candidates: Sequence[Any],
    text: Text,
    limits: Callable[[], Limits],
    measure: Callable[[Any], Speed],
) -> Training:
    """The training with the lowest expected loss within the limits.

    Args:
        candidates: configs of our models, from small to large.
        limits: what is left, which shrinks while models are measured.
        measure: times a model. It is called for one candidate after the other, until a larger one would be worse.
    """
    best: Training | None = None
    for config in candidates:
        speed = measure(config)
        left = limits()
        found = training_for_seconds(config, text, left, speed)
        is_too_long = found.seconds > left.seconds  # even the fewest steps
        if best is not None and (is_too_long or found.expected_loss >= best.expected_loss):
            break
        best = found
    assert best is not None, "no candidates"
    return best


def training_for_seconds(config: Any, text: Text, limits: Limits, speed: Speed) -> Training:
    """The training of one model: the batch follows from the tokens that fit into the time."""
    evaluation = limits.eval_micro_batches * speed.evaluation + limits.sampled_tokens * speed.sampled_token
    fitting = int(EVALUATION_SHARE * limits.seconds / max(evaluation, 1e-9))
    num_evaluations = min(MOST_EVALUATIONS, max(FEWEST_EVALUATIONS, fitting))
    left = max(0.0, limits.seconds - num_evaluations * evaluation)
    micro_batches = left / speed.micro_batch
    batch_size = limits.batch_size or batch_size_for(text, micro_batches * limits.micro_batch_size * text.block_size)
    step = speed.step(batch_size / limits.micro_batch_size)
    found = _training(config, text, batch_size, left / step)
    seconds = found.max_steps * step + num_evaluations * evaluation
    return replace(found, num_evaluations=num_evaluations, seconds=seconds)


def best_for_flops(candidates: Sequence[Any], text: Text, flops: float, batch_size: int | None = None) -> Training:
    """The training with the lowest expected loss that takes so many FLOPs, counted as in `flops_per_token`."""
    trainings = []
    for config in candidates:
        num_tokens = flops / training_flops_per_token(config, text.block_size)
        size = batch_size or batch_size_for(text, num_tokens)
        trainings.append(_training(config, text, size, num_tokens / (size * text.block_size)))
    return min(trainings, key=lambda one: one.expected_loss)


def _training(config: Any, text: Text, batch_size: int, steps: float) -> Training:
    longest = MAX_EPOCHS * text.num_tokens / (batch_size * text.block_size)
    max_steps = max(MIN_STEPS, int(min(steps, longest)))
    num_tokens = max_steps * batch_size * text.block_size
    return Training(
        config=config,
        batch_size=batch_size,
        max_steps=max_steps,
        num_evaluations=MOST_EVALUATIONS,
        seconds=0.0,
        num_tokens=num_tokens,
        expected_loss=expected_loss(config.parameter_count, num_tokens, text),
    )


def expected_loss(num_parameters: float, num_tokens: float, text: Text) -> float:
    """Nats per token after training on `num_tokens`, some of them read several times."""
    new = worth_in_new_tokens(num_tokens, text.num_tokens)
    of_size = SIZE * (num_parameters / 1e6) ** -SIZE_EXPONENT
    of_tokens = TOKENS * (new / 1e6) ** -TOKENS_EXPONENT
    return float((FLOOR + of_size + of_tokens) * text.bigram_loss)


def worth_in_new_tokens(num_tokens: float, num_unique: float) -> float:
    """The number of new tokens that teach as much (https://huggingface.co/papers/2305.16264, equation 5)."""
    repeats = max(0.0, num_tokens / num_unique - 1)
    worth: float = min(num_tokens, num_unique) + num_unique * HALF_LIFE * (1 - math.exp(-repeats / HALF_LIFE))
    return worth


def batch_size_for(text: Text, num_tokens: float) -> int:
    """Sequences per step: a power of two whose tokens grow like the square root of all tokens."""
    wanted = min(max(BATCH_FACTOR * math.sqrt(num_tokens), SMALLEST_BATCH), LARGEST_BATCH) / text.block_size
    return 1 << max(0, round(math.log2(wanted)))


def bigram_loss(train: np.ndarray, validation: np.ndarray, vocab_size: int) -> float:
    """Nats per token of a bigram model with Witten-Bell smoothing, (tokens,) each.

    After token a, p(b) = (count(a b) + k p1(b)) / (count(a) + k), where k is the number of different tokens that have
    followed a, and p1 is the share of b among all tokens (Witten and Bell, 1991, method C).
    """
    train, validation = train.astype(np.int64), validation.astype(np.int64)
    unigram = np.bincount(train, minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    pairs, counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    followers = np.bincount(pairs // vocab_size, minlength=vocab_size)
    totals = np.bincount(train[:-1], minlength=vocab_size)
    asked = validation[:-1] * vocab_size + validation[1:]
    places = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    seen = np.where(pairs[places] == asked, counts[places], 0)
    before = validation[:-1]
    kinds = np.maximum(followers[before], 1)
    probabilities = (seen + kinds * unigram[validation[1:]]) / (totals[before] + kinds)
    return float(-np.log(probabilities).mean())
