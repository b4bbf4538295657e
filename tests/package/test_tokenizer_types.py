"""The types of tokenizers beside BPE: unigram, characters, bytes."""

from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.models import Unigram
from transformers import AutoTokenizer

from hf_scratch_gpt.tokenization_scratch_gpt import CHAT_TEMPLATE, SPECIAL_TOKENS, ScratchGPTTokenizer
from train.metrics.perplexity import token_byte_lengths

TEXTS = [
    "def add(first, second):\n        return first + second  # 12345 + 67890\n",
    "The quick brown fox doesn't jump over the lazy dog's 2 tails, does it?\r\n\r\n",
    "while True:\n\tprint('na\u00efve caf\u00e9 \u2014 \u4f60\u597d, \u4e16\u754c \U0001f600')\n" * 3,
    "    if value is not None and value not in values:\n            raise ValueError(value)\n" * 2,
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TYPES = ["bpe", "unigram", "characters", "bytes"]


def of_type(type: str, texts=TEXTS) -> ScratchGPTTokenizer:
    """A small tokenizer of each type."""
    if type == "bytes":
        return ScratchGPTTokenizer.train_from_texts(type="bytes")
    size = None if type == "characters" else 300
    return ScratchGPTTokenizer.train_from_texts(texts, size, type=type, show_progress=False)


@pytest.mark.parametrize("type", TYPES)
def test_every_type_restores_its_texts_and_has_the_special_tokens(type, tmp_path):
    tokenizer = of_type(type)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for one in (tokenizer, loaded):
        assert [one.decode(ids) for ids in one.encode_texts(TEXTS)] == TEXTS
        assert set(one.all_special_tokens) == set(SPECIAL_TOKENS)
        assert one.chat_template == CHAT_TEMPLATE
        assert (one.convert_tokens_to_ids("<|endoftext|>"), one.convert_tokens_to_ids("<|pad|>")) == (0, 1)
    assert token_byte_lengths(tokenizer)[tokenizer.encode_texts([TEXTS[2]])[0]].sum() == len(TEXTS[2].encode())


@pytest.mark.parametrize("type", TYPES)
def test_text_never_gives_a_special_token_in_any_type(type):
    text = "".join(SPECIAL_TOKENS)
    tokenizer = of_type(type, [*TEXTS, text * 5])
    ids = tokenizer.encode_texts([text])[0]
    assert not set(ids.tolist()) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT)
def test_unigram_and_bytes_restore_any_text(text):
    for type in ("unigram", "bytes"):
        tokenizer = TYPE_CACHE.setdefault(type, of_type(type))
        assert tokenizer.decode(tokenizer.encode_texts([text])[0]) == text


TYPE_CACHE: dict[str, ScratchGPTTokenizer] = {}


def test_bytes_are_special_tokens_and_256_bytes():
    tokenizer = of_type("bytes")
    assert len(tokenizer) == 262
    assert len(tokenizer.encode("\u00e9")) == 2


def test_unigram_learns_pieces_of_the_given_number():
    texts = [topics["strings"]]
    tokenizer = of_type("unigram", texts)
    assert isinstance(tokenizer.backend_tokenizer.model, Unigram)
    assert len(tokenizer) == 300
    assert len(tokenizer.encode(texts[0])) < 0.8 * len(texts[0])


def test_each_character_has_its_own_token():
    tokenizer = of_type("characters", ["hello\t", "ab"])
    characters = sorted({*"hello\t", "a", "b"})
    assert tokenizer("".join(characters))["input_ids"] == list(range(2, 2 + len(characters)))
    assert len(tokenizer) == len(SPECIAL_TOKENS) + len(characters)


@pytest.mark.parametrize(
    "encode",
    [
        lambda tokenizer, text: tokenizer(text),
        lambda tokenizer, text: tokenizer(["a", text]),
        lambda tokenizer, text: tokenizer.encode(text),
        lambda tokenizer, text: tokenizer.encode_texts(["a", text]),
    ],
)
def test_a_character_without_a_token_is_refused_by_name(encode):
    with pytest.raises(ValueError, match=r"The character 'é' \(U\+00E9\) has no token"):
        encode(of_type("characters", ["abc"]), "ab\u00e9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": "words"}, "type is 'words': it must be bpe, unigram, characters or bytes"),
        ({"type": "characters", "vocab_size": 300}, r"vocab_size \(300\) has no effect on the type characters"),
        ({"type": "bytes", "vocab_size": 300, "texts": ()}, r"vocab_size \(300\) has no effect on the type bytes"),
        ({"type": "bytes"}, "texts have no effect"),
        ({"type": "unigram"}, r"vocab_size \(None\) must be at least 262"),
        ({"type": "unigram", "vocab_size": 300, "texts": []}, "corpus is empty"),
        ({"type": "characters", "texts": [""]}, "corpus is empty"),
    ],
)
def test_arguments_that_do_not_fit_the_type_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScratchGPTTokenizer.train_from_texts(**{"texts": TEXTS, "show_progress": False, **arguments})
