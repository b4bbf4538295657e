"""Different paths to the same result: attention kernels, packing, gradient checkpointing, inputs and outputs."""

import math

import pytest
import torch

from hf_scratch_gpt.modeling_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTModel
from tests.support.tiny import (
    BATCH,
    POSITIONS,
    SEQ,
    SLIDING,
    VARIANTS,
    assert_same,
    gradients,
    tiny_config,
    tiny_ids,
    tiny_model,
)

# Warnings of torch's own compiler and of flex attention, which runs uncompiled here: fast, and the same results
ignore_flex = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:flex_attention called without torch.compile:UserWarning"
)
flex = pytest.param("flex_attention", marks=ignore_flex)


@pytest.mark.parametrize("implementation", ["sdpa", flex])
@pytest.mark.parametrize("mlp", ["swiglu", "gelu", "relu2"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("position", POSITIONS)
def test_all_attentions_equal_eager(position, norm, mlp, implementation):
    model = tiny_model(position_embedding_type=position, norm_type=norm, mlp_type=mlp, qk_norm=mlp != "gelu")
    assert_equals_eager(model, implementation, attention_mask=None)


@pytest.mark.parametrize("implementation", ["sdpa", flex])
@pytest.mark.parametrize("overrides", [{}, SLIDING], ids=["full", "sliding"])
def test_all_attentions_equal_eager_with_padding_on_either_side(overrides, implementation):
    mask = torch.ones(BATCH, SEQ, dtype=torch.long)
    mask[0, :2] = mask[1, 3:] = 0
    assert_equals_eager(tiny_model(**overrides), implementation, attention_mask=mask)


@pytest.mark.slow
@ignore_flex
def test_compiled_flex_attention_equals_eager():
    assert_equals_eager(tiny_model(**SLIDING), "flex_attention", attention_mask=None, stance="default")


def assert_equals_eager(model, implementation, attention_mask, stance="force_eager"):
    ids, logits = tiny_ids(), []
    for name in ("eager", implementation):
        model.set_attn_implementation(name)
        with torch.no_grad(), torch.compiler.set_stance(stance):
            logits.append(model(ids, attention_mask=attention_mask).logits)
        assert logits[-1].isfinite().all()
    seen = slice(None) if attention_mask is None else attention_mask.bool()
    assert_same(logits[1][seen], logits[0][seen])


def test_permuting_the_batch_permutes_the_output():
    model, ids = tiny_model(), tiny_ids()
    order = torch.randperm(BATCH)
    with torch.no_grad():
        assert_same(model(ids[order]).logits, model(ids).logits[order], 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_gives_the_same_gradients(variant):
    model, ids = tiny_model(**VARIANTS[variant], residual_dropout=0.1, attention_dropout=0.1), tiny_ids()
    results = []
    for checkpointing in (False, True):
        model.train().zero_grad()
        if checkpointing:  # renamed in transformers 5.23
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            assert model.model.layers[0].gradient_checkpointing
        torch.manual_seed(0)
        model(ids, labels=ids).loss.backward()
        results.append({name: gradient.clone() for name, gradient in gradients(model).items()})
    for name, expected in results[0].items():
        assert_same(results[1][name], expected, 1e-6)


def test_inputs_embeds_equal_input_ids():
    for position in POSITIONS:
        model, ids = tiny_model(position_embedding_type=position), tiny_ids()
        with torch.no_grad():
            embeds = model.get_input_embeddings()(ids)
            assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)


def test_exactly_one_kind_of_input():
    model = tiny_model(ScratchGPTModel)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(tiny_ids(), inputs_embeds=torch.zeros(BATCH, SEQ, 48))


def test_ids_and_positions_out_of_range_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"input_ids contains 97, .* between 0 and 96 \(vocab_size - 1\)"):
        tiny_model()(torch.tensor([[5, 97]]))
    with pytest.raises(ValueError, match=r"input_ids contains -1, "):
        tiny_model()(torch.tensor([[5, -1]]))
    long = tiny_ids(1, 65)
    with pytest.raises(ValueError, match=r"position_ids contains 64, .* 0 and 63 \(max_position_embeddings - 1\)"):
        tiny_model(position_embedding_type="learned")(long)
    assert tiny_model()(long).logits.isfinite().all()  # rotary positions have no limit


def test_hidden_states_and_attentions():
    model, ids = tiny_model(attn_implementation="eager"), tiny_ids()
    with torch.no_grad():
        outputs = model(ids, output_hidden_states=True, output_attentions=True)
        embeds = model.model.embed_tokens(ids)
        as_tuple = model(ids, return_dict=False)
    assert len(outputs.hidden_states) == 5
    assert torch.equal(outputs.hidden_states[0], embeds)
    assert torch.equal(model.lm_head(outputs.hidden_states[-1]), outputs.logits)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(BATCH, 6, SEQ, SEQ)] * 4
    assert_same(outputs.attentions[0].sum(-1), torch.ones(BATCH, 6, SEQ))
    assert torch.equal(as_tuple[0], outputs.logits)


def test_logits_to_keep():
    model, ids = tiny_model(), tiny_ids()
    with torch.no_grad():
        logits = model(ids).logits
        assert_same(model(ids, logits_to_keep=1).logits, logits[:, -1:], 1e-6)
        assert_same(model(ids, logits_to_keep=torch.tensor([0, 3])).logits, logits[:, [0, 3]], 1e-6)


def packed_rows(model, **arguments):
    """Logits of two documents in one row, and of each document in a separate row."""
    first, second = tiny_ids(1, 9, seed=1), tiny_ids(1, 6, seed=2)
    positions = torch.cat((torch.arange(9), torch.arange(6)))[None]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        packed = model(torch.cat((first, second), dim=1), position_ids=positions, **arguments).logits
        separate = torch.cat((model(first).logits, model(second).logits), dim=1)
    return packed, separate


@pytest.mark.parametrize("mode", ["eval", "train", "uncached"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", flex])
@pytest.mark.parametrize("overrides", [{}, SLIDING, *({"position_embedding_type": p} for p in POSITIONS[1:])])
def test_packed_documents_equal_separate_ones(overrides, implementation, mode):
    model = tiny_model(**overrides, attn_implementation=implementation).train(mode == "train")
    packed, separate = packed_rows(model, **({"use_cache": False} if mode == "uncached" else {}))
    assert_same(packed, separate)


def test_an_attention_mask_of_ones_switches_packing_off():
    """As documented. Also shows that the tests above can fail: these positions alone do not isolate the documents."""
    packed, separate = packed_rows(tiny_model(), attention_mask=torch.ones(1, 15))
    assert (packed - separate).abs().max() > 0.01


def test_residual_projections_start_smaller():
    model = ScratchGPTForCausalLM(tiny_config(hidden_size=256, intermediate_size=512, head_dim=64))
    assert model.config.num_hidden_layers == 4
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert parameter.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.05), name
        elif parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name


def test_no_cache_is_ever_made_in_training():
    model, ids = tiny_model(), tiny_ids()
    assert model(ids).past_key_values is not None
    assert model(ids, labels=ids).past_key_values is None
    model.train()
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values is None
