"""The contracts of a transformers model: files, Auto classes, heads."""

import json

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.modelcard import TrainingSummary

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
    SLIDING,
    VARIANTS,
    assert_same,
    gradients,
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


@pytest.mark.parametrize("tie", [True, False])
def test_the_padding_token_is_trained_like_any_other(tie):
    """Many tokenizers pad with the end-of-text token, which has to be learned."""
    model = tiny_model(tie_word_embeddings=tie, eos_token_id=0, pad_token_id=0)
    ids = torch.tensor([[0, 9, 10, 0, 11, 12]])
    model(ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().padding_idx is None
    norms = model.get_input_embeddings().weight.grad.norm(dim=1)
    assert norms[0] > norms[9:13].min() / 2
    fresh = ScratchGPTForCausalLM(model.config).get_input_embeddings().weight
    assert fresh[0].norm() > fresh[1:].norm(dim=1).min() / 2


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()])
@pytest.mark.parametrize("rope", [{}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}])
def test_casting_a_model_keeps_its_rotary_frequencies(cast, rope):
    rotary = tiny_model(rope_parameters={"rope_theta": 100.0, **rope} if rope else None).model.rotary_emb
    positions = torch.arange(2000)[None]
    before = rotary(torch.zeros(1), positions)
    cast(rotary)
    assert {buffer.dtype for buffer in rotary.buffers()} == {torch.float32}
    for actual, expected in zip(rotary(torch.zeros(1), positions), before, strict=True):
        assert torch.equal(actual, expected)
    meta = rotary.to("meta", torch.float16)
    assert {(buffer.device.type, buffer.dtype) for buffer in meta.buffers()} == {("meta", torch.float32)}


# ----------------------------------------------------------------------------------------------------------------------
# Changes to a built config or model
# ----------------------------------------------------------------------------------------------------------------------


def test_a_window_set_on_a_built_config(tmp_path):
    """transformers' own tests do this with every model."""
    config = tiny_config()
    config.sliding_window = 2
    model, ids = ScratchGPTForCausalLM(config).eval(), tiny_ids()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.layer_types == ["sliding_attention"] * 4
    full = tiny_model()
    full.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert not torch.equal(loaded(ids).logits, full(ids).logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_window_set_on_the_config_of_a_model_takes_effect(implementation):
    model, windowed = (tiny_model(attn_implementation=implementation, **more) for more in ({}, {"sliding_window": 2}))
    model.config.sliding_window = 2
    with torch.no_grad():
        assert_same(model(tiny_ids()).logits, windowed(tiny_ids()).logits)
    assert [layer.self_attn.sliding_window for layer in model.model.layers] == [2] * 4


def test_fewer_layers_than_the_model_has():
    model, ids = tiny_model(**SLIDING), tiny_ids()
    states = model(ids, output_hidden_states=True).hidden_states
    model.config.num_hidden_layers = 2
    assert_same(model.model(ids).last_hidden_state, model.model.norm(states[2]))
    model.config.num_hidden_layers = 4
    assert_same(model.model(ids).last_hidden_state, states[4])


def test_gradients_per_example():
    """torch.func gives tensors without values, so no check may look at them."""
    from torch.func import functional_call, grad, vmap

    model, ids = tiny_model(attn_implementation="eager"), tiny_ids()
    parameters = dict(model.named_parameters())

    def loss(parameters, row):
        return functional_call(model, parameters, (row[None],), {"labels": row[None]}).loss

    per_example = vmap(grad(loss), (None, 0))(parameters, ids)
    for row in range(BATCH):
        model.zero_grad()
        model(ids[row : row + 1], labels=ids[row : row + 1]).loss.backward()
        for name, gradient in gradients(model).items():
            assert_same(per_example[name][row], gradient)


# ----------------------------------------------------------------------------------------------------------------------
# Auto classes and heads
# ----------------------------------------------------------------------------------------------------------------------


TASKS = [
    ("text-generation", ScratchGPTForCausalLM),
    ("text-classification", ScratchGPTForSequenceClassification),
    ("token-classification", ScratchGPTForTokenClassification),
]


@pytest.mark.parametrize(("task", "model_class"), TASKS)
def test_pipelines_and_model_cards_know_the_names_of_our_classes(task, model_class, tokenizer, tmp_path, caplog):
    """Pipelines log an error about a class that they do not know, and Trainer's card then has no task."""
    model = tiny_model(model_class, vocab_size=len(tokenizer))
    transformers.utils.logging.enable_propagation()
    try:
        transformers.pipeline(task, model, tokenizer=tokenizer, device="cpu")
    finally:
        transformers.utils.logging.disable_propagation()
    assert "is not supported" not in caplog.text
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    trainer = transformers.Trainer(model, arguments)
    trainer.create_model_card(dataset_args="some text", dataset="some text", dataset_tags="some-text")
    trainer.state.log_history = [{"eval_loss": 1.0}]
    summary = TrainingSummary.from_trainer(trainer, model_name="tiny", dataset="some text")
    assert summary.tasks == task


def test_a_subclass_has_the_name_by_which_trainer_knows_it():
    class Other(ScratchGPTForCausalLM):
        pass

    assert Other(tiny_config())._get_name() == "ScratchGPTForCausalLM"


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


@pytest.mark.parametrize("num_items", [None, 7])
@pytest.mark.parametrize("model_class", [ScratchGPTForSequenceClassification, ScratchGPTForTokenClassification])
def test_a_batch_without_labels_costs_a_classifier_nothing(model_class, num_items):
    """The mean over no labels would be NaN."""
    model, ids = tiny_model(model_class, num_labels=3), tiny_ids()
    labels = torch.full((BATCH,) if "Sequence" in model_class.__name__ else (BATCH, SEQ), -100)
    loss = model(ids, labels=labels, num_items_in_batch=num_items).loss
    loss.backward()
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_an_answer_outside_the_sequence_costs_nothing():
    model, ids = tiny_model(ScratchGPTForQuestionAnswering), tiny_ids()
    outside, start, end = torch.full((BATCH,), SEQ), torch.zeros(BATCH, dtype=torch.long), torch.full((BATCH,), 3)
    nothing = model(ids, start_positions=outside, end_positions=torch.full((BATCH,), -100)).loss
    nothing.backward()
    assert nothing.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(model).values())
    start[0] = SEQ  # the answer of one row begins outside
    cross_entropy = torch.nn.functional.cross_entropy
    output = model(ids, start_positions=start, end_positions=end)
    expected = cross_entropy(output.start_logits[1:], start[1:]) + cross_entropy(output.end_logits, end)
    assert_same(output.loss, expected / 2)


def assert_loads_bit_equal(model, folder):
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    with torch.no_grad():
        for expected, actual in zip(model(tiny_ids()).to_tuple(), loaded(tiny_ids()).to_tuple(), strict=True):
            assert not isinstance(expected, torch.Tensor) or torch.equal(actual, expected)
