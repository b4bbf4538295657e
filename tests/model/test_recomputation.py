"""What layers keep for the backward pass: same gradients, fewer bytes, and no matrix product twice."""

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy

from benchmarks.plan_memory import peak_on_cpu
from tests.support.operations import Operations
from tests.support.tiny import TINY, VARIANTS, assert_same, gradients, tiny_ids, tiny_model
from train.model.recomputation import keep_products, set_gradient_checkpointing

aten = torch.ops.aten


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_selective_gives_the_same_gradients(variant, attention):
    results = []
    for how in ("false", "selective"):
        model = trained(how, **VARIANTS[variant], residual_dropout=0.1, attention_dropout=0.1)
        model.set_attn_implementation(attention)
        torch.manual_seed(0)
        model(tiny_ids(), labels=tiny_ids()).loss.backward()
        results.append(gradients(model))
    for name, expected in results[0].items():
        assert_same(results[1][name], expected, 1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_selective_gives_the_same_gradients_in_compiled_code():
    results = []
    for how in ("false", "selective"):
        model = trained(how)
        torch.compile(model)(tiny_ids(), labels=tiny_ids()).loss.backward()
        results.append(gradients(model))
    for name, expected in results[0].items():
        assert_same(results[1][name], expected, 1e-5)


def test_which_products_are_computed_twice():
    """In each layer, selective: narrow k and v; true: also q, o, gate and up. No one needs the result of down again."""
    products = {how: products_of_step(how) for how in ("false", "selective", "true")}
    assert products["selective"] == products["false"] + TINY["num_hidden_layers"] * 2
    assert products["true"] == products["false"] + TINY["num_hidden_layers"] * 6


def products_of_step(how):
    model = trained(how)
    with Operations() as counted:
        model(tiny_ids(), labels=tiny_ids(), skip_logits=True).loss.backward()
    return counted.products


def test_selective_keeps_less_than_all_and_more_than_true():
    kept = {how: bytes_kept(how) for how in ("false", "selective", "true")}
    assert kept["true"] < kept["selective"] < 0.8 * kept["false"]


def bytes_kept(how):
    """Bytes that a forward pass allocates and keeps."""
    model = trained(how)
    return peak_on_cpu(lambda: model.model(tiny_ids()).last_hidden_state.sum().item())


def test_attention_with_dropout_is_computed_again():
    operation = aten._scaled_dot_product_flash_attention.default
    query = key = value = torch.ones(1, 1, 1, 8)
    assert keep_products(None, operation, query, key, value) is CheckpointPolicy.MUST_SAVE
    assert keep_products(None, operation, query, key, value, 0.0, True) is CheckpointPolicy.MUST_SAVE
    for args, kwargs in (((0.1,), {}), ((), {"dropout_p": 0.1})):
        decision = keep_products(None, operation, query, key, value, *args, **kwargs)
        assert decision is CheckpointPolicy.PREFER_RECOMPUTE
    efficient = aten._scaled_dot_product_efficient_attention.default
    decision = keep_products(None, efficient, query, key, value, None, True, 0.1)
    assert decision is CheckpointPolicy.PREFER_RECOMPUTE


def trained(how, **overrides):
    """A model in training mode; its initial weights do not depend on `how`."""
    model = tiny_model(**overrides).train()
    set_gradient_checkpointing(model, how)
    return model
