"""Conversations to learn from: rows of several forms, tokens with a mask of the answers, packed into rows.

A loss falls on the assistant's tokens only, the end of each turn included: the chat template marks them. Several
conversations share a row, and position ids that restart keep them from seeing each other.
"""

import bisect
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .examples import IGNORE_INDEX
from .rows import Row

ROLES = ("system", "user", "assistant")
FORMS = "messages; prompt and completion; or instruction, (input) and output"
BATCH = 256  # conversations tokenized at once
Message = dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """Turns of system, user and assistant, and where they come from."""

    place: str
    messages: list[Message]


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens."""

    ids: np.ndarray  # (tokens,)
    is_answer: np.ndarray  # (tokens,): said by the assistant, the end of its turn included


# Reading
def conversations(rows: Iterable[Row]) -> list[Conversation]:
    """Each row as messages, whichever of FORMS it has.

    Raises:
        ValueError: another form, an unknown role, an empty or missing text, or no turn of the assistant.
    """
    return [Conversation(row.place, _checked(row.place, _messages(row))) for row in rows]


def _messages(row: Row) -> list[Any]:
    cells = {name: value for name, value in row.cells.items() if value is not None}
    if "messages" in cells:
        return list(cells["messages"]) if isinstance(cells["messages"], list) else [cells["messages"]]
    if "prompt" in cells and "completion" in cells:
        return _turns(cells["prompt"], "user") + _turns(cells["completion"], "assistant")
    if "instruction" in cells and "output" in cells:
        question = "\n\n".join(text for text in (cells["instruction"], cells.get("input")) if text)
        return [*_turns(question, "user"), *_turns(cells["output"], "assistant")]
    raise ValueError(f"{row.place}: its columns are {', '.join(row.cells)}; a conversation has {FORMS}.")


def _turns(value: Any, role: str) -> list[Any]:
    """A text as one turn of `role`; what already is a list of messages stays it."""
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _checked(place: str, messages: list[Any]) -> list[Message]:
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{place}: message {number} is {message!r:.60}, and not an object with role and content.")
        if message["role"] not in ROLES:
            raise ValueError(f"{place}: message {number} has the role {message['role']!r}, not {', '.join(ROLES)}.")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(f"{place}: message {number} ({message['role']}) is {message['content']!r}: it needs text.")
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{place}: no message is from the assistant: there is no answer to learn.")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


# Tokens
def encode(tokenizer: PreTrainedTokenizerBase, found: Sequence[Conversation]) -> list[Encoded]:
    """Applies the tokenizer's chat template, whose generation markers tell the assistant's tokens.

    Raises:
        ValueError: a control token in a text, which the model would take for the real one; a character that the
            vocabulary lacks; or a template that refuses the conversation.
    """
    control = [token for token in tokenizer.all_special_tokens if token]
    for one in found:
        for message in one.messages:
            for token in control:
                if token in message["content"]:
                    raise ValueError(f"{one.place}: a message contains the control token {token!r}: remove the row.")
    encoded: list[Encoded] = []
    for start in range(0, len(found), BATCH):
        encoded += _encode(tokenizer, found[start : start + BATCH])
    return encoded


def _encode(tokenizer: PreTrainedTokenizerBase, found: Sequence[Conversation]) -> list[Encoded]:
    try:
        output: Any = tokenizer.apply_chat_template(
            [one.messages for one in found], return_dict=True, return_assistant_tokens_mask=True
        )
    except ValueError:
        raise
    except Exception as error:  # of the template, or of tokenizers, which has no class of its own
        raise ValueError(f"{found[0].place} or one of the next {len(found)} cannot be encoded: {error}") from None
    pairs = zip(output["input_ids"], output["assistant_masks"], strict=True)
    return [Encoded(np.array(ids, np.int32), np.array(mask, bool)) for ids, mask in pairs]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """The tokens behind which the assistant answers."""
    output: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(output["input_ids"])


def end_of_turn(encoded: Sequence[Encoded]) -> int:
    """The token with which every answer ends, so that a model can stop by it.

    Raises:
        ValueError: the template marks no answers, or ends them differently.
    """
    ends: Counter[int] = Counter()
    for one in encoded:
        is_last = one.is_answer & ~np.append(one.is_answer[1:], False)
        ends.update(one.ids[is_last].tolist())
    if len(ends) != 1:
        raise ValueError(
            "the chat template of the tokenizer does not end every answer with the same token inside its "
            "{% generation %} markers, so no model could learn when to stop: take ours with --chat_template own."
        )
    return next(iter(ends))


# Length
def fit(
    found: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    too_long: Literal["error", "truncate", "skip"],
) -> tuple[list[Encoded], dict[str, int]]:
    """Conversations of at most `max_length` tokens, and how many were "cut" and "skipped".

    "cut" drops the last turns, so that those that stay are whole; of a first exchange that alone is too long, the
    end of the answer goes. In both cases what stays ends as every answer ends. One whose question leaves no room
    for an answer is skipped.

    Raises:
        ValueError: one is too long, and `too_long` is "error".
    """
    encoded = encode(tokenizer, found)
    long = [number for number, one in enumerate(encoded) if len(one.ids) > max_length]
    if long and too_long == "error":
        first = long[0]
        raise ValueError(
            f"{len(long)} of {len(found)} conversations are longer than --max_length ({max_length} tokens), the first "
            f"is {found[first].place} with {len(encoded[first].ids)}: give --too_long truncate or --too_long skip, or a "
            "model with more positions."
        )
    counts = {"truncated": 0, "skipped": 0}
    kept: list[Encoded] = []
    for one in encoded:
        shorter: Encoded | None = one
        if len(one.ids) > max_length:
            shorter = cut(one, max_length) if too_long == "truncate" else None
            counts["skipped" if shorter is None else "truncated"] += 1
        if shorter is not None:
            kept.append(shorter)
    return kept, counts


def cut(one: Encoded, max_length: int) -> Encoded | None:
    """The longest beginning that ends with an answer whole; else the first answer, shortened, with its end."""
    answer_ends = np.flatnonzero(one.is_answer & ~np.append(one.is_answer[1:], False)) + 1
    whole = answer_ends[answer_ends <= max_length]
    if len(whole):
        return Encoded(one.ids[: whole[-1]], one.is_answer[: whole[-1]])
    start = int(np.argmax(one.is_answer))
    if start > max_length - 2:  # a token of the answer, and its end
        return None
    end = one.ids[answer_ends[0] - 1]
    ids = np.append(one.ids[: max_length - 1], end)
    return Encoded(ids, np.append(one.is_answer[: max_length - 1], True))


# Rows
def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the sequences that share a row of `capacity` tokens: the longest first, each into the fullest row.

    Best-fit decreasing (https://huggingface.co/papers/2404.10830); no sequence is divided.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (space left, row), by space
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(spaces, (lengths[number], -1))
        if place == len(spaces):
            rows.append([])
            space, row = capacity, len(rows) - 1
        else:
            space, row = spaces.pop(place)
        rows[row].append(number)
        bisect.insort(spaces, (space - lengths[number], row))
    return rows


@dataclass(frozen=True)
class PackedConversations:
    """Rows of one or several conversations."""

    encoded: Sequence[Encoded]
    rows: Sequence[Sequence[int]]  # numbers of the conversations of each row
    pad_id: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mean_length(self) -> float:
        """Tokens per row."""
        return sum(len(one.ids) - 1 for one in self.encoded) / len(self.rows)

    @property
    def sha256(self) -> str:
        """Identity of all tokens and of what is learned of them."""
        digest = hashlib.sha256()
        for row in self.rows:
            for number in row:
                one = self.encoded[number]
                digest.update(one.ids.astype("<i4").tobytes() + one.is_answer.tobytes())
            digest.update(b"row")
        return digest.hexdigest()

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids`, `position_ids` and `shift_labels`, each (rows, longest); labels are -100 outside of answers.

        Positions count from 0 in each conversation, and all stand at 0 in the padding behind the last.
        """
        parts = [[self.encoded[number] for number in self.rows[index]] for index in indices]
        longest = max(sum(len(one.ids) - 1 for one in row) for row in parts)
        shape = (len(parts), longest)
        ids, positions = torch.full(shape, self.pad_id), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX)
        for row, conversations_of_row in enumerate(parts):
            start = 0
            for one in conversations_of_row:
                end = start + len(one.ids) - 1
                tokens = torch.from_numpy(one.ids).long()
                ids[row, start:end] = tokens[:-1]
                positions[row, start:end] = torch.arange(end - start)
                labels[row, start:end] = tokens[1:].where(torch.from_numpy(one.is_answer[1:]), IGNORE_INDEX)
                start = end
        return {"input_ids": ids, "position_ids": positions, "shift_labels": labels}


def count_tokens(encoded: Iterable[Encoded]) -> Mapping[str, int]:
    """How many tokens there are, and how many of them answers."""
    ids = answers = 0
    for one in encoded:
        ids += len(one.ids)
        answers += int(one.is_answer.sum())
    return {"tokens": ids, "answers": answers}
