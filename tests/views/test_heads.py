"""Words for heads."""

import pytest
import torch

from tests.support.tiny import VOCAB, tiny_model
from train.views.heads import WORDS, head_words, pattern_scores

IDS = [5, 6, 7, 5, 6, 7]
SEQ = len(IDS)


def pattern(rows):
    """A map whose rows put all attention on one place."""
    map_ = torch.zeros(SEQ, SEQ)
    for query, key in enumerate(rows):
        map_[query, key] = 1
    return map_[None, None]


@pytest.mark.parametrize(
    ("word", "rows"),
    [
        ("previous token", [0, 0, 1, 2, 3, 4]),
        ("first token", [0, 0, 0, 0, 0, 0]),
        ("same token", [0, 1, 2, 0, 1, 2]),
        ("induction", [0, 0, 0, 1, 2, 3]),
    ],
)
def test_each_pattern_is_recognized_and_not_taken_for_another(word, rows):
    scores = {name: float(one) for name, one in pattern_scores(pattern(rows), IDS).items()}
    assert scores[word] == 1
    assert all(score < 0.7 for name, score in scores.items() if name != word)


def test_a_score_is_the_share_of_attention():
    uniform = torch.ones(SEQ, SEQ).tril()
    uniform /= uniform.sum(dim=-1, keepdim=True)
    scores = pattern_scores(uniform[None, None], IDS)
    positions = torch.arange(2, SEQ)
    assert float(scores["previous token"]) == pytest.approx(float((1 / (positions + 1)).mean()))
    assert float(scores["induction"]) == pytest.approx(float((1 / (torch.arange(3, SEQ) + 1)).mean()))


def test_a_pattern_that_the_text_never_allows_has_no_score():
    maps = torch.ones(2, 3, 4, 4) / 4
    scores = pattern_scores(maps, [5, 6, 7, 8])
    assert torch.equal(scores["same token"], torch.zeros(2, 3))
    assert torch.equal(scores["induction"], torch.zeros(2, 3))


def test_heads_of_a_model_with_random_weights_get_no_word():
    found = head_words(tiny_model(), range(2, VOCAB), 64)
    assert [(one.layer, one.head) for one in found[:7]] == [*((0, head) for head in range(6)), (1, 0)]
    assert len(found) == 24
    assert {one.word for one in found} == {None}
    assert all(set(one.scores) == set(WORDS) for one in found)


def test_a_head_that_looks_back_gets_its_word():
    """Its queries are the keys of the position before."""
    model = tiny_model(position_embedding_type="learned", qk_norm=False, num_key_value_heads=6)
    attention, size = model.model.layers[0].self_attn, model.config.hidden_size
    keys = torch.randn(8, size)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.model.embed_positions.weight.copy_(torch.eye(64, size) * 50)
        model.model.layers[0].input_layernorm.weight.fill_(1)
        attention.k_proj.weight[:8] = keys
        attention.q_proj.weight[:8] = torch.roll(keys, 1, dims=1) * 30
    first = head_words(model, range(2, VOCAB), 40)[0]
    assert first.word == "previous token"
    assert first.score > 0.7
