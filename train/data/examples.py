"""The interface of a training or validation set."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

IGNORE_INDEX = -100  # label of a position without a loss


class Examples(Protocol):
    """The examples of a split: `TokenBlocks`, `PackedConversations` or `LabelledTexts`."""

    def __len__(self) -> int: ...

    @property
    def mean_length(self) -> float:
        """Mean number of input tokens per example."""

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of the examples at `indices`; the first dimension of each is len(indices)."""
