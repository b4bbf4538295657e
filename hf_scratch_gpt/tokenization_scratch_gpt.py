"""Byte-level BPE: trained on any text, exactly reversible, readable by every Hugging Face runtime.

Reading order: the constants (how text is split, the special tokens, the chat template), training,
encoding, saving, and how `AutoTokenizer` finds the class.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import BatchEncoding, PreTrainedConfig
from transformers.models.auto import tokenization_auto
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Qwen2's pattern in the spelling of llama.cpp, where it is called "qwen2": a GGUF file can name it.
# Against GPT-2's: digits stand alone, so that a number splits the same way wherever it appears and
# no vocabulary goes to groups of digits; an indentation is one run, and a line break ends it;
# the sign before a word (".append", "_name", "(self") may join the word.
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

END_OF_TEXT = "<|endoftext|>"  # between documents: end and beginning of text in one
PAD = "<|pad|>"  # not end-of-text: a padded label is ignored, and then nothing would learn to stop
END_OF_TURN = "<|end|>"
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)
SPECIAL_TOKENS = (END_OF_TEXT, PAD, *CHAT_TOKENS)  # their ids are 0, 1, 2, ... in this order
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

# No text of its own around the content: special tokens cut the text, so the tokens of a prompt
# are always the first tokens of the whole conversation.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception("role must be system, user or assistant, not " + message['role']) }}
    {%- endif %}
    {%- if message['content'] is not string %}
        {{- raise_exception("content must be text: this template knows no images or tools") }}
    {%- endif %}
    {{- '<|' + message['role'] + '|>' }}
    {%- if message['role'] == 'assistant' -%}
        {% generation %}{{- message['content'] + '<|end|>' }}{% endgeneration %}
    {%- else %}
        {{- message['content'] + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

# Places where every word of SPLIT_PATTERN ends: behind a line break, before white space or a
# digit, and where letters or digits are followed by something else. But never behind a space: how
# a run of spaces is split depends on what follows it.
_WORD_END = re.compile(r"(?<=[\r\n])(?=\S)|(?<=\S)(?=[ \t\d])|(?<=[^\W_])(?=[\W_])")
PIECE_LENGTH = 1 << 11  # characters; longer pieces are slower, shorter ones save nothing
BATCH_LENGTH = 1 << 20  # characters

# What from_pretrained adds about this machine and this call; none of it belongs to the tokenizer.
_PRIVATE_KEYS = ("backend", "is_local", "local_files_only", "name_or_path", "token", "cache_dir")


class ScratchGPTTokenizer(TokenizersBackend):
    """Byte-level BPE over the words of `SPLIT_PATTERN`; decoding gives back any text exactly.

    There is no `__init__`: with one, transformers would rebuild the tokenizer from vocabulary and
    merges alone instead of reading tokenizer.json. Corpus text is encoded with
    `split_special_tokens=True`, so that "<|endoftext|>" written in a document stays plain text.
    """

    # rank of each merge, and vocabulary: read when `encode_with_dropout` first needs them
    _merges: tuple[dict[tuple[str, str], int], dict[str, int]] | None = None
    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    @classmethod
    def train_from_texts(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        model_max_length: int = 1024,
        show_progress: bool = True,
    ) -> "ScratchGPTTokenizer":
        """A new tokenizer; ids: special tokens, 256 bytes, then merges, the most frequent first.

        `texts` is read once and never held: memory grows with the number of distinct words only.
        A corpus without enough pairs that occur twice gives a smaller vocabulary and a warning.

        Raises:
            ValueError: no text, `vocab_size` below bytes and special tokens, or a lone surrogate.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"vocab_size ({vocab_size}) must be at least {SMALLEST_VOCABULARY}: "
                f"256 bytes and {len(SPECIAL_TOKENS)} special tokens."
            )
        backend = _untrained_backend()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,  # a pair that occurs once is not a pattern
            special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=show_progress,
        )
        backend.train_from_iterator(_checked_pieces(texts), trainer)
        if backend.get_vocab_size() < vocab_size:
            logger.warning(
                "The tokenizer has %d tokens, not vocab_size=%d: no other pair of tokens occurs "
                "twice in the corpus. Use more text for more tokens.",
                *(backend.get_vocab_size(), vocab_size),
            )
        return cls(
            tokenizer_object=backend,
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            pad_token=PAD,
            extra_special_tokens=list(CHAT_TOKENS),
            chat_template=CHAT_TEMPLATE,
            model_max_length=model_max_length,
            padding_side="left",  # a decoder continues the end of its prompt
            clean_up_tokenization_spaces=False,
        )

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text as a corpus holds it: special tokens are neither added nor recognised.

        Faster than `self(texts, ...)`, which also makes offsets and masks. Every core works
        on pieces of the texts, and beside the ids memory is bound, however long a text is.

        Raises:
            ValueError: a lone surrogate.
        """
        backend = self.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for batch in _batches(texts, can_be_cut=_has_our_words(backend)):
            try:
                encodings = backend.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
            except TypeError:
                _refuse_lone_surrogates(texts)
                raise
            for (number, _), encoding in zip(batch, encodings, strict=True):
                parts[number].append(np.asarray(encoding.ids, np.int32))
        return [np.concatenate(part) for part in parts]

    def encode_with_dropout(self, text: str, dropout: float, seed: int) -> list[int]:
        """Ids of a text in which each merge of two tokens is left out with probability `dropout`.

        BPE-dropout (https://huggingface.co/papers/1910.13267): the same text is cut differently with each seed, so that
        a model which sees few texts learns from the parts of words too. With `dropout=0` these are the ids of
        `encode_texts`; decoding always gives back the text.

        Raises:
            ValueError: `dropout` is not in [0, 1], or the tokenizer is no BPE.
        """
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}: it must lie between 0 and 1.")
        backend = self.backend_tokenizer
        if not isinstance(backend.model, BPE) or backend.pre_tokenizer is None:
            raise ValueError(f"BPE-dropout needs a BPE tokenizer that splits text into words, not {backend.model}.")
        if self._merges is None:
            merges = json.loads(backend.to_str())["model"]["merges"]
            self._merges = {tuple(merge): rank for rank, merge in enumerate(merges)}, backend.get_vocab()
        (ranks, vocabulary), generator = self._merges, Random(seed)
        words = (word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
        return [vocabulary[token] for word in words for token in merged(list(word), ranks, dropout, generator)]

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> BatchEncoding:
        try:
            return super()._encode_plus(text, *args, **kwargs)
        except TypeError:  # all that tokenizers says is "TextInputSequence must be str"
            _refuse_lone_surrogates([text] if isinstance(text, str) else text)
            raise

    def _save_pretrained(
        self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        """Rewrites tokenizer_config.json, which lies there already, in words all runtimes know."""
        file_names = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        path = Path(file_names[0])
        entries = json.loads(path.read_text(encoding="utf-8"))
        for key in _PRIVATE_KEYS:
            entries.pop(key, None)
        # transformers 4 knows neither another class name nor a list under the new name
        entries["tokenizer_class"] = "PreTrainedTokenizerFast"
        if extra := entries.pop("extra_special_tokens", None):
            entries["additional_special_tokens"] = extra
        text = json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        return file_names


def text_pieces(text: str, length: int = PIECE_LENGTH) -> Iterator[str]:
    """Cuts `text` where a word ends, into pieces of `length` to twice `length` characters.

    The tokens of the pieces are the tokens of the text, unless twice `length` characters hold no
    place to cut: then a word may be divided. Memory and time of training and encoding are thereby
    bound per piece, however long a document is.
    """
    start = 0
    while len(text) - start > 2 * length:
        match = _WORD_END.search(text, start + length, start + 2 * length)
        end = match.start() if match else start + 2 * length
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def merged(tokens: list[str], ranks: dict[tuple[str, str], int], dropout: float, generator: Random) -> list[str]:
    """Byte-pair encoding of one word: merge the pair that training merged first, until no pair is left.

    In each round every pair is overlooked with probability `dropout`.
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
    """All pieces with the number of their text, in lists of about BATCH_LENGTH characters."""
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


def _has_our_words(backend: Tokenizer) -> bool:
    """Whether `text_pieces` cuts between words of this tokenizer, which a user may have brought along."""
    ours = _untrained_backend().pre_tokenizer.__getstate__()
    theirs = backend.pre_tokenizer and backend.pre_tokenizer.__getstate__()
    return backend.normalizer is None and theirs == ours


def register_for_auto_tokenizer(config_class: type[PreTrainedConfig]) -> None:
    """Lets `AutoTokenizer` load folders of models with `config_class` as `ScratchGPTTokenizer`.

    Our files name the generic class, which every runtime knows, and `AutoTokenizer` prefers what
    the file names to a registered class, unless the model type is listed as one whose files are
    wrong about it. Without this package the same files load as a plain fast tokenizer.
    """
    name = ScratchGPTTokenizer.__name__
    tokenization_auto.AutoTokenizer.register(config_class, tokenizer_class=ScratchGPTTokenizer, exist_ok=True)
    tokenization_auto.TOKENIZER_MAPPING_NAMES[config_class.model_type] = name
    tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.add(config_class.model_type)


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


def _checked_pieces(texts: Iterable[str]) -> Iterator[str]:
    is_empty = True
    for text in texts:
        _refuse_lone_surrogates([text])
        is_empty = is_empty and not text
        yield from text_pieces(text)
    if is_empty:
        raise ValueError("The corpus is empty (0 bytes): there is nothing to learn tokens from.")


def _refuse_lone_surrogates(texts: Iterable[Any]) -> None:
    for text in texts:
        if not isinstance(text, str) or text.isascii():
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The text holds a lone surrogate (U+{ord(text[error.start]):04X}) at character "
                f"{error.start}: it is not Unicode text and has no UTF-8 bytes. "
                'Decode its source again, for example with errors="replace".'
            ) from None
