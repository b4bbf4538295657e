"""The most probable next tokens at each step of a generation, as lines of a table."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..views.predictions import Candidate, candidate, candidates
from ..views.tokens import pieces
from .generation import TextStream

WIDTH = 14  # of a token


class TopTokens(TextStream):
    """Passes a line per token to `write_line`, instead of the text as it comes.

    The probabilities are those of the model, before temperature, top-k and other settings.

    Args:
        count: how many tokens a line lists.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        write_line: Callable[[str], None],
        count: int,
        stop: Sequence[str] = (),
    ) -> None:
        super().__init__(tokenizer, lambda text: None, stop)
        self.write_line, self.count = write_line, count
        self.probabilities: Tensor | None = None  # (vocab,), of the next token

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Remember what the model says of the next token."""

        def remember(module: Any, inputs: Any, output: Any) -> None:
            self.probabilities = output.logits[0, -1].float().softmax(dim=-1).cpu()

        handle = model.register_forward_hook(remember)
        self.write_line(f"{'step':>4}  {'chosen':<{WIDTH}} {'':>7}   most probable")
        try:
            yield
        finally:
            handle.remove()

    def put(self, value: Tensor) -> None:
        """As TextStream, and write the line of the token."""
        if self.has_prompt and self.probabilities is not None and not self.is_stopped:
            chosen = candidate(self.probabilities, int(value))
            best = candidates(self.probabilities, self.count)
            cells = "  ".join(self._cell(one) for one in best)
            self.write_line(f"{len(self.ids) + 1:>4}  {self._cell(chosen)}   {cells}".rstrip())
        super().put(value)

    def _cell(self, one: Candidate) -> str:
        (piece,) = pieces(self.tokenizer, [one.id])
        text = piece.visible if len(piece.visible) <= WIDTH else f"{piece.visible[: WIDTH - 3]}..."
        return f"{text:<{WIDTH}} {one.probability:>7.2%}"
