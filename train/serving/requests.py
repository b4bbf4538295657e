"""What a request may contain. Anything else is an error that names the field: a setting is never ignored.

The fields are those of OpenAI's API (https://platform.openai.com/docs/api-reference), and `top_k` and
`repetition_penalty`, which clients send as `extra_body`.
"""

import difflib
import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..settings.sampling import HIGHEST_TEMPERATURE

TEXT_PARTS = ("text", "input_text", "output_text")


class RequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        field: of the request that is wrong, if it is one.
        code: OpenAI's name of the error, if it has one.
    """

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.field, self.code, self.status = message, field, code, status


def only(value: Any) -> AfterValidator:
    """Refuses every other value of a field that this server does not support."""

    def check(given: Any) -> Any:
        if given != value:
            raise ValueError(f"this server supports only {json.dumps(value)}")
        return given

    return AfterValidator(check)


def as_text(content: Any) -> str:
    """The content of a message, a string or a list of parts, as one string."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content or not all(map(is_text_part, content)):
        raise ValueError("it must be a string, or a list of text parts: this model reads only text")
    return " ".join(part["text"] for part in content)


def is_text_part(part: Any) -> bool:
    """Whether a part of a content is text."""
    return isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str)


def as_texts(stop: Any) -> list[str]:
    """The texts that end an answer."""
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("it must be a string or a list of strings, none of them empty")
    return texts


def as_items(given: Any) -> Any:
    """The input of a response: a text, its parts, or messages."""
    if not isinstance(given, str | list) or not given:
        raise ValueError("it must be a text or a list of messages, and not empty")
    return given


class Fields(BaseModel):
    """A part of a request, in which unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


FieldsT = TypeVar("FieldsT", bound=Fields)


class Message(Fields):
    """One message. An answer can be sent back as it was received."""

    role: str
    content: Annotated[Any, AfterValidator(as_text)]
    name: Any = None
    id: Any = None
    status: Any = None
    phase: Any = None
    type: Annotated[str, only("message")] = "message"
    refusal: Annotated[Any, only(None)] = None
    tool_calls: list[Any] = Field([], max_length=0)
    annotations: Any = None
    reasoning_content: Any = None

    def plain(self) -> dict[str, str]:
        """What the chat template reads."""
        return {"role": self.role, "content": self.content}


class Request(Fields):
    """What all endpoints have in common."""

    model: str | None = None
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=HIGHEST_TEMPERATURE)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    # no effect on the text
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    stream_options: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    def prepared(self) -> dict[str, Any]:
        """The request as transformers' server reads it."""
        return self.model_dump()


class GeneratingRequest(Request):
    """What chat completions and completions have in common."""

    max_tokens: int | None = Field(None, ge=1)
    stop: Annotated[Any, AfterValidator(as_texts)] = None
    n: Annotated[int, only(1)] = 1
    logprobs: Annotated[Any, only(False)] = False
    frequency_penalty: Annotated[float, only(0)] = 0.0
    presence_penalty: Annotated[float, only(0)] = 0.0
    logit_bias: Annotated[dict[str, Any], only({})] = {}


class CompletionRequest(GeneratingRequest):
    """The body of `/v1/completions`."""

    prompt: str = Field(min_length=1)
    best_of: Annotated[int, only(1)] = 1
    echo: Annotated[bool, only(False)] = False
    suffix: Annotated[str | None, only("")] = None

    def prepared(self) -> dict[str, Any]:
        """Without the suffix, which transformers' server would append to the answer."""
        return super().prepared() | {"suffix": None}


class ChatRequest(GeneratingRequest):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    top_logprobs: Annotated[int, only(0)] = 0
    response_format: Annotated[dict[str, Any], only({"type": "text"})] = {"type": "text"}
    modalities: Annotated[list[str], only(["text"])] = ["text"]
    tools: list[Any] = Field([], max_length=0)
    tool_choice: Any = None
    parallel_tool_calls: Any = None

    def prepared(self) -> dict[str, Any]:
        """With `max_tokens`, and without tools."""
        messages = [message.plain() for message in self.messages]
        limit = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        return super().prepared() | {"messages": messages, "max_tokens": limit, "tools": None}


class ResponsesRequest(Request):
    """The body of `/v1/responses`."""

    input: Annotated[Any, AfterValidator(as_items)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: Annotated[dict[str, Any], only({"format": {"type": "text"}})] = {"format": {"type": "text"}}
    tools: list[Any] = Field([], max_length=0)
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    include: list[Any] = Field([], max_length=0)
    background: Annotated[bool, only(False)] = False
    truncation: Annotated[str, only("disabled")] = "disabled"

    def prepared(self) -> dict[str, Any]:
        """With messages as the input, and `max_tokens`."""
        fields = super().prepared() | {"max_tokens": self.max_output_tokens, "tools": None}
        return fields | {"input": self.messages(), "parallel_tool_calls": False}

    def messages(self) -> list[dict[str, str]]:
        """The input, which may be a text, its parts, or a conversation."""
        if isinstance(self.input, str) or not any(isinstance(item, dict) and "role" in item for item in self.input):
            return [{"role": "user", "content": checked_text("input", self.input)}]
        return [checked(Message, item, f"input.{index}.").plain() for index, item in enumerate(self.input)]


def checked_text(field: str, content: Any) -> str:
    """The text of a content.

    Raises:
        RequestError: it has other parts than text.
    """
    try:
        return as_text(content)
    except ValueError as error:
        raise RequestError(f"{field} is {shown(content)}: {error}.", field=field) from None


def checked(kind: type[FieldsT], body: Any, prefix: str = "") -> FieldsT:
    """A request, or a part of it; `null` stands for "not set".

    Args:
        prefix: where the part is, for the error messages.

    Raises:
        RequestError: the first field that is wrong, its value, and what it must be.
    """
    try:
        return kind.model_validate(without_nulls(body))
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
    field = prefix + ".".join(map(str, first["loc"]))
    raise RequestError(sentence(kind, field, first), field=field or None)


def without_nulls(value: Any) -> Any:
    """A value without the entries of objects that are null."""
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


def sentence(kind: type[Fields], field: str, error: Any) -> str:
    """What is wrong with a field."""
    if error["type"] == "missing":
        return f"{field} is missing."
    if error["type"] == "extra_forbidden":
        name = field.rpartition(".")[2]
        near = difflib.get_close_matches(name, kind.model_fields, n=1)
        return f"{field} is not supported" + (f": did you mean {near[0]}?" if near else ".")
    if error["type"] in ("too_short", "string_too_short"):
        return f"{field} is empty."
    if error["type"] == "too_long":
        return f"{field} is {shown(error['input'])}: this server does not support it."
    reason = error["msg"].removeprefix("Value error, ").replace("Input should", "it must")
    return f"{field} is {shown(error['input'])}: {reason}."


def shown(value: Any) -> str:
    """A value of a request, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
