"""A step of sampling agrees with `generate`, and each setting says what it removed."""

import pytest
import torch

from tests.support.tiny import VOCAB, tiny_ids, tiny_model
from train.views.choice import Knobs, choose

IDS = tiny_ids(batch=1, seq=9)[0].tolist()
SETTINGS = [
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.3},
    {"repetition_penalty": 1.7},
    {"temperature": 1.4, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@torch.no_grad()
def last_logits(model):
    return model(torch.tensor([IDS])).logits[0, -1]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_probabilities_and_the_sampled_token_are_those_of_generate(model, settings):
    for seed in range(4):
        torch.manual_seed(seed)
        output = model.generate(
            torch.tensor([IDS]), attention_mask=torch.ones(1, len(IDS)), max_new_tokens=1, do_sample=True,
            output_scores=True, output_logits=True, return_dict_in_generate=True, **{"top_k": 0} | settings,
        )  # fmt: skip
        choice = choose(output.logits[0][0], IDS, Knobs(**settings))
        assert torch.equal(output.scores[0][0].softmax(dim=-1), choice.after)
        assert int(output.sequences[0, -1]) == choice.sample(seed)
    assert torch.equal(choice.before, output.logits[0][0].softmax(dim=-1))
    # `generate` computes the logits of the last position alone, which differs in the last digit
    own = choose(last_logits(model), IDS, Knobs(**settings))
    torch.testing.assert_close(own.after, choice.after)
    assert [own.cut_by(token) for token in range(VOCAB)] == [choice.cut_by(token) for token in range(VOCAB)]


@pytest.mark.parametrize("penalty", [1.0, 5.0])
def test_temperature_zero_is_greedy(model, penalty):
    choice = choose(last_logits(model), IDS, Knobs(temperature=0, top_k=3, repetition_penalty=penalty))
    output = model.generate(torch.tensor([IDS]), max_new_tokens=1, do_sample=False, repetition_penalty=penalty)
    assert choice.sample(0) == int(output[0, -1])
    assert choice.after.max() == 1
    assert choice.stages[-1].name == "temperature"
    assert len(choice.stages[-1].cut) == VOCAB - 1


def test_each_setting_says_what_it_removed():
    logits = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]).log()
    choice = choose(logits, [0], Knobs(top_k=4, top_p=0.8, min_p=0.5))
    assert [(stage.name, stage.cut) for stage in choice.stages] == [("top_k", [4]), ("top_p", [3]), ("min_p", [2])]
    assert [choice.cut_by(token) for token in range(5)] == [None, None, "min_p", "top_p", "top_k"]
    assert choice.stages[0].cut_mass == pytest.approx(0.05)
    assert choice.after.tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0, 0])


def test_settings_without_effect_are_no_stages():
    assert Knobs(temperature=1, top_k=0, top_p=1, min_p=0, repetition_penalty=1).processors == []
