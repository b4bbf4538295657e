"""Generate text in the background, while the page shows what there is, until it is stopped."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ..model.generation import TextStream, generate_text
from ..settings.sampling import SamplingArguments
from .library import Library, OpenModel

INTERVAL = 0.05  # seconds between two updates of the page


@dataclass
class Pace:
    """When the tokens of a text came, in seconds of `time.perf_counter`."""

    started: float
    first: float | None = None
    last: float = 0.0
    count: int = 0

    def tick(self) -> None:
        """A token has come."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.count += 1

    def __str__(self) -> str:
        if self.first is None:
            return "waiting for the first token"
        words = [
            f"{self.count} token{'s' * (self.count != 1)}",
            f"first after {1000 * (self.first - self.started):.0f} ms",
        ]
        if self.count > 1:
            words.append(f"{(self.count - 1) / (self.last - self.first):.0f} tokens/s")
        return ", ".join(words)


class PacedStream(TextStream):
    """A text that counts its tokens as they come."""

    pace: Pace

    def put(self, value: torch.Tensor) -> None:
        """As TextStream; the first call has the prompt."""
        if self.has_prompt:
            self.pace.tick()
        super().put(value)


@dataclass
class Writing:
    """One continuation of a text, the same as that of `scratch-gpt generate` with these settings."""

    library: Library
    opened: OpenModel
    ids: Sequence[int]
    sampling: SamplingArguments
    max_new_tokens: int
    news: "queue.Queue[str | BaseException | None]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self.stream = PacedStream(self.opened.tokenizer, self.news.put)
        self.stream.pace = self.pace = Pace(time.perf_counter())
        self.was_stopped = False

    def stop(self) -> None:
        """End before the next token."""
        self.was_stopped = self.stream.is_stopped = True

    def texts(self) -> Iterator[str]:
        """The new text so far, each time that there is more of it.

        Raises:
            ValueError: too little memory.
        """
        worker = threading.Thread(target=self._run, daemon=True)
        worker.start()
        text = ""
        try:
            while (item := self.news.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                text += item + self._more()
                yield text
                time.sleep(INTERVAL)
        finally:  # also if the page was closed
            self.stream.is_stopped = True
            worker.join()

    def _more(self) -> str:
        """What came since the last update; the end and errors stay in the queue."""
        text = ""
        while not self.news.empty() and isinstance(self.news.queue[0], str):
            text += str(self.news.get())
        return text

    def _run(self) -> None:
        try:
            with self.library.lock:
                torch.manual_seed(self.sampling.seed)
                generate_text(
                    self.opened.model, self.opened.tokenizer, self.ids, self.stream,
                    max_new_tokens=self.max_new_tokens, **self.sampling.generation,
                )  # fmt: skip
            self.news.put(None)
        except BaseException as error:
            self.news.put(error)


def fitting(opened: OpenModel, ids: list[int], max_new_tokens: int) -> list[int]:
    """The last ids that leave room for the new tokens, as `scratch-gpt generate` keeps them.

    Raises:
        ValueError: the new tokens leave no room.
    """
    if max_new_tokens >= opened.positions:
        raise ValueError(f"{max_new_tokens} new tokens leave no room for a prompt: the model reads {opened.positions}.")
    return ids[-(opened.positions - max_new_tokens) :]
