"""GPT-2's byte-level BPE, from vocab.json and merges.txt (OpenAI's names: encoder.json and vocab.bpe)."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from hf_scratch_gpt.tokenization_scratch_gpt import END_OF_TEXT, ScratchGPTTokenizer

from .wrapped import ROLES, check_bytes, check_ids, wrapped

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def files_in(folder: Path) -> tuple[Path, Path] | None:
    """The vocabulary and the merges in a folder; None if neither is there.

    Raises:
        ValueError: only one of them is there.
    """
    for vocabulary, merges in PAIRS:
        there = [name for name in (vocabulary, merges) if (folder / name).exists()]
        if len(there) == 2:
            return folder / vocabulary, folder / merges
        if there and not any((folder / name).exists() for pair in PAIRS for name in pair if name not in there):
            other = merges if there == [vocabulary] else vocabulary
            raise ValueError(f"{folder} has {there[0]}, but no {other}: a byte-level BPE has both. Copy it too.")
    return None


def read_gpt2(vocabulary: Path, merges: Path, pattern: str | None = None) -> ScratchGPTTokenizer:
    """The tokenizer of a vocabulary and its merges.

    Entries of the vocabulary that are neither bytes nor merges are its special tokens. If none of them ends a text,
    <|endoftext|> is appended.

    Args:
        pattern: a regular expression for words; None: GPT-2's.

    Raises:
        ValueError: a file has another format, or the merges do not fit the vocabulary.
    """
    ids = _read_vocabulary(vocabulary)
    pairs = _read_merges(merges)
    results = {left + right for left, right in pairs}
    needed = {token for pair in pairs for token in pair} | results
    if missing := sorted(needed - ids.keys()):
        raise ValueError(
            f"{merges} does not fit {vocabulary}, which lacks {len(missing):,} tokens of the merges, such as "
            f"{missing[0]!r}: they are of different tokenizers, or one is damaged."
        )
    check_bytes(vocabulary, ids)
    special = sorted(ids.keys() - results - {*pre_tokenizers.ByteLevel.alphabet()}, key=ids.__getitem__)
    if not {*special} & {*ROLES["eos_token"]}:
        special.append(END_OF_TEXT)
    backend = Tokenizer(BPE(vocab=ids, merges=pairs))
    backend.pre_tokenizer = words(pattern)
    backend.decoder = decoders.ByteLevel()
    return wrapped(backend, special)


def words(pattern: str | None) -> pre_tokenizers.PreTokenizer:
    """Split a text into words, and these into bytes; GPT-2's words without a pattern."""
    if pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): copy or download it again.") from None
    if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
        raise ValueError(f'{path} is not a vocabulary: it must be a JSON object such as {{"!": 0, "the": 262}}.')
    check_ids(path, ids)
    return ids


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): copy or download it again.") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        parts = line.rstrip("\r").split(" ")
        if parts == [""] or (number == 1 and line.startswith("#version")):
            continue
        if len(parts) != 2 or not all(parts):
            raise ValueError(
                f"{path}, line {number}: a merge is two tokens with a space between them, not {line!r:.60}."
            )
        pairs.append((parts[0], parts[1]))
    return pairs
