"""The batch of each step: a pure function of the seed and the step."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .examples import Examples


@dataclass(frozen=True)
class StepSampler:
    """The micro-batches of this process: micro-batch m of a step belongs to process m % num_processes.

    The examples of a step depend only on `seed` and `global_batch_size`, not on the number of processes or on
    `micro_batch_size`.
    """

    source: Examples
    global_batch_size: int  # sequences per step, over all processes
    micro_batch_size: int
    seed: int
    process_index: int = 0  # among the processes that read different examples
    num_processes: int = 1  # that read different examples; tensor-parallel groups count once

    def __post_init__(self) -> None:
        share = self.micro_batch_size * self.num_processes
        if share < 1 or self.global_batch_size < 1 or self.global_batch_size % share:
            raise ValueError(
                f"--global_batch_size ({self.global_batch_size}) must be a multiple of --micro_batch_size "
                f"({self.micro_batch_size}) x processes ({self.num_processes}) = {share}: change one of them."
            )
        if len(self.source) == 0:
            raise ValueError("The training data has no examples.")
        if len(self.source) < self.num_processes:
            raise ValueError(
                f"{self.num_processes} processes share {len(self.source)} sequences of training data: start fewer "
                "processes, or prepare shorter sequences (--block_size of scratch-gpt prepare_data)."
            )

    def micro_batches(self, step: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield (m, batch of `micro_batch_size` examples)."""
        examples = examples_at(
            step, seed=self.seed, num_examples=len(self.source), batch_size=self.global_batch_size
        )  # (global_batch_size,)
        micro_batches = examples.reshape(-1, self.micro_batch_size)  # row m: micro-batch m
        for m in range(self.process_index, len(micro_batches), self.num_processes):
            yield m, self.source.batch(micro_batches[m])


def examples_at(step: int, *, seed: int, num_examples: int, batch_size: int) -> np.ndarray:
    """Indices of the examples of `step` (counted from 0), (batch_size,): a pure function of the arguments.

    The steps read one endless stream of epochs; a batch may span two of them. An epoch visits every example once, in
    its own random order.

    The order is computed by a Feistel network, not stored as a permutation. So any step takes O(batch_size) memory and
    time, and a resumed run needs nothing but the step. A numpy permutation of 10 million examples would take 80 MB in
    each process, and a new one for each epoch.
    """
    positions = np.arange(batch_size, dtype=np.int64) + step * batch_size
    epochs, places = np.divmod(positions, num_examples)
    examples = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        examples[epochs == epoch] = _shuffled(places[epochs == epoch], num_examples, (seed, int(epoch)))
    return examples


def _shuffled(places: np.ndarray, size: int, key: tuple[int, int]) -> np.ndarray:
    """A bijection of range(size) that depends on `key`, applied to `places`.

    A Feistel network permutes range(n), where n is a power of 4 and below 4 x size. Results outside of range(size) are
    permuted again until they are inside ("cycle walking", https://en.wikipedia.org/wiki/Format-preserving_encryption).
    """
    half = max(((size - 1).bit_length() + 1) // 2, 1)  # bits of each half of a number
    keys = np.frombuffer(hashlib.blake2b(f"{key}".encode()).digest(), "<u8")  # one per round
    values = places.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        values[outside] = _feistel(values[outside], keys, np.uint64(half))
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << half) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
