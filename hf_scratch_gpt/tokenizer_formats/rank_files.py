"""tiktoken's rank files: a line per token, its bytes in base64 and its rank, which is its id.

How text is split into words, and the special tokens, are not in the file but in OpenAI's and Meta's code. tiktoken
itself is not needed.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import TikTokenConverter

from hf_scratch_gpt.tokenization_scratch_gpt import END_OF_TEXT, ScratchGPTTokenizer

from .gpt2 import words
from .wrapped import check_bytes, wrapped

# The patterns of tiktoken 0.14 (openai_public.py), for the regular expressions of tokenizers: there, "$" also matches
# before a line break, and "{1,3}+" repeats.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++\z|\s+(?!\S)|\s"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++\z|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
# llama/tokenizer.py in https://github.com/meta-llama/llama3
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(4))),
    *("<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"),
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
]


@dataclass(frozen=True)
class Encoding:
    """What a rank file does not say.

    Args:
        pattern: the regular expression of a word.
        num_ranks: the number of lines of the original file.
        special_tokens: their ids, if the file is the original one.
    """

    pattern: str
    num_ranks: int
    special_tokens: Mapping[str, int]


_GPT2 = Encoding(GPT2, 50256, {END_OF_TEXT: 50256})
_CL100K_SPECIAL = {
    END_OF_TEXT: 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}
ENCODINGS = {
    "gpt2": _GPT2,
    "r50k_base": _GPT2,
    "p50k_base": Encoding(GPT2, 50280, {END_OF_TEXT: 50256}),
    "cl100k_base": Encoding(CL100K, 100256, _CL100K_SPECIAL),
    "o200k_base": Encoding(O200K, 199998, {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}),
    "llama3": Encoding(LLAMA3, 128000, {token: 128000 + i for i, token in enumerate(_LLAMA3_SPECIAL)}),
}
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def is_rank_file(path: Path) -> bool:
    """Whether the first line of a file is a token in base64 and its rank."""
    with path.open("rb") as file:
        return _LINE.fullmatch(file.readline(1000).rstrip(b"\r\n") + b"\n") is not None


def pattern_of(value: str) -> str:
    """The pattern with this name, or the regular expression itself.

    Raises:
        ValueError: it is neither.
    """
    if value in ENCODINGS:
        return ENCODINGS[value].pattern
    if re.fullmatch(r"[\w.-]+", value):
        raise ValueError(f"the pattern {value} is unknown: give {', '.join(ENCODINGS)}, or a regular expression.")
    if re.search(r"[^\\]\}\+", value):
        raise ValueError(
            f"the pattern {value!r:.100} has a possessive interval such as {{1,3}}+, which the tokenizers library "
            "reads as a repetition: write (?>...{1,3})."
        )
    try:
        Regex(value)
    except Exception as error:  # tokenizers raises a plain Exception
        raise ValueError(f"the pattern {value!r:.100} is not a regular expression: {error}.") from None
    return value


def read_rank_file(
    path: Path, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
) -> ScratchGPTTokenizer:
    """The tokenizer of a rank file.

    Args:
        pattern: one of `ENCODINGS` or a regular expression; None: the encoding that the name of the file contains.
        special_tokens: their ids; None: those of the encoding if the file has as many tokens, else only <|endoftext|>
            with the next id. Ids between them that nothing has become reserved special tokens.

    Raises:
        ValueError: the pattern is unknown, or the file is damaged.
    """
    ranks = _read_ranks(path)
    named = next((name for name in ENCODINGS if name in path.stem.lower().replace("-", "")), None)
    if pattern is None:
        pattern = _encoding_in_name(path, named, len(ranks))
    known = ENCODINGS.get(pattern)
    if special_tokens is None:
        is_original = known is not None and len(ranks) == known.num_ranks
        special_tokens = known.special_tokens if known and is_original else {END_OF_TEXT: max(ranks.values()) + 1}
    words_pattern = pattern_of(pattern)
    special = _without_gaps(path, ranks, special_tokens)
    vocabulary, merges = _Ranks(ranks).extract_vocab_merges_from_model(str(path))
    check_bytes(path, vocabulary)
    vocabulary |= {token: number for token, number in special_tokens.items() if number < len(ranks)}
    # a word that is a token is not split, even if the merges would not lead to it: tiktoken does the same
    backend = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    backend.pre_tokenizer = words(words_pattern)
    backend.decoder = decoders.ByteLevel()
    return wrapped(backend, special)


class _Ranks(TikTokenConverter):
    """Turns ranks into merges, without tiktoken."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        super().__init__()
        self._ranks = ranks

    def load_tiktoken_bpe(self, tiktoken_url: str) -> dict[bytes, int]:  # type: ignore[override]
        """The ranks, which are already read."""
        return self._ranks


def _encoding_in_name(path: Path, named: str | None, num_ranks: int) -> str:
    if named is None:
        alike = [name for name, encoding in ENCODINGS.items() if encoding.num_ranks == num_ranks]
        hint = f" It has {num_ranks:,} tokens, as {' and '.join(alike)}." if alike else ""
        raise ValueError(
            f"{path} does not say how text is split into words: give --pattern with {', '.join(ENCODINGS)}, or a "
            f"regular expression.{hint}"
        )
    if num_ranks != ENCODINGS[named].num_ranks:
        raise ValueError(
            f"{path} has {num_ranks:,} tokens, but {named} has {ENCODINGS[named].num_ranks:,}: it is incomplete. If it "
            f"is a vocabulary of your own, give --pattern {named}."
        )
    return named


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            token = base64.b64decode(token, validate=True)
            new = token and token not in ranks
            ranks[token] = int(rank)
        except (ValueError, binascii.Error):
            new = False
        if not new:
            raise ValueError(
                f"{path}, line {number}: each line must be a new token in base64 and its rank, not {line[:60]!r}."
            )
    return ranks


def _without_gaps(path: Path, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> list[str]:
    """The special tokens by id, with reserved ones between them.

    Raises:
        ValueError: an id is missing, or given twice.
    """
    names = {number: token for token, number in special_tokens.items()}
    used = {*ranks.values()}
    if len(used) < len(ranks) or used & names.keys() or len(names) < len(special_tokens) or min(used) < 0:
        raise ValueError(f"{path}: two tokens have the same rank, or one is negative. Copy or download it again.")
    last_rank = max(used)
    if gaps := [number for number in range(last_rank) if number not in used and number not in names]:
        raise ValueError(
            f"{path} lacks {len(gaps):,} of the ranks 0 to {last_rank:,}, the first one {gaps[0]:,}: it is damaged. "
            "Copy or download it again."
        )
    between = range(last_rank + 1, max(names, default=0) + 1)
    return [*(names[i] for i in sorted(names) if i < last_rank), *(names.get(i, f"<|reserved_{i}|>") for i in between)]
