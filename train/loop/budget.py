"""The dial: from minutes or FLOPs to a model, its batch, its steps and its learning rates.

The rule was fitted on our own runs; docs/performance.md has the runs and the fit.

- The loss of a model of N parameters after D tokens is a fraction of the loss of an n-gram model on the same tokens, so
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

# loss / n-gram loss = (S ** (1 / JOINT) + T ** (1 / JOINT)) ** JOINT, with S = SIZE (N / 1e6) ** -SIZE_EXPONENT and
# T = TOKENS (D / 1e6) ** -TOKENS_EXPONENT: equation 1.5 of https://huggingface.co/papers/2001.08361, with JOINT fitted
SIZE, SIZE_EXPONENT, TOKENS, TOKENS_EXPONENT, JOINT = 0.450, 0.292, 0.838, 0.201, 0.438
HALF_LIFE = 15.4  # epochs after which repeated tokens have lost most of their worth: R* of the paper
MAX_EPOCHS = 10
MIN_STEPS = 20
FEWEST_EVALUATIONS, MOST_EVALUATIONS = 2, 8
EVALUATION_SHARE = 0.1  # of the time, unless that is too little for the fewest
BATCH_FACTOR = 1.6  # tokens per step / square root of all tokens
SMALLEST_BATCH, LARGEST_BATCH = 2048, 65536  # tokens
NGRAM_TOKENS, NGRAM_TEST_TOKENS = 1_000_000, 100_000
LEAST_GAIN = 0.01  # of a longer context


@dataclass(frozen=True)
class Text:
    """What the rule knows of the data."""

    num_tokens: int  # for training
    block_size: int
    ngram_loss: float  # nats per token


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
        multiple_of: what a chosen batch must be a multiple of.
        eval_micro_batches: of an evaluation.
        sampled_tokens: per evaluation.
    """

    seconds: float
    micro_batch_size: int
    batch_size: int | None = None
    multiple_of: int = 1
    eval_micro_batches: int = 0
    sampled_tokens: int = 0


def trainings_for_seconds(
    candidates: Sequence[Any],
    text: Text,
    limits: Callable[[], Limits],
    measure: Callable[[Any], Speed | None],
) -> list[Training]:
    """A training within the limits for one model after the other, until a larger one would be worse or too slow.

    Args:
        candidates: configs of our models, from small to large.
        limits: what is left, which shrinks while models are measured.
        measure: times a model; None if it does not fit into memory, which ends the search.

    Returns:
        The trainings; empty if not even the first model fits.
    """
    trainings: list[Training] = []
    for config in candidates:
        speed, left = measure(config), limits()
        if speed is None:
            break
        training = training_for_seconds(config, text, left, speed)
        if trainings and training.seconds > left.seconds:  # even the fewest steps
            break
        trainings.append(training)
        if best_of(trainings) is not training:
            break
    return trainings


def best_of(trainings: Sequence[Training]) -> Training:
    """The training with the lowest expected loss; of equal ones the first."""
    return min(trainings, key=lambda one: one.expected_loss)


def training_for_seconds(config: Any, text: Text, limits: Limits, speed: Speed) -> Training:
    """The training of one model: the batch follows from the tokens that fit into the time."""
    evaluation = limits.eval_micro_batches * speed.evaluation + limits.sampled_tokens * speed.sampled_token
    fitting = int(EVALUATION_SHARE * limits.seconds / max(evaluation, 1e-9))
    num_evaluations = min(MOST_EVALUATIONS, max(FEWEST_EVALUATIONS, fitting))
    left = max(0.0, limits.seconds - num_evaluations * evaluation)
    micro_batches = left / speed.micro_batch
    fitting_tokens = micro_batches * limits.micro_batch_size * text.block_size
    batch_size = limits.batch_size or batch_size_for(text, fitting_tokens, limits.multiple_of)
    step = speed.step(batch_size / limits.micro_batch_size)
    found = _training(config, text, batch_size, left / step)
    seconds = found.max_steps * step + num_evaluations * evaluation
    return replace(found, num_evaluations=num_evaluations, seconds=seconds)


def trainings_for_flops(
    candidates: Sequence[Any], text: Text, flops: float, batch_size: int | None = None, multiple_of: int = 1
) -> list[Training]:
    """A training for each model that takes so many FLOPs, counted as in `flops_per_token`.

    The smallest model is always included and trains for at least `MIN_STEPS`, even if that exceeds `flops`. A larger
    model is included only if `MIN_STEPS` fit.
    """
    trainings: list[Training] = []
    for config in candidates:
        num_tokens = flops / training_flops_per_token(config, text.block_size)
        size = batch_size or batch_size_for(text, num_tokens, multiple_of)
        steps = num_tokens / (size * text.block_size)
        if trainings and steps < MIN_STEPS:
            break
        trainings.append(_training(config, text, size, steps))
    return trainings


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
    return float((of_size ** (1 / JOINT) + of_tokens ** (1 / JOINT)) ** JOINT * text.ngram_loss)


def worth_in_new_tokens(num_tokens: float, num_unique: float) -> float:
    """The number of new tokens that teach as much (https://huggingface.co/papers/2305.16264, equation 5)."""
    repeats = max(0.0, num_tokens / num_unique - 1)
    worth: float = min(num_tokens, num_unique) + num_unique * HALF_LIFE * (1 - math.exp(-repeats / HALF_LIFE))
    return worth


def batch_size_for(text: Text, num_tokens: float, multiple_of: int = 1) -> int:
    """Sequences per step: a power of two whose tokens grow like the square root of all tokens, or the next multiple."""
    num_tokens = min(num_tokens, MAX_EPOCHS * text.num_tokens)
    wanted = min(max(BATCH_FACTOR * math.sqrt(num_tokens), SMALLEST_BATCH), LARGEST_BATCH) / text.block_size
    power = 1 << max(0, round(math.log2(wanted)))
    return math.ceil(power / multiple_of) * multiple_of


def ngram_loss(train: np.ndarray, validation: np.ndarray, vocab_size: int) -> float:
    """Nats per token of the best n-gram model with Witten-Bell smoothing, (tokens,) each.

    After context c, p(b | c) = (count(c b) + k p(b | c')) / (count(c) + k), where k is the number of different tokens
    that have followed c, and c' is c without its first token (Witten and Bell, 1991, method C). Contexts grow until a
    longer one no longer helps.
    """
    tokens = np.concatenate([train, validation]).astype(np.int64)
    contexts = np.zeros_like(tokens)  # each with a number of its own; first the empty one
    probabilities, losses = np.full(len(validation), 1 / vocab_size), [math.inf]
    while True:
        grams, numbers = np.unique(contexts * vocab_size + tokens, return_inverse=True)
        counts = np.bincount(numbers[: len(train)], minlength=len(grams))
        totals, followers = (np.bincount(grams // vocab_size, weights=each) for each in (counts, counts > 0))
        asked = contexts[len(train) :]
        kinds = np.maximum(followers[asked], 1)
        probabilities = (counts[numbers[len(train) :]] + kinds * probabilities) / (totals[asked] + kinds)
        losses.append(float(-np.log(probabilities).mean()))
        if losses[-1] >= (1 - LEAST_GAIN) * losses[-2]:
            return min(losses)
        contexts = np.concatenate([[len(grams)], numbers[:-1]])  # the first has one of its own
