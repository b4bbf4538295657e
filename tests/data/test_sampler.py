"""The order of the examples, and their division among micro-batches and processes."""

import numpy as np
import pytest
import torch

from train.data.sampler import StepSampler, examples_at


class Numbers:
    """Examples 0, 1, ... 248."""

    mean_length = 1

    def __len__(self):
        return 249

    def batch(self, indices):
        return {"input_ids": torch.tensor(indices)}


@pytest.mark.parametrize("num_examples", [1, 2, 3, 7, 64, 65, 1000])
@pytest.mark.parametrize("batch_size", [1, 8, 50])
def test_each_epoch_visits_every_example_once(num_examples, batch_size):
    num_steps = -(-3 * num_examples // batch_size)
    stream = np.concatenate(
        [examples_at(step, seed=1, num_examples=num_examples, batch_size=batch_size) for step in range(num_steps)]
    )
    for epoch in range(3):
        assert sorted(stream[epoch * num_examples : (epoch + 1) * num_examples]) == list(range(num_examples))


def test_the_order_depends_on_epoch_and_seed_and_is_shuffled():
    def order(epoch, seed):
        return examples_at(epoch, seed=seed, num_examples=1000, batch_size=1000)

    orders = [order(0, 0), order(1, 0), order(0, 1), np.arange(1000)]
    for number, one in enumerate(orders):
        for other in orders[number + 1 :]:
            assert (one == other).sum() < 12  # a random order has 1 fixed point on average


def test_the_order_looks_uniform():
    """Chi-square of tenths of the positions x tenths of the examples: 81 degrees of freedom, mean 81, deviation 13."""
    for num_examples in (1000, 1024, 5000):
        orders = [examples_at(0, seed=seed, num_examples=num_examples, batch_size=num_examples) for seed in range(20)]
        tenth = np.arange(num_examples) * 10 // num_examples
        counts = sum(np.histogram2d(tenth, order * 10 // num_examples, bins=10)[0] for order in orders)
        expected = counts.sum() / 100
        assert ((counts - expected) ** 2 / expected).sum() < 81 + 5 * 13
        neighbours = np.mean([np.mean(np.diff(order) == 1) for order in orders])
        assert neighbours < 5 / num_examples


def test_examples_are_a_pure_function_of_the_step():
    def at(step, batch_size=5):
        return examples_at(step, seed=3, num_examples=13, batch_size=batch_size).tolist()

    assert at(7) == at(7)
    assert at(0) + at(1) + at(2) + at(3) == at(0, batch_size=20)
    # the same on every machine and in every version, or a run would not continue with the right examples
    assert at(0) == [10, 1, 7, 3, 11]
    assert max(at(10**15)) < 13


def test_micro_batches_are_the_examples_of_the_step_in_order():
    sampler = StepSampler(Numbers(), global_batch_size=6, micro_batch_size=2, seed=0)
    batches = list(sampler.micro_batches(3))
    assert [number for number, _ in batches] == [0, 1, 2]
    examples = examples_at(3, seed=0, num_examples=249, batch_size=6).tolist()
    assert [batch["input_ids"].tolist() for _, batch in batches] == [examples[:2], examples[2:4], examples[4:]]


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_together_see_the_same_micro_batches(num_processes):
    alone = dict(StepSampler(Numbers(), 8, 2, seed=5).micro_batches(11))
    together = {}
    for index in range(num_processes):
        sampler = StepSampler(Numbers(), 8, 2, 5, process_index=index, num_processes=num_processes)
        mine = dict(sampler.micro_batches(11))
        assert all(number % num_processes == index for number in mine)
        assert not together.keys() & mine.keys()
        together |= mine
    assert sorted(together) == sorted(alone) == [0, 1, 2, 3]
    assert all(torch.equal(together[number]["input_ids"], alone[number]["input_ids"]) for number in alone)


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(
        ValueError,
        match=r"--global_batch_size \(8\) must be a multiple of --micro_batch_size \(2\) x processes \(3\) = 6",
    ):
        StepSampler(Numbers(), 8, 2, seed=0, num_processes=3)


def test_more_processes_than_sequences_are_refused():
    with pytest.raises(ValueError, match=r"250 processes share 249 sequences.*start fewer"):
        StepSampler(Numbers(), 250, 1, seed=0, num_processes=250)
