"""What a head of attention does, where its maps show it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .inside import attention_maps

WORDS = {
    "previous token": "looks at the token before",
    "first token": "looks at the first token of the text, where a head rests that has nothing to do",
    "same token": "looks at earlier copies of the current token",
    "induction": "looks at what followed the current token last time, which lets the model repeat a pattern",
}
THRESHOLD = 0.3  # the share of attention from which a head gets a word
REPEATED = 24  # tokens of the text that is read twice
SEQUENCES = 4


@dataclass(frozen=True)
class HeadWord:
    """The pattern of a head.

    Attributes:
        scores: the share of attention that goes where each of WORDS says, from 0 to 1.
    """

    layer: int
    head: int
    scores: dict[str, float]

    @property
    def word(self) -> str | None:
        """The pattern with the highest score; None if no score reaches THRESHOLD."""
        best = max(self.scores, key=lambda name: self.scores[name])
        return best if self.scores[best] >= THRESHOLD else None

    @property
    def score(self) -> float:
        """The highest score."""
        return max(self.scores.values())


def pattern_scores(attentions: Tensor, ids: Sequence[int]) -> dict[str, Tensor]:
    """The mean share of attention for each of WORDS, (layers, heads), over the positions where the pattern is possible.

    The first two positions do not count: there the patterns are the same. A pattern that the text never allows has 0.

    Args:
        attentions: (layers, heads, query_seq, key_seq).
    """
    seq = len(ids)
    tokens = torch.tensor(list(ids))
    query, key = torch.arange(seq)[:, None], torch.arange(seq)[None]
    copies = (tokens[:, None] == tokens[None]) & (key < query)
    after_copies = torch.zeros_like(copies)
    after_copies[:, 1:] = copies[:, :-1]
    after_copies &= key < query  # after a copy just before, the token itself
    targets = {
        "previous token": key == query - 1,
        "first token": (key == 0) & (query > 0),
        "same token": copies,
        "induction": after_copies,
    }
    return {name: _mean_share(attentions, target & (query > 1)) for name, target in targets.items()}


def _mean_share(attentions: Tensor, target: Tensor) -> Tensor:
    """(layers, heads), the attention to `target`, (query_seq, key_seq), over its rows with a target."""
    rows = target.any(dim=-1)
    if not rows.any():
        return torch.zeros(attentions.shape[:2])
    return (attentions * target).sum(dim=-1)[..., rows].mean(dim=-1)


@torch.no_grad()
def head_words(model: Any, tokens: Sequence[int], longest: int) -> list[HeadWord]:
    """Each head on random tokens that are read twice, which have no other pattern than the repetition.

    Olsson et al., "In-context Learning and Induction Heads" (2022), https://huggingface.co/papers/2209.11895.

    Args:
        tokens: the ids to draw from; without control tokens.
        longest: the number of tokens that the model reads.
    """
    generator = torch.Generator().manual_seed(0)
    length = max(2, min(REPEATED, longest // 2, len(tokens)))
    found = []
    for _ in range(SEQUENCES):
        chosen = torch.tensor(list(tokens))[torch.randperm(len(tokens), generator=generator)[:length]]
        ids = torch.cat([chosen, chosen])
        maps = attention_maps(model, ids[None].to(model.device))
        if maps is None:
            return []
        found.append(pattern_scores(maps, ids.tolist()))
    means = {name: torch.stack([one[name] for one in found]).mean(dim=0) for name in WORDS}
    layers, heads = next(iter(means.values())).shape
    return [
        HeadWord(layer, head, {name: float(mean[layer, head]) for name, mean in means.items()})
        for layer in range(layers)
        for head in range(heads)
    ]
