"""The learning rate of each step, and cadences."""

import pytest

from train.loop.schedule import is_due, learning_rate_at


def rates(**options):
    return [learning_rate_at(step, max_steps=10, **options) for step in range(10)]


def test_warmup_rises_to_the_peak_of_the_step_after_it():
    assert rates(warmup_steps=4)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_falls_from_peak_to_final_ratio():
    values = [learning_rate_at(step, max_steps=8, final_ratio=0.1) for step in range(9)]
    assert values[0] == 1
    assert values[2] == pytest.approx(0.1 + 0.9 * (1 + 0.5**0.5) / 2)  # cos(pi / 4) is sqrt(1/2)
    assert values[4] == pytest.approx(0.55)  # half-way between 1 and 0.1
    assert values[8] == pytest.approx(0.1)
    assert values == sorted(values, reverse=True)


def test_wsd_is_constant_and_then_decays_linearly():
    values = rates(schedule="wsd", decay_fraction=0.5, warmup_steps=1, final_ratio=0.0)
    assert values == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_wsd_decays_over_the_steps_after_warmup():
    values = rates(schedule="wsd", decay_fraction=1.0, warmup_steps=8)
    assert values[7:] == pytest.approx([8 / 9, 1, 0.5])


def test_wsd_without_decay_stays_at_the_peak():
    assert rates(schedule="wsd", decay_fraction=0.0) == [1] * 10


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_all_steps_may_be_warmup(schedule):
    assert rates(schedule=schedule, warmup_steps=10)[-1] == pytest.approx(10 / 11)


def test_the_last_step_is_due_for_all():
    assert [step for step in range(12) if is_due(4, step, last=11)] == [4, 8, 11]


def test_every_0_is_due_at_the_last_step_only():
    assert [step for step in range(6) if is_due(0, step, last=5)] == [5]
