import itertools
import tracemalloc
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from hf_scratch_gpt.tokenization_scratch_gpt import SPLIT_PATTERN, ScratchGPTTokenizer
from train.data import words
from train.data.corpora import Document
from train.data.tokens import token_stream
from train.data.words import PIECE_MARK, WordEncoder, cutter_for, word_starts

TEXTS = [
    "It's the cat's, they'RE told; we'll see 'twas 1,234.5 (about)...\n\n    def f(x):\r\n\treturn x  \n",
    "Ein Satz über Größe, naïve café. Русский текст, und 中文没有空格。 \u00a0 \u2028 e\u0301 ½ Ⅷ ٣ 😀👍🏽\n",
    "<|endoftext|> and <|pad|> are plain text here; so is the thing.",
    "\n",
    " ",
    "",
]
SPLIT = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
TYPES = {"bpe": 300, "unigram": 300, "bytes": None, "characters": None}


def starts_by_the_library(texts: Iterable[str]) -> list[int]:
    starts, offset = [], 0
    for text in texts:
        starts += [offset + first for _, (first, _) in SPLIT.pre_tokenize_str(text)] + [offset + len(text)]
        offset += len(text) + 1
    return starts


def starts_by_us(texts: Iterable[str]) -> list[int]:
    codes = b"".join(text.encode("utf-32-le") + PIECE_MARK for text in texts)
    return word_starts(np.frombuffer(codes, "<u4")).tolist()


def check_cuts(texts: Sequence[str]) -> None:
    if not np.array_equal(starts_by_us(texts), starts_by_the_library(texts)):
        for text in texts:
            assert starts_by_us([text]) == starts_by_the_library([text]), repr(text)


def tokenizer_of(type: str) -> ScratchGPTTokenizer:
    texts = () if type == "bytes" else TEXTS * 3
    return ScratchGPTTokenizer.train_from_texts(texts, TYPES[type], type=type, show_progress=False)


@pytest.fixture(scope="module")
def tokenizer() -> ScratchGPTTokenizer:
    return tokenizer_of("bpe")


def encoder_of(tokenizer: ScratchGPTTokenizer) -> WordEncoder:
    return WordEncoder(tokenizer, cutter_for(tokenizer.backend_tokenizer))


def plain_ids(tokenizer: ScratchGPTTokenizer, texts: Sequence[str]) -> list[int]:
    return [int(number) for ids in tokenizer.encode_texts(texts) for number in (*ids, tokenizer.eos_token_id)]


# Cutting


@pytest.mark.parametrize(("signs", "length"), [("as1 \t\n'.", 5), ("'reLd \r.", 5), (" \n\r\u2003.a", 6)])
def test_every_short_text_is_cut_as_the_library_cuts_it(signs, length):
    texts = ["".join(text) for n in range(1, length + 1) for text in itertools.product(signs, repeat=n)]
    check_cuts(texts)


def test_every_character_has_the_class_that_the_library_gives_it():
    """A letter joins the letters beside it, and so on; of the higher planes, every 31st."""
    places = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 31)]
    signs = ["a{0}a{0}.{0} \n{0}".format(chr(place)) for place in places]
    texts = ["".join(signs[first : first + 50]) for first in range(0, len(signs), 50)]
    check_cuts(texts)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("a1 \n'.s"), max_size=60)))
def test_any_text_is_cut_as_the_library_cuts_it(texts):
    texts = texts or [""]
    check_cuts(texts)


# Encoding


@pytest.mark.parametrize("type", TYPES)
def test_the_ids_are_those_of_the_tokenizer(type):
    tokenizer = tokenizer_of(type)
    encoder = encoder_of(tokenizer)
    for _ in range(2):
        assert encoder.encode(TEXTS).tolist() == plain_ids(tokenizer, TEXTS)


@pytest.mark.parametrize("name", ["BATCH_LENGTH", "CACHE_SIZE", "MAX_NEW", "GROUP_SIZE"])
def test_the_ids_do_not_depend_on_the_limits(tokenizer, monkeypatch, name):
    monkeypatch.setattr(words, name, {"BATCH_LENGTH": 100, "CACHE_SIZE": 1000, "MAX_NEW": 0, "GROUP_SIZE": 3}[name])
    encoder = encoder_of(tokenizer)
    texts = [*TEXTS, "".join(TEXTS) * 60]
    for _ in range(2):
        assert encoder.encode(texts).tolist() == plain_ids(tokenizer, texts)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ae1 \n'.s"), max_size=90)))
def test_the_ids_of_any_texts_are_those_of_the_tokenizer(tokenizer, texts):
    texts = texts or [""]
    assert encoder_of(tokenizer).encode(texts).tolist() == plain_ids(tokenizer, texts)


@pytest.mark.parametrize("text", ["a" * 9000, "\n" * 9000, " " * 9001 + "x", "a1" * 5000, "你好" * 5000])
def test_a_word_that_is_too_long_is_cut_where_encode_texts_cuts_it(tokenizer, text):
    assert encoder_of(tokenizer).encode([text, "end"]).tolist() == plain_ids(tokenizer, [text, "end"])


def test_a_word_that_looks_like_a_special_token_is_text():
    tokenizer = tokenizer_of("bpe")
    tokenizer.add_special_tokens({"sep_token": "thing"})
    ids = encoder_of(tokenizer).encode(["thing", "the thing"])
    assert ids.tolist() == plain_ids(tokenizer, ["thing", "the thing"])
    assert tokenizer.sep_token_id not in ids


def test_only_new_words_are_given_to_the_tokenizer(tokenizer, monkeypatch):
    encoder, learned = encoder_of(tokenizer), []
    learn = encoder._learn
    monkeypatch.setattr(encoder, "_learn", lambda new: learned.append(len(new)) or learn(new))
    text = "one two three, one two three.\n" * 100
    for some in (text, text, text + "four four"):
        encoder.encode([some])
    assert learned == [6, 0, 2]  # "one", " one", " two", " three", ",", ".\n"; then "four" and " four"


def test_text_of_words_that_do_not_repeat_is_not_kept(tokenizer):
    encoder = encoder_of(tokenizer)
    text = " ".join("".join(word) for word in itertools.product("abcdefg", repeat=5))
    assert encoder.encode([text]).tolist() == plain_ids(tokenizer, [text])
    assert len(encoder._ids) == 2  # the marks


def test_memory_does_not_grow_with_the_number_of_words(tokenizer, monkeypatch):
    monkeypatch.setattr(words, "CACHE_SIZE", 100_000)

    some = [" " + "".join(word) for word in itertools.product("abcdefghijk", repeat=4)]
    texts = [2 * "".join(some[first : first + 50]) for first in range(0, len(some), 50)]

    def peak(count: int) -> int:
        encoder = encoder_of(tokenizer)
        tracemalloc.start()
        for text in texts[:count]:
            encoder.encode([text])
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert peak(250) < 1.3 * peak(50)


def test_padding_and_truncation_of_earlier_calls_have_no_effect(tokenizer):
    tokenizer([TEXTS[0], "a"], padding=True, truncation=True, max_length=4)
    assert encoder_of(tokenizer).encode(TEXTS).tolist() == plain_ids(tokenizer, TEXTS)


# Errors


@pytest.mark.parametrize("type", ["bpe", "characters"])
def test_a_lone_surrogate_is_named_with_its_place_in_the_text(type):
    text = TEXTS[0] * 100 + "\ud83d"
    with pytest.raises(ValueError, match=rf"lone surrogate \(U\+D83D\) at character {len(text) - 1},"):
        encoder_of(tokenizer_of(type)).encode(["fine", text])


def test_an_unknown_character_is_named():
    with pytest.raises(ValueError, match=r"'€'.* has no token"):
        encoder_of(tokenizer_of("characters")).encode(["fine", "1 €"])


# Other tokenizers


def with_dropout(backend: Tokenizer) -> None:
    backend.model.dropout = 0.5


def with_added_token(backend: Tokenizer) -> None:
    backend.add_tokens([AddedToken("one two", special=False)])


def with_normalizer(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.NFC()


def with_other_words(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize("change", [with_added_token, with_normalizer, with_other_words])
def test_other_tokenizers_encode_the_whole_text(tokenizer, change):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    change(backend)
    assert cutter_for(backend) is None
    other = ScratchGPTTokenizer(tokenizer_object=backend, eos_token="<|endoftext|>")
    texts = ["one two three " * 9, *TEXTS]
    stream = token_stream([Document(str(number), text) for number, text in enumerate(texts)], other)
    assert np.concatenate([*stream]).tolist() == plain_ids(other, texts)


def test_words_of_a_random_tokenizer_are_not_kept(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    with_dropout(backend)
    assert cutter_for(backend) is None
