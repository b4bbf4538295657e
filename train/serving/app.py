"""The application: transformers' server with one model, checked requests, and errors in OpenAI's format."""

import asyncio
import contextlib
import inspect
import json
import sys
import time
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import CBWorkerDeadError, GenerationState, Modality

from ..data.plain_text import prompt_ids
from ..model.generation import encode_prompt
from .answers import EXCHANGE, Answers, Exchange
from .requests import ChatRequest, CompletionRequest, RequestError, ResponsesRequest, checked
from .sampling import Settings

# transformers' server has more: routes that load any model by name, unload it, or serve other kinds of model
PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/health"}
STREAM_ERROR = 'data: {"error": "'  # how transformers' server reports one


class ServedTokenizer:
    """What transformers' server calls to encode a request: control tokens in it stay text.

    Args:
        name: of the model, for error messages.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._name, self._tokenizer_of_model = name, tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer_of_model, name)

    def __call__(self, prompt: str, **_: Any) -> dict[str, list[int]]:
        """The ids of a prompt.

        Raises:
            RequestError: the vocabulary lacks a part of it.
        """
        with value_errors("prompt"):
            return {"input_ids": encode_prompt(self._tokenizer_of_model, prompt)}

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> dict[str, list[int]]:
        """The ids of a conversation.

        Raises:
            RequestError: the model has no chat template, or its template refuses the conversation.
        """
        if self._tokenizer_of_model.chat_template is None:
            raise RequestError(
                f"the model {self._name} has no chat template: send a prompt to /v1/completions, or serve a model that "
                "was fine-tuned with scratch-gpt finetune."
            )
        with value_errors("messages"):
            return {"input_ids": prompt_ids(self._tokenizer_of_model, messages)}


@contextlib.contextmanager
def value_errors(field: str) -> Any:
    """Turns a ValueError into the answer to a request.

    Raises:
        RequestError: with its message.
    """
    try:
        yield
    except ValueError as error:
        raise RequestError(str(error), field=field) from None


class ServedModel(GenerationState):
    """The only model of a server: what transformers' handlers ask their model manager and their generation state.

    Args:
        name: that clients call it by.
    """

    def __init__(self, name: str, answers: Answers) -> None:
        super().__init__(continuous_batching=True)  # then the handlers pass ids as lists
        self.name, self.answers = name, answers
        self.tokenizer = ServedTokenizer(name, answers.tokenizer)
        self.created = int(time.time())

    def use_continuous_batching(self, model: Any, modality: Any) -> bool:
        """Yes."""
        return True

    def get_manager(self, model_id: str, use_cb: bool = False) -> Answers:
        """What generates the answers."""
        return self.answers

    def is_cb_alive(self) -> bool:
        """Whether requests can be answered."""
        return self.answers.is_alive()

    def get_model_modality(self, model: Any, processor: Any = None) -> Modality:
        """Text only."""
        return Modality.LLM

    def get_gen_models(self) -> list[dict[str, Any]]:
        """The list of models, for `/v1/models`."""
        return [{"id": self.name, "object": "model", "created": self.created, "owned_by": "hf_scratch_gpt"}]

    def shutdown(self) -> None:
        """End all answers, and stop generating."""
        self.answers.stop()


class OneModel:
    """The part of a handler of transformers' server that is not transformers' own."""

    fields: Any
    model_manager: Any  # a ServedModel

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """Check a request, and answer it.

        Raises:
            RequestError: it is not valid.
        """
        request = checked(self.fields, body)
        served = self.model_manager.name
        if request.model not in (None, served):
            raise RequestError(
                f"the model {request.model} is not served here: this server has only {served}.",
                field="model", code="model_not_found", status=404,
            )  # fmt: skip
        response = await super().handle_request(request.prepared(), request_id)  # type: ignore[misc]
        if isinstance(response, StreamingResponse) and self.fields is not ResponsesRequest:
            response.body_iterator = as_openai(response.body_iterator)
        return response

    def _validate_request(self, body: dict[str, Any]) -> None:
        """It is already checked."""

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
        served = self.model_manager
        return served.name, served.answers.model, served.tokenizer

    def _build_generation_config(self, body: dict[str, Any], model_generation_config: Any, use_cb: bool = False) -> Any:
        return Settings.of(body, model_generation_config)


class ChatCompletions(OneModel, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    fields = ChatRequest


class Completions(OneModel, CompletionHandler):
    """`/v1/completions`."""

    fields = CompletionRequest


class Responses(OneModel, ResponseHandler):
    """`/v1/responses`."""

    fields = ResponsesRequest


async def as_openai(parts: Any) -> AsyncIterator[str]:
    """A stream with errors in OpenAI's format, and the line that ends it in OpenAI's API."""
    async with contextlib.aclosing(parts):
        async for part in parts:
            chunks, start, message = part.partition(STREAM_ERROR)
            yield chunks
            if start:
                error = {"message": json.loads(start[-1] + message[: message.rindex("}")]), "type": "server_error"}
                yield f"data: {json.dumps({'error': error})}\n\n"
    yield "data: [DONE]\n\n"


def build_app(name: str, answers: Answers) -> ASGIApp:
    """The application that serves a model.

    Args:
        name: of the model, which requests may give as `model`.
    """
    served: Any = ServedModel(name, answers)
    handlers: dict[str, Any] = dict.fromkeys(
        parameter for parameter in inspect.signature(build_server).parameters if parameter.endswith("_handler")
    )
    handlers |= {
        "chat_handler": ChatCompletions(served, served),
        "completion_handler": Completions(served, served),
        "response_handler": Responses(served, served),
    }
    app = build_server(served, generation_state=served, **handlers)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in PATHS]
    for kind, answer in (
        (RequestError, refuse),
        (RequestValidationError, refuse_body),
        (HTTPException, refuse_route),
        (CBWorkerDeadError, refuse_all),
        (Exception, report_failure),
    ):
        app.add_exception_handler(kind, answer)
    return Watched(app)


def error_response(status: int, message: str, field: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's format; the log gets its message too."""
    EXCHANGE.get().reason = message
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": field, "code": code}}, status)


def refuse(request: Request, error: Any) -> JSONResponse:
    """For a request that is not valid."""
    return error_response(error.status, error.message, error.field, error.code)


def refuse_body(request: Request, error: Any) -> JSONResponse:
    """For a body that is no JSON object."""
    first = error.errors()[0]
    detail = f" ({first['ctx']['error']} at character {first['loc'][-1]})" if first["type"] == "json_invalid" else ""
    return error_response(
        400, f"the body of the request must be a JSON object, with Content-Type: application/json{detail}."
    )


def refuse_route(request: Request, error: Any) -> JSONResponse:
    """For a path or a method that does not exist."""
    if error.status_code == 400:
        return error_response(400, "the body of the request must be a JSON object in UTF-8.")
    return error_response(
        error.status_code,
        f"{request.method} {request.url.path}: {error.detail}. This server has {', '.join(sorted(PATHS))}.",
    )


def refuse_all(request: Request, error: Any) -> JSONResponse:
    """When generation has ended with an error."""
    return error_response(503, f"{error}. Restart the server.")


def report_failure(request: Request, error: Any) -> JSONResponse:
    """For every other error, whose traceback uvicorn logs."""
    return error_response(500, f"generation failed: {error}")


class Watched:
    """Logs each request in one line, and stops the answer to a client that has gone."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange, start = Exchange(), time.perf_counter()
        EXCHANGE.set(exchange)
        messages: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        status, is_complete = 500, False

        async def read() -> None:
            message: MutableMapping[str, Any] = {"type": ""}
            while message["type"] != "http.disconnect":
                messages.put_nowait(message := await receive())
                if message["type"] == "http.disconnect" and not is_complete:
                    exchange.leave()

        async def watched_send(message: MutableMapping[str, Any]) -> None:
            nonlocal status, is_complete
            status = message.get("status", status)
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        reader = asyncio.create_task(read())
        try:
            await self.app(scope, messages.get, watched_send)
        finally:
            reader.cancel()
            log(scope, "client gone" if exchange.is_gone else status, exchange, time.perf_counter() - start)
        return None


def log(scope: Scope, status: int | str, exchange: Exchange, seconds: float) -> None:
    """One line about a request."""
    answer = exchange.answer
    tokens = "" if answer is None else f"  {answer.num_prompt_tokens} + {answer.total_tokens} tokens"
    reason = f"  {json.dumps(exchange.reason, ensure_ascii=False)[1:-1]}" if exchange.reason else ""
    place = f"{scope['method']} {scope['path']}"
    print(f"{time.strftime('%H:%M:%S')}  {place}  {status}{tokens}  {seconds:.2f} s{reason}", file=sys.stderr)
