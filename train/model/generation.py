"""Generate text piece by piece, and stop at given texts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..data.plain_text import plain_ids
from .load import memory_errors

UNFINISHED = "\ufffd"  # how bytes decode that are not yet a whole character


class TextStream(BaseStreamer):
    """Decodes generated tokens as they come, and passes each new piece of text to `write`.

    Text that may be the beginning of one of the `stop` texts is held back until it is clear that it is not. The `stop`
    text itself is never written.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None], stop: Sequence[str] = ()
    ) -> None:
        self.tokenizer, self.write, self.stop = tokenizer, write, stop
        self.ids: list[int] = []
        self.start = self.decoded = 0  # only ids[start:] are decoded again; ids[:decoded] are whole characters
        self.added = 0  # characters of ids[start:] that are in `text`
        self.text = ""
        self.written = 0
        self.is_stopped = self.has_prompt = False

    def put(self, value: Tensor) -> None:
        """Take the prompt, (1, prompt), in the first call, and one token, (1,), in each further one."""
        if not self.has_prompt:
            self.has_prompt = True
            return
        self.ids += value.flatten().tolist()
        now = self._decode(self.ids[self.start :])
        if now.endswith(UNFINISHED):  # further bytes may complete this character, but none before it
            self._add(now[self.added : -1])
            self.added = max(self.added, len(now) - 1)
            return
        self._add(now[self.added :])
        self.start, self.decoded = self.decoded, len(self.ids)
        self.added = len(self._decode(self.ids[self.start :]))

    def end(self) -> None:
        """Write what was held back."""
        now = self._decode(self.ids[self.start :])
        self._add(now[self.added :])
        self.added = max(self.added, len(now))
        self._write_until(len(self.text))

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _add(self, text: str) -> None:
        if self.is_stopped:
            return
        self.text += text
        places = [place for stop in self.stop if (place := self.text.find(stop, self.written)) >= 0]
        if places:
            self.text, self.is_stopped = self.text[: min(places)], True
        held = max((_overlap(self.text, stop) for stop in self.stop), default=0)
        self._write_until(len(self.text) - (0 if self.is_stopped else held))

    def _write_until(self, end: int) -> None:
        if end > self.written:
            self.write(self.text[self.written : end])
            self.written = end


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def generate_text(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    stream: TextStream,
    **generation: Any,
) -> str:
    """Continue `ids`, and return the new text without special tokens and without the text that stopped it.

    Args:
        generation: further arguments of `generate` of transformers.

    Raises:
        ValueError: too little memory.
    """
    input_ids = torch.tensor([list(ids)], device=model.device)  # (1, prompt)

    def is_stopped(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), stream.is_stopped, device=input_ids.device)

    with memory_errors("the model with this prompt"):
        model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            streamer=stream,
            stopping_criteria=StoppingCriteriaList([is_stopped]),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **generation,
        )
    return stream.text


def check_outputs(place: str, model: Any, ids: Sequence[int]) -> None:
    """Refuse a model whose outputs for `ids` are not numbers.

    Raises:
        ValueError: the weights are damaged.
    """
    with torch.no_grad():
        logits = model(torch.tensor([list(ids)], device=model.device)).logits
    if not torch.isfinite(logits).all():
        raise ValueError(f"the outputs of {place} are not finite: its weights are damaged.")


def max_positions(model: Any) -> int:
    """The number of tokens that a model reads."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1024)


def start_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a text begins with; None if the tokenizer has none."""
    found: Any = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return found if found is None else int(found)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The ids of a prompt; an empty one begins a text.

    Raises:
        ValueError: the tokenizer cannot encode it, or has no token that begins a text.
    """
    if ids := plain_ids(tokenizer, prompt):
        return ids
    start = start_id(tokenizer)
    if start is None:
        raise ValueError("the tokenizer has neither a bos_token nor an eos_token to begin a text: give a --prompt.")
    return [start]
