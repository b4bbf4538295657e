"""A tokenizer as llama.cpp reads it from a GGUF file: tokens and their types, merges, and the name of a split pattern.

llama.cpp knows split patterns only by name, so a pattern that it lacks is refused: texts would get other ids.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..configuration_scratch_gpt import ScratchGPTConfig
from ..tokenization_scratch_gpt import END_OF_TURN, SPLIT_PATTERN

if TYPE_CHECKING:
    from gguf import GGUFWriter

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# llama.cpp's name of a split pattern; and whether a word that is a token is never split.
PATTERNS: Mapping[tuple[str, bool], str] = {
    (SPLIT_PATTERN, False): "qwen2",
    (CONTRACTIONS + WORDS + r"\p{N}" + REST, False): "qwen2",
    (CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST, True): "llama-bpe",
    (CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST, False): "dbrx",
    (GPT2_PATTERN, False): "gpt-2",
}
# True of all these patterns: characters that Unicode 16 added are letters or digits for the tokenizers library only.
UNICODE_NOTE = (
    "letters and digits that Unicode added in version 16 (2024), such as Garay and Todhri, may get other ids."
)
NFC_NOTE = "texts that are not in Unicode's NFC form, such as an 'e' followed by a combining accent, get other ids."
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens


@dataclass
class TokenizerFields:
    """What a GGUF file says about the tokenizer.

    Args:
        tokens, types: of each id.
        merges: "left right", most frequent first.
        pattern: name of the split pattern.
        ids: of the special tokens, by the name of their key.
        adds: whether "bos" and "eos" surround every text.
        chat_template: Jinja.
        notes: what differs in llama.cpp.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pattern: str
    ids: dict[str, int]
    adds: dict[str, bool]
    chat_template: Any = None
    notes: list[str] = field(default_factory=list)

    def add_to(self, writer: "GGUFWriter") -> None:
        """Write them."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pattern)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges or [""])  # the key is required; this one never applies
        for name, token_id in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(token_id)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        ValueError: it is missing or damaged, or has no fast implementation.
    """
    if not (folder / "tokenizer.json").exists() and not (folder / "tokenizer_config.json").exists():
        raise ValueError(f"{folder} has no tokenizer (tokenizer.json), which a GGUF file must contain: copy it there.")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises a plain Exception for a damaged file
        raise ValueError(f"{folder}: its tokenizer cannot be read ({' '.join(str(error).split())}).") from None
    if not tokenizer.is_fast:
        raise ValueError(f"{folder}: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json.")
    return tokenizer


def tokenizer_fields(
    tokenizer: PreTrainedTokenizerBase, config: ScratchGPTConfig, stop_ids: list[int]
) -> TokenizerFields:
    """What llama.cpp needs to know to give every text the ids that the tokenizer gives it.

    Args:
        stop_ids: tokens after which `generate` stops.

    Raises:
        ValueError: llama.cpp has no such tokenizer, or the tokenizer and the model disagree.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pattern, reasons = split_pattern(state)
    reasons += bpe_limits(state["model"]) + added_token_limits(state["added_tokens"])
    if reasons:
        raise ValueError(f"llama.cpp has no tokenizer like this one: {'; '.join(reasons)}.")
    tokens, types = vocabulary(tokenizer, state["added_tokens"], config.vocab_size)
    ids, notes = special_ids(tokenizer, stop_ids)
    return TokenizerFields(
        tokens=tokens,
        types=types,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]],
        pattern=pattern,
        ids=ids,
        adds=added_around(tokenizer),
        chat_template=chat_templates(tokenizer),
        notes=[*notes, UNICODE_NOTE, *([NFC_NOTE] if state["normalizer"] else [])],
    )


def split_pattern(state: Mapping[str, Any]) -> tuple[str, list[str]]:
    """llama.cpp's name of the way in which a tokenizer splits texts into words, and what llama.cpp lacks."""
    reasons = []
    if (normalizer := state["normalizer"]) not in (None, {"type": "NFC"}):
        reasons.append(f"its normalizer is {described(normalizer)}, but llama.cpp changes no characters")
    steps = state["pre_tokenizer"] or {"type": "none"}
    steps = steps.get("pretokenizers", [steps])
    *splits, last = steps
    is_ours = last["type"] == "ByteLevel" and not last["add_prefix_space"]
    pattern = None
    if is_ours and last["use_regex"] and not splits:
        pattern = GPT2_PATTERN
    elif is_ours and not last["use_regex"] and len(splits) == 1:
        (split,) = splits
        if split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]:
            pattern = split["pattern"].get("Regex")
    name = PATTERNS.get((pattern or "", bool(state["model"].get("ignore_merges"))))
    if name is None:
        names = ", ".join(sorted(set(PATTERNS.values())))
        reasons.append(f"it splits words by {described(steps)}, which is none of {names}")
    return name or "", reasons


def described(step: Any) -> str:
    """A part of tokenizer.json, short enough for a message."""
    text = json.dumps(step, ensure_ascii=False)
    return text if len(text) < 200 else text[:200] + "..."


def bpe_limits(model: Mapping[str, Any]) -> list[str]:
    """Why llama.cpp cannot merge as a tokenizer does."""
    if model["type"] != "BPE":
        return [f"its model is {model['type']}, but must be BPE over bytes"]
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return [f"its {name} is {model[name]!r}, but must be unset" for name in options if model.get(name)]


def added_token_limits(added_tokens: list[dict[str, Any]]) -> list[str]:
    """Why llama.cpp cannot find special tokens in a text as a tokenizer does."""
    return [
        f"its token {token['content']!r} has {option}"
        for token in added_tokens
        for option in ("lstrip", "rstrip", "single_word")
        if token[option]
    ]


def vocabulary(
    tokenizer: PreTrainedTokenizerBase, added_tokens: list[dict[str, Any]], vocab_size: int
) -> tuple[list[str], list[int]]:
    """The token of each id, and its type. Rows of the embedding without a token get one that is never used.

    Raises:
        ValueError: an id is not in the model.
    """
    token_of = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    if (largest := max(token_of, default=-1)) >= vocab_size:
        raise ValueError(
            f"the tokenizer and the model disagree: the id of {token_of[largest]!r} is {largest}, but the model knows "
            f"only {vocab_size} tokens (vocab_size). Use the tokenizer that the model was trained with."
        )
    tokens = [token_of.get(token_id, f"[PAD{token_id}]") for token_id in range(vocab_size)]
    types = [NORMAL if token_id in token_of else UNUSED for token_id in range(vocab_size)]
    for token in added_tokens:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if len(set(tokens)) < len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise ValueError(f"the vocabulary already has the token {twice!r}, which a row without a token would get")
    return tokens, types


def special_ids(tokenizer: PreTrainedTokenizerBase, stop_ids: list[int]) -> tuple[dict[str, int], list[str]]:
    """The ids of special tokens by the name of their key, and a note if llama.cpp does not stop at one.

    Args:
        stop_ids: tokens after which `generate` stops.

    Raises:
        ValueError: the tokenizer has no eos_token. (llama.cpp would stop at the token with id 11.)
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError("the tokenizer has no eos_token, and llama.cpp would stop at token 11 instead: set eos_token.")
    ids = {"bos": tokenizer.bos_token_id, "eos": eos, "pad": tokenizer.pad_token_id}
    end_of_turn = tokenizer.get_vocab().get(END_OF_TURN)
    others = [token_id for token_id in dict.fromkeys([end_of_turn, *stop_ids]) if token_id not in (None, eos)]
    ids |= dict(zip(("eot", "eom"), others, strict=False))
    missed = [repr(tokenizer.decode([token_id])) for token_id in others[2:] if token_id is not None]
    notes = [f"{', '.join(missed)} does not end a text, because a GGUF file names only three such tokens."]
    return {name: token_id for name, token_id in ids.items() if token_id is not None}, notes if missed else []


def added_around(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Whether the tokenizer puts its "bos" before and its "eos" after every text.

    Raises:
        ValueError: it adds other tokens.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    adds = {"bos": full[:1] == [tokenizer.bos_token_id], "eos": full[-1:] == [tokenizer.eos_token_id]}
    bos, eos = [tokenizer.bos_token_id] * adds["bos"], [tokenizer.eos_token_id] * adds["eos"]
    if full != [*bos, *plain, *eos]:
        added = tokenizer.convert_ids_to_tokens(full)
        raise ValueError(f"the tokenizer makes {added} of 'a', but llama.cpp adds only bos_token and eos_token.")
    return adds


def chat_templates(tokenizer: PreTrainedTokenizerBase) -> str | list[dict[str, str]] | None:
    """The chat template, or several with names."""
    template: str | dict[str, str] | None = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    return template
