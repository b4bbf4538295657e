"""What all formats share: the special tokens of a backend, and checks of its vocabulary."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from hf_scratch_gpt.tokenization_scratch_gpt import END_OF_TEXT, SETTINGS, ScratchGPTTokenizer

# What the field calls these tokens. The first one that a vocabulary has among its special tokens is taken.
ROLES = {
    "eos_token": (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]"),
    "bos_token": ("<|begin_of_text|>", "<s>", "<bos>", "[CLS]"),
    "pad_token": ("<|pad|>", "<pad>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
}


def wrapped(backend: Tokenizer, special: Sequence[str], **roles: str | None) -> ScratchGPTTokenizer:
    """The tokenizer with this backend. Its special tokens get their roles by name, unless `roles` sets them.

    Without a token for the beginning of a text, that of its end is taken, as in GPT-2.
    """
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    found: dict[str, Any] = {
        role: next((name for name in names if name in special), None) for role, names in ROLES.items()
    }
    found |= roles
    found["bos_token"] = found["bos_token"] or found["eos_token"]
    extra = [token for token in special if token not in found.values()]
    settings = {key: SETTINGS[key] for key in ("padding_side", "clean_up_tokenization_spaces")}
    return ScratchGPTTokenizer(tokenizer_object=backend, extra_special_tokens=extra, **settings, **found)


def check_bytes(place: object, tokens: Iterable[str]) -> None:
    """Refuse a byte-level vocabulary without some bytes.

    Raises:
        ValueError: it could not encode every text.
    """
    if missing := sorted({*pre_tokenizers.ByteLevel.alphabet()} - {*tokens}):
        raise ValueError(
            f"{place} lacks {len(missing)} of the 256 bytes, such as {missing[0]!r}: it is no byte-level vocabulary, "
            "or not all of it."
        )


def check_ids(place: object, ids: Mapping[Any, int]) -> None:
    """Refuse ids that are not 0, 1, 2, ...

    Raises:
        ValueError: the first id that is missing or given twice.
    """
    for expected, found in enumerate(sorted(ids.values())):
        if found != expected:
            problem = "is missing" if found > expected else f"is {'given twice' if found >= 0 else 'negative'}"
            shown = expected if found > expected else found
            raise ValueError(f"{place}: the id {shown} {problem}. The ids of a vocabulary are 0, 1, 2, ...")
