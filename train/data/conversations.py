"""Conversations for fine-tuning: parsed from rows of tables, encoded with a mask of the answers, packed into rows.

Only the assistant's tokens have a loss, including the end of each turn; the chat template marks them. Several
conversations share a row of tokens: position ids that restart at 0 keep them from attending to each other.
"""

import bisect
import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..settings.words import shown_names
from .examples import IGNORE_INDEX
from .plain_text import Message
from .rows import Row

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
FORMATS = "messages; conversations; prompt and completion; or instruction, (input) and output"
SYSTEM_COLUMNS = ("system", "system_prompt")
WEIGHT_KEYS = ("weight", "train", "loss")  # of OpenAI, Axolotl and ms-swift: whether an answer is learned
# Columns and keys that change what a good answer is, but are not supported. Others are ignored.
REFUSED_COLUMNS = {
    *("chosen", "rejected", "weight", "kto_tag", "context", "documents"),
    *("tools", "functions", "images", "image", "videos", "audios"),
}
REFUSED_KEYS = {"tool_calls", "function_call", "tool_call_id", "reasoning_content", "thinking", "images", "audio"}
ENCODE_BATCH = 256  # conversations tokenized at once


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of system, user and assistant, and their place for error messages."""

    place: str
    messages: list[Message]
    unread: frozenset[str] = frozenset()  # columns of the row that are not part of it


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a conversation."""

    ids: np.ndarray  # (tokens,)
    is_answer: np.ndarray  # (tokens,): written by the assistant, including the end of its turn

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads: all but the last."""
        return len(self.ids) - 1

    @property
    def is_answer_end(self) -> np.ndarray:
        """(tokens,): the last token of an answer."""
        ends: np.ndarray = self.is_answer & ~np.append(self.is_answer[1:], False)
        return ends


# Rows to messages
def parse_conversations(rows: Iterable[Row]) -> list[Conversation]:
    """The messages of each row, in any of the FORMATS, with a `system` column and, without messages, a `history`.

    Raises:
        ValueError: another format, an unknown role, an empty or missing text, no turn of the assistant, or a column or
            key that affects the answers but is not supported.
    """
    return [_conversation(row) for row in rows]


def unread_columns(conversations: Iterable[Conversation]) -> str:
    """A note about columns that are in the rows but not in the conversations; empty if there are none."""
    found = sorted(frozenset[str]().union(*(one.unread for one in conversations)))
    return f"columns that are not read: {shown_names(found)}" if found else ""


def _conversation(row: Row) -> Conversation:
    cells = {name: value for name, value in row.cells.items() if value is not None}
    messages, used = _messages(row, cells)
    for name in SYSTEM_COLUMNS:
        if cells.get(name, "") != "":
            messages = [{"role": "system", "content": cells[name]}, *messages]
            used.add(name)
    unread = frozenset(name for name, value in cells.items() if name not in used and not _is_empty(value))
    refused = {
        name for name in unread if name in REFUSED_COLUMNS or (name == "label" and isinstance(cells[name], bool))
    }
    if "history" in unread or refused:
        raise ValueError(
            f"{row.place}: the column {min(refused or {'history'})!r} affects the answers, but is not supported with "
            f"{' and '.join(sorted(used))}: include its content in the messages, or remove the column."
        )
    return Conversation(row.place, _checked_messages(row.place, messages), unread)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _messages(row: Row, cells: Mapping[str, Any]) -> tuple[list[Any], set[str]]:
    """The messages of a row before they are checked, and the columns that contain them."""
    for name in ("messages", "conversations"):
        if name in cells:
            return (list(cells[name]) if isinstance(cells[name], list) else [cells[name]]), {name}
    if "prompt" in cells and "completion" in cells:
        messages = _turns(cells["prompt"], "user") + _turns(cells["completion"], "assistant")
        return _history(row, cells) + messages, {"prompt", "completion", "history"}
    if "instruction" in cells and "output" in cells:
        parts = [_checked_text(row, name, cells.get(name, "")) for name in ("instruction", "input")]
        question = "\n\n".join(part for part in parts if part)
        messages = [*_turns(question, "user"), *_turns(cells["output"], "assistant")]
        return _history(row, cells) + messages, {"instruction", "input", "output", "history"}
    raise ValueError(
        f"{row.place}: a conversation needs the columns {FORMATS}, not {shown_names(list(row.cells)) or 'none'}."
    )


def _turns(value: Any, role: str) -> list[Any]:
    """A list of messages as it is; a text as one turn of `role`."""
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _history(row: Row, cells: Mapping[str, Any]) -> list[Any]:
    """The turns before the question, as LLaMA-Factory writes them: a list of [question, answer]."""
    pairs = cells.get("history") or []
    if not isinstance(pairs, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise ValueError(f"{row.place}: column 'history' must be a list of [question, answer], not {pairs!r:.60}.")
    return [turn for question, answer in pairs for turn in (*_turns(question, "user"), *_turns(answer, "assistant"))]


def _checked_text(row: Row, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(
            f"{row.place}: column {column!r} has the value {value!r:.40} of type {type(value).__name__}, not a string. "
            "Write it as text, in quotation marks."
        )
    return value


def _checked_messages(place: str, messages: list[Any]) -> list[Message]:
    checked = [_checked_message(place, number, message) for number, message in enumerate(messages, start=1)]
    if any(message["role"] == "system" for message in checked[1:]) and checked[0]["role"] == "system":
        raise ValueError(f"{place}: there are two system messages: join them.")
    answers = [message for message in checked if message["role"] == "assistant"]
    if not answers:
        raise ValueError(f"{place}: no message is from the assistant, so there is no answer to learn.")
    if not any(message.get("weight", 1) for message in answers):
        raise ValueError(f"{place}: every answer has the weight 0, so there is no answer to learn. Remove the row.")
    return checked


def _checked_message(place: str, number: int, message: Any) -> Message:
    """A message with the names of OpenAI's format."""
    names = ("role", "content") if isinstance(message, dict) and "role" in message else ("from", "value")
    if not isinstance(message, dict) or not set(names) <= message.keys():
        raise ValueError(f"{place}: message {number} must be an object with role and content, not {message!r:.60}.")
    role, content = (message[name] for name in names)
    role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) and "from" in names else role
    if role not in ROLES:
        raise ValueError(
            f"{place}: message {number} has the role {role!r:.40}, which is not one of {', '.join(ROLES)}."
        )
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"{place}: the content of message {number} ({role}) must be text, not {content!r:.60}.")
    for key in sorted(REFUSED_KEYS & message.keys()):
        if not _is_empty(message[key]):
            raise ValueError(f"{place}: message {number} has {key!r}, which is not supported: remove it, or the row.")
    is_learned = [_is_learned(place, number, key, message[key]) for key in WEIGHT_KEYS if message.get(key) is not None]
    return {"role": role, "content": content} | ({} if all(is_learned) else {"weight": 0})


def _is_learned(place: str, number: int, key: str, value: Any) -> bool:
    if value not in (0, 1):  # also False, True and 1.0
        raise ValueError(f"{place}: the {key} of message {number} is {value!r:.40}: it must be 0 or 1.")
    return bool(value)


# Messages to tokens
def encode_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[Encoded]:
    """Apply the chat template, whose generation markers identify the assistant's tokens.

    Raises:
        ValueError: a message contains a control token, which the model would take for a real one, or a character that
            the vocabulary lacks, or the template refuses the conversation.
    """
    control_tokens = [token for token in tokenizer.all_special_tokens if token]
    for one in conversations:
        for message in one.messages:
            for token in control_tokens:
                if token in message["content"]:
                    raise ValueError(f"{one.place}: a message contains the control token {token!r}: remove the row.")
    encoded: list[Encoded] = []
    for start in range(0, len(conversations), ENCODE_BATCH):
        encoded += _encode_batch(tokenizer, conversations[start : start + ENCODE_BATCH])
    return encoded


def _encode_batch(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[Encoded]:
    try:
        output: Any = tokenizer.apply_chat_template(
            [one.messages for one in conversations], return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception as error:  # from the template, or from tokenizers, which has no exception class for this
        if len(conversations) > 1:  # find the conversation
            return [encoded for one in conversations for encoded in _encode_batch(tokenizer, [one])]
        raise ValueError(f"{conversations[0].place}: the conversation cannot be encoded: {error}") from None
    triples = zip(conversations, output["input_ids"], output["assistant_masks"], strict=True)
    return [Encoded(np.array(ids, np.int32), _learned(one, np.array(mask, bool))) for one, ids, mask in triples]


def _learned(one: Conversation, is_answer: np.ndarray) -> np.ndarray:
    """The mask of the answers without those that have the weight 0.

    Raises:
        ValueError: there are such, but the template does not mark each answer separately.
    """
    answers = [message for message in one.messages if message["role"] == "assistant"]
    if all(message.get("weight", 1) for message in answers):
        return is_answer
    starts = is_answer & ~np.append(False, is_answer[:-1])
    if starts.sum() != len(answers):
        raise ValueError(
            f"{one.place}: an answer has the weight 0, but the chat template does not mark each answer separately: use "
            "--chat_template own."
        )
    weights = np.array([0, *(message.get("weight", 1) for message in answers)], bool)
    learned: np.ndarray = is_answer & weights[np.cumsum(starts)]
    return learned


def end_of_turn(encoded: Sequence[Encoded]) -> int:
    """The token that ends every answer, at which generation stops.

    Raises:
        ValueError: the template marks no answers, or does not end all with the same token.
    """
    ends: Counter[int] = Counter(token for one in encoded for token in one.ids[one.is_answer_end].tolist())
    if len(ends) != 1:
        raise ValueError(
            "the chat template of the tokenizer does not end every answer with the same token inside its "
            "{% generation %} markers, so a model could not learn when to stop: use --chat_template own."
        )
    return next(iter(ends))


# Length
def limit_length(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    too_long: Literal["error", "truncate", "skip"],
) -> tuple[list[Encoded], dict[str, int]]:
    """Encode conversations to at most `max_length` tokens, and count those "truncated" and "skipped".

    "truncate" also skips conversations whose first question leaves no room for an answer.

    Raises:
        ValueError: a conversation is too long, and `too_long` is "error".
    """
    encoded = encode_conversations(tokenizer, conversations)
    long = [number for number, one in enumerate(encoded) if len(one.ids) > max_length]
    if long and too_long == "error":
        first = long[0]
        raise ValueError(
            f"{len(long)} of {len(conversations)} conversations are longer than --max_length ({max_length} tokens), "
            f"the first at {conversations[first].place} with {len(encoded[first].ids)}: set --too_long truncate or "
            "--too_long skip, or choose a model with more positions."
        )
    counts = {"truncated": 0, "skipped": 0}
    kept: list[Encoded] = []
    for one in encoded:
        shorter: Encoded | None = one
        if len(one.ids) > max_length:
            shorter = truncate(one, max_length) if too_long == "truncate" else None
            counts["skipped" if shorter is None else "truncated"] += 1
        if shorter is not None:
            kept.append(shorter)
    return kept, counts


def truncate(one: Encoded, max_length: int) -> Encoded | None:
    """The longest beginning that ends with a complete answer; else the first answer, shortened, with its end token.

    None if the first question leaves no room for an answer.
    """
    answer_ends = np.flatnonzero(one.is_answer_end) + 1
    complete = answer_ends[answer_ends <= max_length]
    if len(complete):
        return Encoded(one.ids[: complete[-1]], one.is_answer[: complete[-1]])
    start = int(np.argmax(one.is_answer))
    if start > max_length - 2:  # room for one token of the answer and the end token
        return None
    end = one.ids[answer_ends[0] - 1]
    ids = np.append(one.ids[: max_length - 1], end)
    return Encoded(ids, np.append(one.is_answer[: max_length - 1], True))


# Rows of tokens
def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The numbers of the conversations that share each row of `capacity` tokens.

    Best-fit decreasing (https://huggingface.co/papers/2404.10830): the longest first, each into the fullest row that
    has room. No conversation is divided.
    """
    rows: list[list[int]] = []
    rows_with: dict[int, list[int]] = {}  # space left -> heap of rows
    spaces: list[int] = []  # the keys of `rows_with`, sorted: at most `capacity` of them, however many the rows
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(spaces, lengths[number])
        if place == len(spaces):
            rows.append([])
            space, row = capacity, len(rows) - 1
        else:
            space = spaces[place]
            row = heapq.heappop(rows_with[space])
            if not rows_with[space]:
                del rows_with[spaces.pop(place)]
        rows[row].append(number)
        left = space - lengths[number]
        if left not in rows_with:
            rows_with[left] = []
            bisect.insort(spaces, left)
        heapq.heappush(rows_with[left], row)
    return rows


@dataclass(frozen=True)
class PackedConversations:
    """Conversations as examples; those of a micro-batch share rows of tokens."""

    encoded: Sequence[Encoded]
    pad_id: int
    packing: bool = True  # else one conversation per row

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def mean_length(self) -> float:
        """Input tokens per conversation."""
        return sum(one.num_inputs for one in self.encoded) / len(self.encoded)

    @property
    def longest(self) -> int:
        """Input tokens of the longest conversation."""
        return max(one.num_inputs for one in self.encoded)

    @property
    def sha256(self) -> str:
        """Hash of all tokens and their masks, and of whether they are packed."""
        digest = hashlib.sha256(b"packed" if self.packing else b"single")
        for one in self.encoded:
            digest.update(one.ids.astype("<i4").tobytes() + one.is_answer.tobytes() + b"end")
        return digest.hexdigest()

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids`, `position_ids` and `shift_labels`, each (rows, longest); labels outside of answers are -100.

        A row is as long as the longest conversation; short ones share it. Positions count from 0 in each
        conversation, and are 0 in the padding at the end.
        """
        chosen = [self.encoded[index] for index in indices]
        lengths = [one.num_inputs for one in chosen]
        rows = pack(lengths, max(lengths)) if self.packing else [[number] for number in range(len(chosen))]
        shape = (len(rows), max(lengths))
        ids, positions = torch.full(shape, self.pad_id), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX)
        for row, numbers in enumerate(rows):
            start = 0
            for one in (chosen[number] for number in numbers):
                end = start + one.num_inputs
                tokens = torch.from_numpy(one.ids).long()
                ids[row, start:end] = tokens[:-1]
                positions[row, start:end] = torch.arange(end - start)
                labels[row, start:end] = tokens[1:].where(torch.from_numpy(one.is_answer[1:]), IGNORE_INDEX)
                start = end
        return {"input_ids": ids, "position_ids": positions, "shift_labels": labels}


def count_tokens(encoded: Iterable[Encoded]) -> Mapping[str, int]:
    """The number of all tokens, and of those in answers."""
    tokens = answers = 0
    for one in encoded:
        tokens += len(one.ids)
        answers += int(one.is_answer.sum())
    return {"tokens": tokens, "answers": answers}
