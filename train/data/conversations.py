"""Conversations for fine-tuning: parsed from rows of tables, encoded with a mask of the answers, packed into rows.

Only the assistant's tokens have a loss, including the end of each turn; the chat template marks them. Several
conversations share a row of tokens: position ids that restart at 0 keep them from attending to each other.
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

Message = dict[str, str]  # role and content
ROLES = ("system", "user", "assistant")
FORMATS = "messages; prompt and completion; or instruction, (input) and output"
ENCODE_BATCH = 256  # conversations tokenized at once


@dataclass(frozen=True)
class Conversation:
    """Turns of system, user and assistant, and their place for error messages."""

    place: str
    messages: list[Message]


@dataclass(frozen=True)
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
    """The messages of each row, in any of the FORMATS.

    Raises:
        ValueError: another format, an unknown role, an empty or missing text, or no turn of the assistant.
    """
    return [Conversation(row.place, _checked_messages(row.place, _messages(row))) for row in rows]


def _messages(row: Row) -> list[Any]:
    cells = {name: value for name, value in row.cells.items() if value is not None}
    if "messages" in cells:
        return list(cells["messages"]) if isinstance(cells["messages"], list) else [cells["messages"]]
    if "prompt" in cells and "completion" in cells:
        return _turns(cells["prompt"], "user") + _turns(cells["completion"], "assistant")
    if "instruction" in cells and "output" in cells:
        question = "\n\n".join(text for text in (cells["instruction"], cells.get("input")) if text)
        return [*_turns(question, "user"), *_turns(cells["output"], "assistant")]
    raise ValueError(f"{row.place}: a conversation needs the columns {FORMATS}, not {', '.join(row.cells)}.")


def _turns(value: Any, role: str) -> list[Any]:
    """A list of messages as it is; a text as one turn of `role`."""
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _checked_messages(place: str, messages: list[Any]) -> list[Message]:
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{place}: message {number} must be an object with role and content, not {message!r:.60}.")
        if message["role"] not in ROLES:
            raise ValueError(
                f"{place}: message {number} has the role {message['role']!r}, which is not one of {', '.join(ROLES)}."
            )
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(
                f"{place}: the content of message {number} ({message['role']}) must be text, "
                f"not {message['content']!r:.60}."
            )
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{place}: no message is from the assistant, so there is no answer to learn.")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


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
    except ValueError:
        raise
    except Exception as error:  # from the template, or from tokenizers, which has no exception class for this
        raise ValueError(
            f"one of the {len(conversations)} conversations from {conversations[0].place} on cannot be encoded: {error}"
        ) from None
    pairs = zip(output["input_ids"], output["assistant_masks"], strict=True)
    return [Encoded(np.array(ids, np.int32), np.array(mask, bool)) for ids, mask in pairs]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """The tokens of a conversation up to where the assistant answers."""
    output: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(output["input_ids"])


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
