"""The rule behind --minutes and --flops."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hf_scratch_gpt import ScratchGPTConfig
from train.loop import budget
from train.loop.budget import Limits, Text
from train.loop.forecast import Speed
from train.model.flops import flops_per_token
from train.model.new import LADDER, changes_of, parse_overrides

TEXT = Text(num_tokens=10_000_000, block_size=256, ngram_loss=4.0)
LADDER = [
    ScratchGPTConfig.from_preset("laptop", vocab_size=4096, **parse_overrides(changes_of(*shape))) for shape in LADDER
]


def speed_of(config):
    """A machine that makes 50 GFLOP/s."""
    micro_batch = 8 * 256 * flops_per_token(config, 256) / 50e9
    return Speed(micro_batch=micro_batch, update=0.1 * micro_batch, evaluation=micro_batch / 3, sampled_token=0.01)


def choose(seconds, text=TEXT, **limits):
    return budget.best_of(trainings(seconds, text, **limits))


def trainings(seconds, text=TEXT, measured=None, **limits):
    limits = Limits(seconds=seconds, micro_batch_size=8, **limits)

    def measure(config):
        if measured is not None:
            measured.append(config.hidden_size)
        return speed_of(config)

    return budget.trainings_for_seconds(LADDER, text, lambda: limits, measure)


@pytest.mark.parametrize("seconds", [30, 120, 300, 900, 7200])
def test_the_choice_is_the_best_of_the_ladder_and_fills_the_time(seconds):
    best = choose(seconds, eval_micro_batches=16, sampled_tokens=64)
    every = [choose_only(config, seconds) for config in LADDER]
    assert best.expected_loss == min(one.expected_loss for one in every)
    assert 0.97 * seconds < best.seconds <= seconds


def choose_only(config, seconds):
    limits = Limits(seconds=seconds, micro_batch_size=8, eval_micro_batches=16, sampled_tokens=64)
    return budget.training_for_seconds(config, TEXT, limits, speed_of(config))


def test_more_time_gives_larger_models_lower_losses_and_larger_batches():
    endless = replace(TEXT, num_tokens=10**11)
    choices = [choose(seconds, text=endless) for seconds in (10, 1_000, 100_000, 10_000_000)]
    sizes = [one.config.parameter_count for one in choices]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2
    assert [one.expected_loss for one in choices] == sorted((one.expected_loss for one in choices), reverse=True)
    assert [one.batch_size for one in choices] == sorted(one.batch_size for one in choices)


def test_no_model_beyond_the_first_that_is_worse_is_measured():
    measured = []
    best = budget.best_of(trainings(60, measured=measured))
    widths = [config.hidden_size for config in LADDER]
    assert measured == widths[: widths.index(best.config.hidden_size) + 2]


def test_a_short_text_ends_training_early():
    short = replace(TEXT, num_tokens=100_000)
    best = choose(7200, text=short)
    assert best.num_tokens <= budget.MAX_EPOCHS * short.num_tokens
    assert best.seconds < 7200


def test_repeated_tokens_are_worth_less_than_new_ones():
    assert budget.worth_in_new_tokens(500, 1000) == 500
    assert budget.worth_in_new_tokens(4000, 1000) == pytest.approx(1000 + 15_400 * (1 - math.exp(-3 / 15.4)))
    assert budget.worth_in_new_tokens(1e9, 1000) == pytest.approx(16_400)


def test_a_given_batch_is_kept():
    assert choose(300, batch_size=6).batch_size == 6


def test_flops_are_spent():
    best = budget.best_of(budget.trainings_for_flops(LADDER, TEXT, 1e15))
    spent = best.num_tokens * flops_per_token(best.config, 256)
    assert 0.98e15 < spent <= 1e15


def test_a_few_flops_are_not_exceeded_by_a_larger_model():
    """With 1e12, 20 steps of the smallest batch fit for the smallest models only; with 1, for none of them."""
    for flops in (1.0, 1e12):
        found = budget.trainings_for_flops(LADDER, TEXT, flops)
        assert found[0].max_steps >= budget.MIN_STEPS
        assert all(one.num_tokens * flops_per_token(one.config, 256) <= flops for one in found[1:])
    assert len(budget.trainings_for_flops(LADDER, TEXT, 1.0)) == 1


def test_the_epochs_bound_the_batch_too():
    short = replace(TEXT, num_tokens=100_000)
    best = budget.best_of(budget.trainings_for_flops(LADDER, short, 1e30))
    assert best.num_tokens <= budget.MAX_EPOCHS * short.num_tokens


def test_evaluations_take_a_tenth_of_the_time_at_most():
    assert choose(300, eval_micro_batches=2).num_evaluations == budget.MOST_EVALUATIONS
    assert choose(30, eval_micro_batches=16, sampled_tokens=64).num_evaluations == budget.FEWEST_EVALUATIONS


def test_ngram_loss_by_hand():
    train, validation, vocab_size = np.array([0, 1, 0, 1, 0, 2, 0, 1]), np.array([0, 1, 2]), 4
    unigram = [(count + 3 / 4) / (8 + 3) for count in (4, 3, 1, 0)]  # three kinds of tokens were seen
    # the token after 0 is 1 or 2, after 1 always 0; the first 0 follows the last token for training
    bigram = {(1, 0): (2 + unigram[0]) / 3, (0, 1): (3 + 2 * unigram[1]) / 6, (1, 2): unigram[2] / 3}
    trigram = {(0, 1, 0): (2 + bigram[1, 0]) / 3, (1, 0, 1): (1 + 2 * bigram[0, 1]) / 4, (0, 1, 2): bigram[1, 2] / 3}
    losses = [-np.log(each).mean() for each in ([unigram[0], unigram[1], unigram[2]], [*bigram.values()])]
    assert losses[1] < losses[0]
    assert -np.log([*trigram.values()]).mean() > losses[1]
    found = budget.ngram_loss(train.astype(np.uint16), validation.astype(np.uint16), vocab_size)
    assert found == pytest.approx(losses[1])


def test_of_text_that_repeats_itself_long_contexts_tell_the_next_token():
    text = np.tile([0, 0, 0, 1], 100)
    assert budget.ngram_loss(text, text, 2) < 0.1
    assert budget.ngram_loss(np.zeros(50), np.zeros(50), 1) == 0.0  # with one token, nothing is left to learn


def test_of_a_tiny_budget_the_smallest_model_is_chosen():
    assert choose(0.0).config.hidden_size == LADDER[0].hidden_size
