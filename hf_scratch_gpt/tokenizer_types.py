"""Train the backend of each type of tokenizer: bpe, unigram, bytes, characters."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram, WordLevel
from tokenizers.trainers import BpeTrainer, UnigramTrainer

Type = Literal["bpe", "unigram", "characters", "bytes"]


def check_arguments(type: Type, texts: Iterable[str], vocab_size: int | None, num_special: int) -> None:
    """Refuse arguments that do not fit the type.

    Raises:
        ValueError: the argument.
    """
    if type in ("characters", "bytes"):
        if vocab_size is not None:
            raise ValueError(f"vocab_size ({vocab_size}) has no effect on the type {type}, which has a token for each.")
        if type == "bytes" and texts != ():
            raise ValueError("texts have no effect on the type bytes.")
        return
    if type not in ("bpe", "unigram"):
        raise ValueError(f"type is {type!r}: it must be bpe, unigram, characters or bytes.")
    if vocab_size is None or vocab_size < 256 + num_special:
        raise ValueError(
            f"vocab_size ({vocab_size}) must be at least {256 + num_special}: "
            f"256 bytes and {num_special} special tokens."
        )


def train_on_bytes(
    backend: Tokenizer,
    type: Type,
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str],
    show_progress: bool,
) -> None:
    """Train a backend with byte-level words. Unigram has the words and bytes of BPE, so that it decodes exactly too."""
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": [AddedToken(token, special=True) for token in special_tokens],
        "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet()),
        "show_progress": show_progress,
    }
    if type == "unigram":
        backend.model = Unigram()
        trainer: Any = UnigramTrainer(**options)
    else:
        trainer = BpeTrainer(min_frequency=2, **options)  # a pair that occurs once does not generalize
    backend.train_from_iterator(texts, trainer)


def character_backend(texts: Iterable[str], special_tokens: Sequence[str]) -> Tokenizer:
    """A tokenizer with a token for each character, and none for unknown ones: no text is lost silently.

    The ids are those of the first two special tokens, the characters by code point, and the other special tokens.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    tokens = (*special_tokens[:2], *sorted(characters))
    backend = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}))
    backend.add_special_tokens([AddedToken(token, special=True) for token in special_tokens])
    backend.pre_tokenizer = _each_character()
    backend.decoder = decoders.Fuse()
    return backend


def has_characters(backend: Tokenizer) -> bool:
    """Whether each character of a text is a word of its own."""
    found = backend.pre_tokenizer and backend.pre_tokenizer.__getstate__()
    return backend.normalizer is None and found == _each_character().__getstate__()


def _each_character() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")


def refuse_unknown_characters(texts: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse texts with a character that has no token.

    Raises:
        ValueError: the character.
    """
    characters = {*known}
    for text in texts:
        if isinstance(text, str) and (unknown := next((sign for sign in text if sign not in characters), None)):
            raise ValueError(
                f"The character {unknown!r} (U+{ord(unknown):04X}) has no token in this vocabulary of characters. "
                "Remove it from the text, or train a tokenizer on text with it. bpe, unigram and bytes encode any text."
            )


def refuse_lone_surrogates(texts: Iterable[Any]) -> None:
    """Refuse texts that cannot be encoded as UTF-8.

    Raises:
        ValueError: the place of the surrogate.
    """
    for text in texts:
        if not isinstance(text, str) or text.isascii():
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The text contains a lone surrogate (U+{ord(text[error.start]):04X}) at character "
                f"{error.start}, so it is not valid Unicode and cannot be encoded as UTF-8. "
                'Decode its source again, for example with errors="replace".'
            ) from None
