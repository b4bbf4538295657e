"""Bytes per token, bits per byte and perplexity."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from train.metrics.perplexity import bits_per_byte, perplexity, token_byte_lengths

TEXTS = ["def naïve(): return '€ 10'\n" * 3, "the 東京 thing, the thing\n" * 3]


def byte_level_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<end>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.add_tokens(["Größe"])
    return fast


def character_tokenizer():
    vocab = {character: i for i, character in enumerate(sorted(set("".join(TEXTS))))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("build", [byte_level_tokenizer, character_tokenizer])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(build):
    tokenizer = build()
    lengths = token_byte_lengths(tokenizer)
    assert lengths.shape == (len(tokenizer),)
    for text in TEXTS:
        assert lengths[torch.tensor(tokenizer(text)["input_ids"])].sum() == len(text.encode())


def test_special_tokens_stand_for_no_text_and_added_words_for_theirs():
    tokenizer = byte_level_tokenizer()
    lengths = token_byte_lengths(tokenizer)
    assert lengths[tokenizer.convert_tokens_to_ids(["<end>", "<pad>"])].tolist() == [0, 0]
    assert lengths[tokenizer.convert_tokens_to_ids("Größe")] == 7
    assert (lengths == 0).sum() == 2


def test_bits_per_byte_of_a_coin_per_byte():
    assert bits_per_byte(10 * math.log(2), 10) == pytest.approx(1)
    assert bits_per_byte(1.0, 0) == math.inf


def test_perplexity():
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e9) == math.inf
