"""One step of sampling under the glass: what each setting does to the probabilities of the next token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Knobs:
    """How the next token is chosen.

    Attributes:
        temperature: 0: always the most probable token, and `top_k`, `top_p` and `min_p` do nothing.
        top_k: 0: all tokens.
        top_p: 1: all tokens.
        min_p: 0: all tokens.
        repetition_penalty: 1: none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def processors(self) -> list[tuple[str, LogitsProcessor]]:
        """The processors that `generate` of transformers would use, in its order, with the names of their settings."""
        found: list[tuple[str, LogitsProcessor]] = []
        if self.repetition_penalty != 1:
            found.append(("repetition_penalty", RepetitionPenaltyLogitsProcessor(self.repetition_penalty)))
        if self.temperature == 0:
            return found
        if self.temperature != 1:
            found.append(("temperature", TemperatureLogitsWarper(float(self.temperature))))
        if self.top_k:
            found.append(("top_k", TopKLogitsWarper(self.top_k)))
        if self.top_p < 1:
            found.append(("top_p", TopPLogitsWarper(self.top_p)))
        if self.min_p > 0:
            found.append(("min_p", MinPLogitsWarper(self.min_p)))
        return found


@dataclass(frozen=True)
class Stage:
    """The effect of one setting.

    Attributes:
        name: of the setting, such as top_k.
        probabilities: (vocab,), after it.
        cut: the ids that it removed, most probable first.
        cut_mass: the probability that they had before.
    """

    name: str
    probabilities: Tensor
    cut: list[int]
    cut_mass: float


@dataclass(frozen=True)
class Choice:
    """The next token's probabilities before and after all settings, both (vocab,), and what each setting did."""

    before: Tensor
    after: Tensor
    stages: list[Stage]

    def cut_by(self, token: int) -> str | None:
        """The setting that removed a token; None if it can still be chosen."""
        return next((stage.name for stage in self.stages if token in stage.cut), None)

    def sample(self, seed: int) -> int:
        """The token that `generate` would choose with this seed."""
        torch.manual_seed(seed)
        return int(torch.multinomial(self.after[None], num_samples=1))


def choose(logits: Tensor, ids: Sequence[int], knobs: Knobs) -> Choice:
    """Follow the choice of one token.

    Args:
        logits: (vocab,), of the token that follows `ids`.
        ids: the tokens so far, which the repetition penalty counts.
    """
    scores = logits[None].float()  # (1, vocab)
    input_ids = torch.tensor([list(ids)])
    before = scores.softmax(dim=-1)[0]
    stages, last = [], before
    for name, process in knobs.processors:
        previous, scores = scores, process(input_ids, scores)
        now = scores.softmax(dim=-1)[0]
        stages.append(_stage(name, previous[0], scores[0], last, now))
        last = now
    if knobs.temperature == 0:
        best = int(scores[0].argmax())
        greedy = torch.zeros_like(last).index_fill(0, torch.tensor([best]), 1.0)
        others = last.argsort(descending=True).tolist()
        others.remove(best)
        stages.append(Stage("temperature", greedy, others, float(1 - last[best])))
        last = greedy
    return Choice(before, last, stages)


def _stage(name: str, previous: Tensor, scores: Tensor, last: Tensor, now: Tensor) -> Stage:
    cut = (scores.isinf() & ~previous.isinf()).nonzero()[:, 0]
    cut = cut[last[cut].argsort(descending=True)]
    return Stage(name, now, cut.tolist(), float(last[cut].sum()))
