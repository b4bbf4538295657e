"""What a model predicts at each position, and how surprised it is by what comes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics.perplexity import bits_per_byte
from .tokens import Piece


@dataclass(frozen=True)
class Candidate:
    """A token that may come next.

    Attributes:
        rank: 1 for the most probable token.
    """

    id: int
    probability: float
    rank: int


def candidates(probabilities: Tensor, count: int, also: int | None = None) -> list[Candidate]:
    """The most probable tokens, and one more if it is not among them.

    Args:
        probabilities: (vocab,).
        also: the token that must be listed, such as the one that did come next.
    """
    top = probabilities.topk(min(count, len(probabilities)))
    found = [
        Candidate(i, p, rank)
        for rank, (p, i) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), 1)
    ]
    if also is not None and all(one.id != also for one in found):
        found.append(candidate(probabilities, also))
    return found


def candidate(probabilities: Tensor, token: int) -> Candidate:
    """A token with its rank; tokens that are equally probable are ranked by their ids."""
    own = probabilities[token]
    rank = 1 + int((probabilities > own).sum()) + int((probabilities[:token] == own).sum())
    return Candidate(token, float(own), rank)


def surprisals(logits: Tensor, ids: Sequence[int]) -> list[float | None]:
    """Bits per token, -log2 p(token | the tokens before it). None for the first, which nothing predicts.

    Args:
        logits: (seq, vocab), row i predicts token i + 1.
    """
    nats = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(list(ids[1:])), reduction="none")
    return [None, *(nats / torch.log(torch.tensor(2.0, dtype=torch.double))).tolist()]


def text_bits_per_byte(bits: Sequence[float | None], pieces: Sequence[Piece]) -> float | None:
    """Bits per byte of all predicted tokens; None if they have no bytes."""
    scored = [(one, piece) for one, piece in zip(bits, pieces, strict=True) if one is not None]
    num_bytes = sum(len(piece.data) for _, piece in scored)
    total_nats = sum(one for one, _ in scored) * float(torch.log(torch.tensor(2.0, dtype=torch.double)))
    return bits_per_byte(total_nats, num_bytes) if num_bytes else None
