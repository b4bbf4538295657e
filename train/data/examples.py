"""The interface of a dataset that a run learns from."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

IGNORE_INDEX = -100  # the label of a position that is not predicted


class Examples(Protocol):
    """The examples of a split, such as `TokenBlocks`."""

    def __len__(self) -> int: ...

    @property
    def mean_length(self) -> float:
        """Mean number of input tokens per example."""

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of the examples at `indices`; the first dimension of each is len(indices)."""
