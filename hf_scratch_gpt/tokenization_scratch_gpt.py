"""The tokenizer: trains on any text, decodes exactly, loads in every Hugging Face runtime.

Byte-level BPE by default; also byte-level unigram, single bytes, and single characters.

In this order: constants, training, encoding, saving, and registration with `AutoTokenizer`.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import BatchEncoding, PreTrainedConfig
from transformers.models.auto import tokenization_auto
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import logging

from .tokenizer_types import (
    Type,
    character_backend,
    check_arguments,
    refuse_lone_surrogates,
    refuse_unknown_characters,
    train_on_bytes,
)

logger = logging.get_logger(__name__)

# Qwen2's pattern as written in llama.cpp, so a GGUF file can refer to it by name ("qwen2").
# Differences from GPT-2's: each digit is a word, so a number always splits the same way and no
# tokens are spent on groups of digits; indentation is a single word that ends at a line break;
# a sign before a word (".append", "_name", "(self") may be part of the word.
SPLIT_PATTERN = "|".join(
    (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

END_OF_TEXT = "<|endoftext|>"  # separates documents: both end and beginning of text
PAD = "<|pad|>"  # not END_OF_TEXT: labels at padding are ignored, so the model would not learn to stop
END_OF_TURN = "<|end|>"
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)
SPECIAL_TOKENS = (END_OF_TEXT, PAD, *CHAT_TOKENS)  # with ids 0, 1, 2, ... in this order
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

# Only special tokens surround the content. They split the text, so the tokens of a prompt are always
# a prefix of the tokens of the whole conversation. A pair of query and document, as rerankers read it,
# is two turns of the user.
CHAT_TEMPLATE = """\
{%- if tools or documents %}
    {{- raise_exception("this template supports no tools or documents: put their text into a message") }}
{%- endif %}
{%- for message in messages %}
    {%- set role = 'user' if message['role'] in ['query', 'document'] else message['role'] %}
    {%- if role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception("role must be system, user or assistant, not " + role) }}
    {%- endif %}
    {%- if message['content'] is not string or message['tool_calls'] %}
        {{- raise_exception("content must be a string: this template supports no images or tools") }}
    {%- endif %}
    {{- '<|' + role + '|>' }}
    {%- if role == 'assistant' -%}
        {% generation %}{{- message['content'] + '<|end|>' }}{% endgeneration %}
    {%- else %}
        {{- message['content'] + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

# Positions at which SPLIT_PATTERN always ends a word: after a line break, before whitespace or a
# digit, and between a letter or digit and any other character. Never after a space: how a run of
# spaces splits depends on the text that follows.
_WORD_END = re.compile(r"(?<=[\r\n])(?=\S)|(?<=\S)(?=[ \t\d])|(?<=[^\W_])(?=[\W_])")
PIECE_LENGTH = 1 << 11  # characters; longer pieces are slower, shorter ones are not faster
BATCH_LENGTH = 1 << 20  # characters

# Of a new tokenizer.
SETTINGS = {
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "pad_token": PAD,
    "extra_special_tokens": list(CHAT_TOKENS),
    "chat_template": CHAT_TEMPLATE,
    "padding_side": "left",  # a decoder continues from the end of the prompt
    "clean_up_tokenization_spaces": False,
}

# The entry of tokenizer_config.json that names our class; `tokenizer_class` is one that every runtime knows.
PREFERRED_CLASS = "preferred_tokenizer_class"

# Entries that from_pretrained adds for this machine and this call; not properties of the tokenizer.
_PRIVATE_KEYS = ("backend", "is_local", "local_files_only", "name_or_path", "token", "cache_dir")


class _BuiltFromVocabulary(TokenizersBackend):
    """Accepts `vocab` and `merges` instead of a file, each as a value or as the path of GPT-2's files.

    A class of its own: with an `__init__` in ScratchGPTTokenizer, transformers would rebuild the tokenizer
    from the vocabulary and merges instead of reading tokenizer.json.
    """

    def __init__(self, *args: Any, vocab: Any = None, merges: Any = None, **kwargs: Any) -> None:
        if vocab is not None and not kwargs.keys() & {"tokenizer_object", "tokenizer_file"}:
            kwargs = {**SETTINGS, **kwargs, "tokenizer_object": _backend_of(vocab, merges)}
        super().__init__(*args, **kwargs)


class ScratchGPTTokenizer(_BuiltFromVocabulary):
    """Byte-level BPE over the words of `SPLIT_PATTERN`; decoding restores any text exactly.

    `train_from_texts` also trains other types of tokenizers, and `open_tokenizer` reads those of other libraries.

    To keep "<|endoftext|>" in a document plain text, encode it with `encode_texts` or
    `split_special_tokens=True`.
    """

    # rank of each merge, and the vocabulary; set by the first call of `encode_with_dropout`
    _merges: tuple[dict[tuple[str, str], int], dict[str, int]] | None = None
    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    @classmethod
    def train_from_texts(
        cls,
        texts: Iterable[str] = (),
        vocab_size: int | None = None,
        *,
        type: Type = "bpe",
        model_max_length: int = 1024,
        show_progress: bool = True,
    ) -> "ScratchGPTTokenizer":
        """Train a tokenizer.

        `texts` is read once and not kept: memory grows only with the number of distinct words.
        If too few pairs occur twice in the corpus, the vocabulary is smaller and a warning is logged.

        Args:
            vocab_size: of bpe and unigram.
            type: "bpe": ids are special tokens, 256 bytes, then merges, most frequent first. "unigram": the same
                words, cut into the most probable pieces of bytes. "bytes": special tokens and 256 bytes, without
                texts. "characters": <|endoftext|>, <|pad|>, the characters of the texts by code point, then the
                other special tokens; encoding another character is an error.

        Raises:
            ValueError: the texts are empty or contain a lone surrogate, an argument has no effect on this type, or
                `vocab_size` is smaller than the number of bytes and special tokens.
        """
        check_arguments(type, texts, vocab_size, len(SPECIAL_TOKENS))
        if type == "characters":
            backend = character_backend(_checked_pieces(texts), SPECIAL_TOKENS)
        else:
            backend = _untrained_backend()
            pieces = () if type == "bytes" else _checked_pieces(texts)
            train_on_bytes(backend, type, pieces, vocab_size or SMALLEST_VOCABULARY, SPECIAL_TOKENS, show_progress)
        if vocab_size and backend.get_vocab_size() < vocab_size:
            logger.warning(
                "The tokenizer has %d tokens instead of vocab_size=%d: no further part of a word occurs "
                "twice in the corpus. Use more text for a larger vocabulary.",
                backend.get_vocab_size(),
                vocab_size,
            )
        return cls(tokenizer_object=backend, model_max_length=model_max_length, **SETTINGS)

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode corpus texts: special tokens are neither added nor recognized.

        Faster than `self(texts, ...)`, which also computes offsets and masks. All cores work on pieces
        of the texts, so memory, apart from the ids, does not grow with the length of a text.

        Raises:
            ValueError: a text contains a lone surrogate.
        """
        backend = self.plain_backend()
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for batch in _batches(texts, can_be_cut=has_our_words(backend)):
            try:
                encodings = backend.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
            except Exception as error:  # tokenizers raises a plain one for a character without a token
                self._explain(texts)
                raise error
            for (number, _), encoding in zip(batch, encodings, strict=True):
                parts[number].append(np.asarray(encoding.ids, np.int32))
        return [np.concatenate(part) for part in parts]

    def plain_backend(self) -> Tokenizer:
        """The backend, set to encode all of a text as text."""
        backend = self.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        return backend

    def encode_with_dropout(self, text: str, dropout: float, seed: int) -> list[int]:
        """Encode a text, skipping each merge of two tokens with probability `dropout`.

        BPE-dropout (https://huggingface.co/papers/1910.13267): each seed splits the text differently, so that a model
        trained on few texts also learns from parts of words. `dropout=0` gives the ids of `encode_texts`; decoding
        always restores the text. Written here because the dropout of the tokenizers library cannot be seeded.

        Raises:
            ValueError: `dropout` is not in [0, 1], or the tokenizer is not a BPE with a pre-tokenizer.
        """
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout ({dropout}) must be between 0 and 1")
        backend = self.backend_tokenizer
        if not isinstance(backend.model, BPE) or backend.pre_tokenizer is None:
            model = type(backend.model).__name__
            raise ValueError(
                f"BPE-dropout requires a BPE tokenizer with a pre-tokenizer; this one has the model {model} "
                f"and the pre-tokenizer {backend.pre_tokenizer}"
            )
        if self._merges is None:
            merges = json.loads(backend.to_str())["model"]["merges"]
            self._merges = {tuple(merge): rank for rank, merge in enumerate(merges)}, backend.get_vocab()
        (ranks, vocabulary), generator = self._merges, Random(seed)
        words = (word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
        return [vocabulary[token] for word in words for token in merged(list(word), ranks, dropout, generator)]

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> BatchEncoding:
        try:
            return super()._encode_plus(text, *args, **kwargs)
        except Exception as error:  # whose message is "TextInputSequence must be str" or "Missing [UNK] token"
            self._explain([text] if isinstance(text, str) else text)
            raise error

    def _explain(self, texts: Iterable[Any]) -> None:
        """Raise a ValueError if a text is the reason for an error of tokenizers."""
        texts = list(texts)
        refuse_lone_surrogates(texts)
        model = self.backend_tokenizer.model
        if isinstance(model, WordLevel):
            refuse_unknown_characters(texts, self.get_vocab().keys())

    def _save_pretrained(
        self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        """Save, then rewrite tokenizer_config.json with names that all runtimes support."""
        file_names = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        path = Path(file_names[0])
        entries = json.loads(path.read_text(encoding="utf-8"))
        for key in _PRIVATE_KEYS:
            entries.pop(key, None)
        # transformers 4 supports no other class name, and no list under the new name
        entries["tokenizer_class"] = "PreTrainedTokenizerFast"
        entries[PREFERRED_CLASS] = type(self).__name__
        if extra := entries.pop("extra_special_tokens", None):
            entries["additional_special_tokens"] = extra
        text = json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        return file_names


def text_pieces(text: str, length: int = PIECE_LENGTH) -> Iterator[str]:
    """Cut `text` at ends of words into pieces of `length` to 2 * `length` characters.

    This bounds the memory and time that training and encoding need per piece, however long a
    document is. The tokens of the pieces are the tokens of the text, unless 2 * `length` characters
    contain no end of a word: then a word may be cut.
    """
    start = 0
    while len(text) - start > 2 * length:
        match = _WORD_END.search(text, start + length, start + 2 * length)
        end = match.start() if match else start + 2 * length
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def merged(tokens: list[str], ranks: dict[tuple[str, str], int], dropout: float, generator: Random) -> list[str]:
    """Byte-pair encode one word: repeatedly merge the pair that training merged first, until none is left.

    In each round, every pair is skipped with probability `dropout`.
    """
    while True:
        found = [
            (ranks[pair], place)
            for place, pair in enumerate(itertools.pairwise(tokens))
            if pair in ranks and not (dropout and generator.random() < dropout)
        ]
        if not found:
            return tokens
        _, place = min(found)
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]


def _batches(texts: Sequence[str], can_be_cut: bool) -> Iterator[list[tuple[int, str]]]:
    """Pairs of text index and piece, in lists of about BATCH_LENGTH characters."""
    batch, length = [], 0
    for number, text in enumerate(texts):
        for piece in text_pieces(text) if can_be_cut else (text,):
            batch.append((number, piece))
            length += len(piece)
            if length >= BATCH_LENGTH:
                yield batch
                batch, length = [], 0
    if batch:
        yield batch


def has_our_words(backend: Tokenizer) -> bool:
    """Whether the tokenizer, possibly loaded from elsewhere, splits words as `text_pieces` assumes."""
    ours = _untrained_backend().pre_tokenizer.__getstate__()
    theirs = backend.pre_tokenizer and backend.pre_tokenizer.__getstate__()
    return backend.normalizer is None and theirs == ours


def register_for_auto_tokenizer(config_class: type[PreTrainedConfig]) -> None:
    """Make `AutoTokenizer` load models with `config_class` as `ScratchGPTTokenizer`.

    Our files name the generic class, which every runtime supports. `AutoTokenizer` prefers the class
    named in the file to a registered one, unless the model type is in the list of those whose files
    name the wrong class. Without this package, the same files load as a plain fast tokenizer.
    """
    name = ScratchGPTTokenizer.__name__
    tokenization_auto.AutoTokenizer.register(config_class, tokenizer_class=ScratchGPTTokenizer, exist_ok=True)
    tokenization_auto.TOKENIZER_MAPPING_NAMES[config_class.model_type] = name
    tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.add(config_class.model_type)
    read_config = tokenization_auto.get_tokenizer_config
    if not hasattr(read_config, PREFERRED_CLASS):
        tokenization_auto.get_tokenizer_config = _preferring_our_class(read_config)


def _preferring_our_class(read_config: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Wrap the function by which `AutoTokenizer` reads tokenizer_config.json: a folder may have no config.json."""

    @functools.wraps(read_config)
    def get_tokenizer_config(*args: Any, **kwargs: Any) -> dict[str, Any]:
        entries = read_config(*args, **kwargs)
        if entries.get(PREFERRED_CLASS) == ScratchGPTTokenizer.__name__:
            entries["tokenizer_class"] = ScratchGPTTokenizer.__name__
        return entries

    setattr(get_tokenizer_config, PREFERRED_CLASS, ScratchGPTTokenizer)
    return get_tokenizer_config


def _untrained_backend() -> Tokenizer:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _backend_of(vocab: Any, merges: Any) -> Tokenizer:
    """A backend with the given merges; special tokens that the vocabulary lacks are appended to it.

    Raises:
        ValueError: the merges are missing or contain a token that is not in the vocabulary, or the vocabulary
            lacks a byte, so that texts with it could not be encoded.
    """
    if isinstance(vocab, str | Path):
        vocab = json.loads(Path(vocab).read_text(encoding="utf-8"))
    if isinstance(merges, str | Path):
        lines = Path(merges).read_text(encoding="utf-8").splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
    if merges is None:
        raise ValueError("vocab requires merges: a vocabulary alone does not say how words are split")
    pairs = [
        (left, right) for left, right in (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    ]
    needed = {*pre_tokenizers.ByteLevel.alphabet(), *(token for pair in pairs for token in (*pair, "".join(pair)))}
    if missing := sorted(needed - vocab.keys()):
        raise ValueError(f"vocab lacks {len(missing)} tokens of the 256 bytes and the merges: {missing[:5]}")
    backend = _untrained_backend()
    backend.model = BPE(vocab=vocab, merges=pairs)
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return backend


def _checked_pieces(texts: Iterable[str]) -> Iterator[str]:
    is_empty = True
    for text in texts:
        refuse_lone_surrogates([text])
        is_empty = is_empty and not text
        yield from text_pieces(text)
    if is_empty:
        raise ValueError("The corpus is empty (0 bytes). A tokenizer needs text to train on.")
