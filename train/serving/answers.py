"""Generate the answers to requests: one after another as `scratch-gpt generate` does, or many in one batch."""

import asyncio
import time
import uuid
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.cli.serving.utils import (
    BaseGenerateManager,
    CBWorkerDeadError,
    InferenceThread,
    _StreamError,
    response_events_to_chunks,
)

from ..model.compiled import compile_generation
from ..model.generation import TextStream, generate_text
from .cache import batching_config
from .requests import RequestError
from .sampling import Settings


class Answer(TextStream):
    """The answer to one request as it is generated: both the queue and the streamer of transformers' server."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: Settings, num_prompt_tokens: int, parser: Any = None
    ) -> None:
        super().__init__(tokenizer, self._send, settings.stop)
        self.settings, self.num_prompt_tokens, self.parser = settings, num_prompt_tokens, parser
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.is_finished = False
        if parser is not None:
            self._enqueue(response_events_to_chunks(parser.initial_events))

    @property
    def total_tokens(self) -> int:
        """The number of tokens so far."""
        return len(self.ids)

    def put(self, value: torch.Tensor) -> None:
        """Take the next token, unless the answer has ended: `generate` may be one token ahead."""
        if not self.is_stopped:
            super().put(value)

    def cancel(self) -> None:
        """End the answer before the next token."""
        self.is_stopped = True

    def finish(self, eos_ids: Sequence[int] = (), error: str | None = None) -> None:
        """End the queue; only the first call counts."""
        if self.is_finished:
            return
        self.is_finished = True
        self.end()
        if self.is_stopped or (self.ids and self.ids[-1] in eos_ids):
            self.settings.max_new_tokens = None
        self._enqueue([*self._rest(), None if error is None else _StreamError(quotable(error))])

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=self.parser is None))

    def _send(self, text: str) -> None:
        self._enqueue([text] if self.parser is None else response_events_to_chunks(self.parser.feed(text)))

    def _rest(self) -> list[Any]:
        """What the parser of a reasoning model still holds; nothing if the answer ends within a tool call."""
        if self.parser is None:
            return []
        try:
            return response_events_to_chunks(self.parser.finalize()[1])
        except (ValueError, RuntimeError):
            return []

    def _enqueue(self, items: Sequence[Any]) -> None:
        for item in items:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)


def quotable(message: str) -> str:
    """A message that transformers' server can write between quotes."""
    return " ".join(message.split()).replace("\\", "/").replace('"', "'")


@dataclass
class Exchange:
    """A request that is being answered, for the log, and to cancel it.

    Attributes:
        reason: why it was refused.
        is_gone: whether the client has closed the connection.
    """

    answer: Answer | None = None
    reason: str = ""
    is_gone: bool = False

    def begin(self, answer: Answer) -> None:
        """Remember the answer, which nobody waits for if the client is gone."""
        self.answer = answer
        if self.is_gone:
            answer.cancel()

    def leave(self) -> None:
        """The client is gone."""
        self.is_gone = True
        if self.answer is not None:
            self.answer.cancel()


EXCHANGE: ContextVar[Exchange] = ContextVar("EXCHANGE")


class Answers(BaseGenerateManager):
    """Starts the answers of one model.

    Args:
        max_length: of a prompt and its answer.
        max_new_tokens: of an answer whose request does not limit it; None: as many as fit.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, max_new_tokens: int | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.max_new_tokens = max_length, max_new_tokens
        self.eos_ids = as_list(model.generation_config.eos_token_id)
        self.running: weakref.WeakSet[Answer] = weakref.WeakSet()  # and some that have just ended

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[Any, Any]:
        """Start an answer.

        Raises:
            RequestError: the prompt, or the prompt and its answer, are too long, or a setting that is not supported.
        """
        ids: list[int] = inputs["input_ids"]
        gen_config.max_new_tokens = self.room(len(ids), gen_config.max_new_tokens)
        answer = Answer(self.tokenizer, gen_config, len(ids), response_parser)
        self.begin(ids, answer)
        self.running.add(answer)
        EXCHANGE.get().begin(answer)
        return answer.queue, answer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, list[int]]:
        """A whole answer: its text, the length of its prompt, and its tokens.

        Raises:
            RequestError: as `generate_streaming`.
            RuntimeError: generation failed.
        """
        queue, answer = self.generate_streaming(model, processor, inputs, gen_config, request_id)
        while (item := await queue.get()) is not None:
            if isinstance(item, _StreamError):
                raise RuntimeError(item.msg)
        return answer.text, answer.num_prompt_tokens, answer.ids

    def room(self, num_prompt_tokens: int, wanted: int | None) -> int:
        """The maximum length of an answer.

        Raises:
            RequestError: it does not fit.
        """
        room = self.max_length - num_prompt_tokens
        sizes = f"the prompt has {num_prompt_tokens:,} tokens"
        if room < 1:
            raise RequestError(
                f"{sizes}, but the model reads {self.max_length:,}, including the answer: shorten the prompt.",
                code="context_length_exceeded",
            )
        if wanted is not None and wanted > room:
            raise RequestError(
                f"{sizes}, and its answer may have {wanted:,}: together {num_prompt_tokens + wanted:,}, but the model "
                f"reads {self.max_length:,}. Ask for at most {room:,} tokens, or shorten the prompt.",
                code="context_length_exceeded",
            )
        return wanted or min(room, self.max_new_tokens or room)

    @abstractmethod
    def begin(self, ids: list[int], answer: Answer) -> None:
        """Start to generate the answer to a prompt."""

    def is_alive(self) -> bool:
        """Whether further answers can be generated."""
        return True

    def stop(self) -> None:
        """Free the memory; nothing is generated any more."""


class OneByOne(Answers):
    """Answers requests one after another, in the order in which they come."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.thread = InferenceThread()

    def compile(self, place: str, first_id: int) -> None:
        """Compile the model for generation in the thread that generates; see `compile_generation`.

        Raises:
            ValueError: it cannot be compiled.
        """
        self.thread.submit(compile_generation, place, self.model, first_id).result()

    def begin(self, ids: list[int], answer: Answer) -> None:
        """Generate the answer after those before it."""
        self.thread.submit(self._generate, ids, answer)

    def _generate(self, ids: list[int], answer: Answer) -> None:
        try:
            if answer.settings.seed is not None:
                torch.manual_seed(answer.settings.seed)
            if not answer.is_stopped:
                generate_text(self.model, self.tokenizer, ids, answer, **answer.settings.generation)
            answer.finish(self.eos_ids)
        except Exception as error:
            answer.finish(error=str(error))


class ContinuousBatching(Answers):
    """Answers requests together: each begins at once, and leaves the batch when it is complete.

    Args:
        max_requests: in the batch; further ones wait.

    Raises:
        ValueError: too little memory for the cache.
    """

    def __init__(self, *arguments: Any, max_requests: int) -> None:
        super().__init__(*arguments)
        # the values make transformers build what applies those of each request; none of them is ever used
        sampling = GenerationConfig(
            do_sample=True, temperature=0.5, top_k=2, top_p=0.5, max_new_tokens=1, eos_token_id=self.eos_ids or [-1]
        )
        config = batching_config(self.model, self.max_length, max_requests)
        self.manager = self.model.init_continuous_batching(
            generation_config=sampling, continuous_batching_config=config
        )
        self.manager.start()
        self._wait_for_cache()

    def _wait_for_cache(self) -> None:
        while self.manager.batch_processor is None:
            if error := self.manager.background_thread_status.fatal_error:
                self.stop()
                raise ValueError(
                    f"the cache for continuous batching cannot be created ({error}): lower --max_concurrent_requests."
                )
            time.sleep(0.01)

    def begin(self, ids: list[int], answer: Answer) -> None:
        """Add a request to the batch.

        Raises:
            RequestError: a setting that only answers one by one can have.
            CBWorkerDeadError: an earlier error has ended the generation.
        """
        if not self.is_alive():
            raise CBWorkerDeadError(f"generation has ended: {self.manager.background_thread_status.fatal_error}")
        request = str(uuid.uuid4())  # not that of the client, who may use it twice
        answer.has_prompt = True
        sampling = self._sampling(answer.settings)
        self.manager.register_result_handler(request, lambda output: self._receive(output, request, answer))
        self.manager.add_request(
            ids,
            request_id=request,
            streaming=True,
            max_new_tokens=answer.settings.max_new_tokens,
            eos_token_id=self.eos_ids or [-1],
            **sampling,
        )

    def _sampling(self, settings: Settings) -> dict[str, float]:
        """What transformers applies to one request of a batch. It draws every token, so the best of 1 is greedy."""
        for name, value, usual in (
            ("repetition_penalty", settings.repetition_penalty, 1),
            ("seed", settings.seed if settings.temperature else None, None),
        ):
            if value != usual:
                raise RequestError(
                    f"{name} is {value}: it requires a server that was started with --continuous_batching false.",
                    field=name,
                )
        if not settings.temperature:
            return {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
        vocab_size = int(self.model.config.get_text_config().vocab_size)
        top_k = min(settings.top_k or vocab_size, vocab_size)
        return {"temperature": float(settings.temperature), "top_k": top_k, "top_p": float(settings.top_p)}

    def _receive(self, output: Any, request: str, answer: Answer) -> None:
        try:
            for token in output.generated_tokens[len(answer.ids) :]:
                answer.put(torch.tensor([token]))
            if output.error is not None:
                answer.finish(error=str(output.error))
            elif output.is_finished() or answer.is_stopped:
                answer.finish(self.eos_ids)
        except Exception as error:
            answer.finish(error=str(error))
        if answer.is_finished and not output.is_finished():
            self._leave(request, answer)

    def _leave(self, request: str, answer: Answer) -> None:
        """Free the place of a request that needs no more tokens."""
        self.manager.cancel_request(request)
        handlers = self.manager.output_router.result_handlers
        answer.loop.call_later(10, handlers.pop, request, None)  # tokens that are on their way still come

    def is_alive(self) -> bool:
        """Whether the thread that generates still runs."""
        return self.manager.background_thread_status.fatal_error is None

    def stop(self) -> None:
        """End the thread that generates."""
        self.manager.stop(block=True, timeout=5, hard_stop=True)


def as_list(ids: int | Sequence[int] | None) -> list[int]:
    """No, one, or several ids as a list."""
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
