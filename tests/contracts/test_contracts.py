"""The contracts of a transformers model: files, Auto classes, heads."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForQuestionAnswering,
    ScratchGPTForSequenceClassification,
    ScratchGPTForTokenClassification,
    ScratchGPTModel,
)
from tests.support.tiny import (
    BATCH,
    SEQ,
    VARIANTS,
    assert_same,
    tiny_config,
    tiny_ids,
    tiny_model,
)

AUTO_CLASSES = [
    (AutoModel, ScratchGPTModel),
    (AutoModelForCausalLM, ScratchGPTForCausalLM),
    (AutoModelForSequenceClassification, ScratchGPTForSequenceClassification),
    (AutoModelForTokenClassification, ScratchGPTForTokenClassification),
    (AutoModelForQuestionAnswering, ScratchGPTForQuestionAnswering),
]

# ----------------------------------------------------------------------------------------------------------------------
# Saving and loading
# ----------------------------------------------------------------------------------------------------------------------

ROPE = {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize("overrides", [*VARIANTS.values(), {"rope_parameters": ROPE}])
def test_a_loaded_model_gives_bit_equal_logits(overrides, tmp_path):
    model, ids = tiny_model(**overrides), tiny_ids()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is ScratchGPTForCausalLM
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    buffers = dict(model.named_buffers())
    assert buffers.keys() == dict(loaded.named_buffers()).keys()
    for name, buffer in loaded.named_buffers():  # of rotary positions, which are not saved
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_stay_tied(tie, tmp_path):
    tiny_model(tie_word_embeddings=tie).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) != tie  # noqa: SIM118
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118
    loaded = ScratchGPTForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tie
    loaded.save_pretrained(tmp_path / "again")
    again = ScratchGPTForCausalLM.from_pretrained(tmp_path / "again")
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tie


def test_the_base_model_loads_from_a_language_model_and_back(tmp_path):
    model, ids = tiny_model(), tiny_ids()
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
        base.save_pretrained(tmp_path / "base")
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "base")(ids).logits, model(ids).logits)


def test_saved_folders_carry_the_code_and_the_whole_auto_map(tmp_path):
    tiny_model(ScratchGPTForSequenceClassification).save_pretrained(tmp_path)
    assert {"modeling_scratch_gpt.py", "configuration_scratch_gpt.py"} < {path.name for path in tmp_path.iterdir()}
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", *(auto_class.__name__ for auto_class, _ in AUTO_CLASSES)}


def test_resizing_the_embeddings_keeps_the_old_logits():
    for tie in (True, False):
        model, ids = tiny_model(tie_word_embeddings=tie), tiny_ids()
        before = model(ids).logits
        model.resize_token_embeddings(110)
        assert (model.config.vocab_size, model.lm_head.out_features) == (110, 110)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
        after = model(torch.where(ids == 5, 109, ids)).logits
        assert after.shape == (BATCH, SEQ, 110)
        assert_same(model(ids).logits[..., :97], before, 1e-6)
        assert model(ids, labels=ids).loss.isfinite()


# ----------------------------------------------------------------------------------------------------------------------
# Auto classes and heads
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("auto_class", "model_class"), AUTO_CLASSES)
def test_auto_classes_build_our_classes(auto_class, model_class):
    assert type(auto_class.from_config(tiny_config())) is model_class


def test_sequence_classification_reads_the_last_token_that_is_not_padding(tmp_path):
    model = tiny_model(ScratchGPTForSequenceClassification, num_labels=5)
    ids = tiny_ids()
    filled = torch.nn.functional.pad(ids, (0, 3))  # pad_token_id is 0
    mask = (filled != 0).long()
    labels = torch.arange(BATCH) % 5
    output = model(filled, attention_mask=mask, labels=labels)
    assert output.logits.shape == (BATCH, 5)
    assert_same(output.logits, model(ids).logits)
    assert_same(output.logits, model.score(model.model(ids).last_hidden_state[:, -1]))
    assert_same(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    assert_loads_bit_equal(model, tmp_path)


def test_token_classification_scores_every_token(tmp_path):
    model, ids = tiny_model(ScratchGPTForTokenClassification, num_labels=5), tiny_ids()
    output = model(ids, labels=ids % 5)
    assert output.logits.shape == (BATCH, SEQ, 5)
    assert_same(output.loss, torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), (ids % 5).flatten()))
    assert_loads_bit_equal(model, tmp_path)


def test_question_answering_scores_start_and_end(tmp_path):
    model, ids = tiny_model(ScratchGPTForQuestionAnswering), tiny_ids()
    start, end = torch.zeros(BATCH, dtype=torch.long), torch.full((BATCH,), 3)
    output = model(ids, start_positions=start, end_positions=end)
    assert output.start_logits.shape == output.end_logits.shape == (BATCH, SEQ)
    cross_entropy = torch.nn.functional.cross_entropy
    assert_same(output.loss, (cross_entropy(output.start_logits, start) + cross_entropy(output.end_logits, end)) / 2)
    assert_loads_bit_equal(model, tmp_path)


def assert_loads_bit_equal(model, folder):
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    with torch.no_grad():
        for expected, actual in zip(model(tiny_ids()).to_tuple(), loaded(tiny_ids()).to_tuple(), strict=True):
            assert not isinstance(expected, torch.Tensor) or torch.equal(actual, expected)
