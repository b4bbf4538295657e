"""Tokens as people read them."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from hf_scratch_gpt import ScratchGPTTokenizer
from train.views.tokens import pieces, readable, visible

TEXT = "The number 3\n\tis \u00e9\U0001f600."


@pytest.fixture(scope="module")
def byte_level(base):
    return ScratchGPTTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def sentencepiece_like():
    vocabulary = {"<unk>": 0, "\u2581The": 1, "\u2581n": 2, "<0xC3>": 3, "<0xA9>": 4, "\u2581": 5, "The": 6, "n": 7}
    merges = [("\u2581", "The"), ("\u2581", "n")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_the_bytes_of_the_tokens_are_those_of_the_text(byte_level):
    ids = byte_level(TEXT)["input_ids"]
    found = pieces(byte_level, ids)
    assert [piece.id for piece in found] == ids
    assert b"".join(piece.data for piece in found) == TEXT.encode()
    assert any("<0x" in piece.text for piece in found)  # a part of the emoji
    assert not any(piece.is_control for piece in found)


def test_a_control_token_has_a_name_and_no_bytes(byte_level):
    (piece,) = pieces(byte_level, [byte_level.eos_token_id])
    assert (piece.is_control, piece.data, piece.text, piece.visible) == (True, b"", "<|endoftext|>", "<|endoftext|>")


def test_a_row_that_no_token_uses_says_so(byte_level):
    (piece,) = pieces(byte_level, [len(byte_level) + 3])
    assert piece.is_control
    assert piece.text == f"[unused {len(byte_level) + 3}]"


def test_bytes_and_spaces_as_sentencepiece_writes_them(sentencepiece_like):
    found = pieces(sentencepiece_like, [1, 2, 3, 4, 7])
    assert [piece.data for piece in found] == [b" The", b" n", b"\xc3", b"\xa9", b"n"]
    assert found[2].text == "<0xC3>"


def test_whitespace_and_control_characters_are_visible():
    assert visible("a b\n\tc\x00\u200b") == "a\u00b7b\u21b5\u21e5c<00><200B>"
    assert readable(b"a\xc3") == "a<0xC3>"
    assert readable("\u00e9".encode()) == "\u00e9"
