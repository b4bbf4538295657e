"""Scores of a model on texts: sums over windows of tokens, from which means and their standard errors follow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from ..settings.words import counted
from .perplexity import bits_per_byte, perplexity

NAME_WIDTH = 19
COLUMNS = (("tokens", 11), ("loss", 9), ("+/-", 8), ("perplexity", 12), ("bits/byte", 11), ("accuracy", 10))


@dataclass
class TextScores:
    """Sums over all windows of a text; add two of them for a total."""

    num_windows: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    num_correct: int = 0  # tokens that are the most probable one
    nats: float = 0.0
    nats_squared: float = 0.0  # sums of products per window, for the standard error
    tokens_squared: float = 0.0
    nats_times_tokens: float = 0.0

    def add_windows(self, log_probs: Tensor, correct: Tensor, num_bytes: int) -> None:
        """Count windows of equal length.

        Args:
            log_probs: (windows, tokens), ln p of each token.
            correct: (windows, tokens), whether it is the most probable one.
            num_bytes: of text, in all windows.
        """
        windows, length = log_probs.shape
        nats = -log_probs.double().sum(dim=1)
        self.num_windows += windows
        self.num_tokens += windows * length
        self.num_bytes += num_bytes
        self.num_correct += int(correct.sum())
        self.nats += float(nats.sum())
        self.nats_squared += float((nats * nats).sum())
        self.tokens_squared += windows * length**2
        self.nats_times_tokens += float(nats.sum()) * length

    def __add__(self, other: "TextScores") -> "TextScores":
        return TextScores(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def loss_error(self) -> float:
        """The standard error of the loss: windows are the independent observations of a ratio; nan for one window.

        Cochran, "Sampling Techniques" (1977), section 6.3.
        """
        if self.num_windows < 2:
            return math.nan
        loss = self.loss
        squares = self.nats_squared - 2 * loss * self.nats_times_tokens + loss**2 * self.tokens_squared
        return math.sqrt(max(squares, 0.0) * self.num_windows / (self.num_windows - 1)) / self.num_tokens

    @property
    def cells(self) -> list[str]:
        """The values of COLUMNS."""
        error = "" if math.isnan(self.loss_error) else f"{self.loss_error:.4f}"
        bits = bits_per_byte(self.nats, self.num_bytes)
        accuracy = self.num_correct / self.num_tokens
        shown = perplexity(self.loss)
        perplexity_cell = f"{shown:,.2f}" if shown < 1e7 else f"{shown:.3g}"
        return [f"{self.num_tokens:,}", f"{self.loss:.4f}", error, perplexity_cell, f"{bits:.4f}", f"{accuracy:.4f}"]


def score_table(scores: Sequence[tuple[str, TextScores]]) -> str:
    """One line per text, and the total of several; at most 80 columns wide."""
    total = sum((one for _, one in scores), TextScores())
    rows = [*scores, ("total", total)] if len(scores) > 1 else list(scores)
    lines = [_line("text", [title for title, _ in COLUMNS]), *(_line(name, one.cells) for name, one in rows)]
    per_token = total.num_bytes / total.num_tokens
    lines += [
        "",
        f"loss in nats per token, +/- its standard error over {counted(total.num_windows, 'window')}",
        f"{counted(total.num_bytes, 'byte')} of text, {per_token:.2f} bytes per token",
    ]
    return "\n".join(lines)


def _line(name: str, cells: Sequence[str]) -> str:
    padded = (f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))
    return f"{ending(name, NAME_WIDTH):<{NAME_WIDTH}}{''.join(padded)}".rstrip()


def ending(name: str, width: int) -> str:
    """A name, or as much of its end as fits."""
    return name if len(name) <= width else f"...{name[3 - width :]}"
