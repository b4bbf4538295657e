"""What a tokenizer makes of a text: counts, speed, longest tokens, round trip."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_LONGEST = 5
SIGNS = {" ": "\u00b7", "\n": "\u21b5", "\t": "\u2192", "\r": "\u240d"}


@dataclass
class TokenizerScores:
    """The measured values of one tokenizer on one text."""

    name: str
    vocab_size: int
    num_tokens: int
    bytes_per_token: float
    never_used: float  # fraction of the vocabulary, without special tokens
    megabytes_per_second: float
    longest: list[str]  # with signs for whitespace
    round_trip: str  # "exact", or the first place that differs


def score_tokenizer(name: str, tokenizer: Any, texts: Sequence[str]) -> TokenizerScores:
    """Measure a tokenizer on texts.

    Raises:
        ValueError: it cannot encode them.
    """
    start = time.perf_counter()
    encoded = tokenizer.encode_texts(texts)
    seconds = time.perf_counter() - start
    num_bytes = sum(len(text.encode()) for text in texts)
    num_tokens = sum(map(len, encoded))
    used = np.unique(np.concatenate(encoded))
    num_plain = len(tokenizer) - len(set(tokenizer.all_special_ids))
    return TokenizerScores(
        name=name,
        vocab_size=len(tokenizer),
        num_tokens=num_tokens,
        bytes_per_token=num_bytes / max(num_tokens, 1),
        never_used=1 - len(used) / max(num_plain, 1),
        megabytes_per_second=num_bytes / 1e6 / seconds,
        longest=longest_tokens(tokenizer, used),
        round_trip=round_trip(tokenizer, texts, encoded),
    )


def longest_tokens(tokenizer: Any, used: np.ndarray) -> list[str]:
    """The longest of these tokens, longest first, as `shown` writes them."""
    texts = {tokenizer.decode([int(number)]) for number in used}
    return [shown(text) for text in sorted(texts, key=lambda text: (-len(text), text))[:NUM_LONGEST]]


def shown(text: str, length: int = 24) -> str:
    """A text on one line: signs for whitespace, escapes for what cannot be printed, the number of repeated signs."""
    if len(text) > 3 and len(set(text)) == 1:
        return f"{shown(text[0])}x{len(text)}"
    signs = "".join(SIGNS.get(sign, sign if sign.isprintable() else ascii(sign)[1:-1]) for sign in text)
    return signs if len(signs) <= length else f"{signs[: length - 3]}..."


def round_trip(tokenizer: Any, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> str:
    """ "exact", or the first place where the decoded text differs."""
    for number, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if decoded != text:
            pairs = zip(text, decoded, strict=False)
            place = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(text), len(decoded)))
            before, after = (shown(some[place : place + 8]) or "the end" for some in (text, decoded))
            return f"document {number}, character {place}: {before} becomes {after}"
    return "exact"
