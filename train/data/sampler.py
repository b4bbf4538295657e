"""The order of examples: those of step s are a pure function of the seed and s."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .examples import Examples


def examples_at(step: int, *, seed: int, num_rows: int, batch_size: int) -> np.ndarray:
    """Row numbers of the batch of `step` (counted from 0), a pure function of its arguments.

    Position p of the endless stream of examples lies in epoch p // num_rows, and each epoch visits
    every row once in an order of its own. The order is a bijection that is computed, not stored, so
    it costs O(batch_size) at any step and nothing has to be saved for a resume.
    """
    positions = np.arange(batch_size, dtype=np.int64) + step * batch_size
    epochs, places = np.divmod(positions, num_rows)
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        rows[epochs == epoch] = _shuffled(places[epochs == epoch], num_rows, (seed, int(epoch)))
    return rows


def _shuffled(places: np.ndarray, num_rows: int, key: tuple[int, int]) -> np.ndarray:
    """A keyed bijection of range(num_rows): a Feistel network on the next power of 4, walked until inside.

    https://en.wikipedia.org/wiki/Format-preserving_encryption
    """
    half = max(((num_rows - 1).bit_length() + 1) // 2, 1)  # bits per half: the domain is < 4 x num_rows
    keys = np.frombuffer(hashlib.blake2b(f"{key}".encode()).digest(), "<u8")  # one per round
    values = places.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        values[outside] = _feistel(values[outside], keys, np.uint64(half))
        outside = values >= num_rows
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
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class StepSampler:
    """The micro-batches of this process: number m of a step belongs to process m % num_processes.

    The examples of a step depend on `seed` and `batch_size` only, never on the number of processes
    or on `micro_batch_size`.
    """

    source: Examples
    batch_size: int  # sequences per step over all processes
    micro_batch_size: int
    seed: int
    process_index: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        share = self.micro_batch_size * self.num_processes
        if share < 1 or self.batch_size < 1 or self.batch_size % share:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size "
                f"({self.micro_batch_size}) x processes ({self.num_processes}) = {share}: change one of them."
            )
        if len(self.source) == 0:
            raise ValueError("The training data holds no examples: there is nothing to draw batches from.")
        if len(self.source) < self.num_processes:
            raise ValueError(
                f"{self.num_processes} processes share {len(self.source)} sequences of training data: start fewer "
                "processes, or cut the data into more (--block_size of train.prepare_data)."
            )

    def micro_batches(self, step: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yields (m, batch of micro_batch_size examples)."""
        examples = examples_at(step, seed=self.seed, num_rows=len(self.source), batch_size=self.batch_size)
        parts = examples.reshape(-1, self.micro_batch_size)
        for number in range(self.process_index, len(parts), self.num_processes):
            yield number, self.source.batch(parts[number])
