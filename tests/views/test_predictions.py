"""Candidates, surprise, and bits per byte."""

import math

import pytest
import torch

from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTTokenizer
from train.views.inside import look_inside
from train.views.predictions import candidates, surprisals, text_bits_per_byte
from train.views.tokens import pieces


def test_candidates_are_ranked_and_the_true_token_is_among_them():
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05])
    found = [(one.id, one.rank) for one in candidates(probabilities, 2, also=4)]
    assert found == [(1, 1), (3, 2), (4, 5)]
    assert [one.id for one in candidates(probabilities, 2, also=3)] == [1, 3]
    assert len(candidates(probabilities, 20)) == 5
    assert candidates(probabilities, 1)[0].probability == pytest.approx(0.4)


def test_equally_probable_tokens_have_different_ranks():
    assert candidates(torch.full((4,), 0.25), 1, also=3)[-1].rank == 4


def test_surprise_is_minus_the_binary_logarithm_and_the_first_token_has_none():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [1.0, 1, 1]]).log()
    first, *bits = surprisals(logits, [2, 0, 1])
    assert first is None
    assert bits == pytest.approx([1.0, 3.0])


def test_bits_per_byte_of_a_text_are_those_of_its_loss(base):
    model, tokenizer = ScratchGPTForCausalLM.from_pretrained(base).eval(), ScratchGPTTokenizer.from_pretrained(base)
    ids = tokenizer("The a number 3 is red. \u00e9")["input_ids"]
    inside, shown = look_inside(model, ids), pieces(tokenizer, ids)
    bits = surprisals(inside.logits, ids)
    with torch.no_grad():
        loss = float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    num_bytes = len("The a number 3 is red. \u00e9".encode()) - len(shown[0].data)
    expected = loss * (len(ids) - 1) / math.log(2) / num_bytes
    assert text_bits_per_byte(bits, shown) == pytest.approx(expected, rel=1e-5)
    assert text_bits_per_byte(bits[:1], shown[:1]) is None
