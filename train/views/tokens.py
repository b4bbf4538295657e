"""The tokens of a text as a person can read them: their bytes, and their whitespace."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..metrics.perplexity import decoder_types

# how a character without a shape is shown
VISIBLE = {" ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", "\u00a0": "\u237d"}
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte
WORD_START = "\u2581"  # how SentencePiece writes a space


@dataclass(frozen=True)
class Piece:
    """A token.

    Attributes:
        data: the bytes that it stands for; empty for a control token.
        text: these bytes as text; bytes that are no whole character are written as <0xE2>.
        is_control: whether it is a control token, such as <|endoftext|>, whose `text` is its name.
    """

    id: int
    data: bytes
    text: str
    is_control: bool

    @property
    def visible(self) -> str:
        """The text with visible whitespace and control characters."""
        return self.text if self.is_control else visible(self.text)


def visible(text: str) -> str:
    """A text whose whitespace and control characters can be seen: a space is a middle dot, a line break an arrow."""
    return "".join(VISIBLE.get(sign, sign) if sign.isprintable() or sign in VISIBLE else f"<{ord(sign):02X}>"
                   for sign in text)  # fmt: skip


def readable(data: bytes) -> str:
    """Bytes as text; those that are no whole character as <0xE2>."""
    text = data.decode("utf-8", "surrogateescape")  # such a byte becomes U+DC00 and the byte
    return "".join(f"<0x{ord(sign) - 0xDC00:02X}>" if 0xDC80 <= ord(sign) <= 0xDCFF else sign for sign in text)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[Piece]:
    """The tokens with these ids, in order."""
    table = _table(tokenizer, len(tokenizer))
    return [table.piece(int(number)) for number in ids]


class _Table:
    """What is the same for all tokens of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.added = tokenizer.added_tokens_decoder
        self.control = set(tokenizer.all_special_ids) | {i for i, token in self.added.items() if token.special}
        self.is_byte_level = "ByteLevel" in decoder_types(tokenizer)

    def piece(self, number: int) -> Piece:
        name = self.tokenizer.convert_ids_to_tokens(number)
        if name is None:  # a row of the embedding that no token uses
            return Piece(number, b"", f"[unused {number}]", is_control=True)
        if number in self.control:
            return Piece(number, b"", str(name), is_control=True)
        data = self._bytes(number, str(name))
        return Piece(number, data, readable(data), is_control=False)

    def _bytes(self, number: int, name: str) -> bytes:
        if number in self.added:  # stored as plain text
            return self.added[number].content.encode()
        if self.is_byte_level and all(sign in byte_of_character() for sign in name):
            return bytes(byte_of_character()[sign] for sign in name)
        if found := BYTE_TOKEN.fullmatch(name):
            return bytes([int(found[1], 16)])
        if name.startswith(WORD_START):  # decoded alone, the first word of a text would lose its space
            return name.replace(WORD_START, " ").encode()
        return str(self.tokenizer.decode([number])).encode()


@functools.lru_cache(maxsize=4)  # reading the decoder takes as long as writing the whole vocabulary
def _table(tokenizer: PreTrainedTokenizerBase, size: int) -> _Table:
    return _Table(tokenizer)


@functools.cache
def byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable bytes stand for themselves, the others are written with the characters from U+0100
    (https://github.com/openai/gpt-2/blob/master/src/encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
