"""Backward passes written by hand: same values as the formula, fewer tensors kept, and only where they apply."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from hf_scratch_gpt import modeling_scratch_gpt as modeling
from hf_scratch_gpt.modeling_scratch_gpt import (
    RMSNormFunction,
    RotateFunction,
    SwiGLUFunction,
    is_eager,
    rms_norm,
    rotate,
    swiglu,
)
from tests.support.tiny import VARIANTS, tiny_ids, tiny_model

EPS = 1e-2


def arguments_of(name):
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    if name == "rms_norm":
        return random(2, 5, 3, 8).requires_grad_(), (1 + random(8)).requires_grad_()
    if name == "rotate":
        angles = random(1, 5, 3)
        return random(2, 5, 4, 8).requires_grad_(), angles.cos(), angles.sin()  # 2 of 8 dimensions stay as they are
    return random(2, 5, 7).requires_grad_(), random(2, 5, 7).requires_grad_()


PAIRS = {
    "rms_norm": (lambda x, w: RMSNormFunction.apply(x, w, EPS), lambda x, w: rms_norm(x, w, EPS)),
    "rotate": (RotateFunction.apply, rotate),
    "swiglu": (SwiGLUFunction.apply, swiglu),
}


def gradients(function, arguments, dtype=None):
    inputs = [x for x in arguments if x.requires_grad]
    output = function(*(x if dtype is None else x.to(dtype) for x in arguments))
    return output, torch.autograd.grad((output.float() * torch.linspace(-1, 1, output.shape[-1])).sum(), inputs)


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_equal_the_formula(name):
    own, formula = PAIRS[name]
    arguments = arguments_of(name)
    output, found = gradients(own, arguments)
    expected_output, expected = gradients(formula, arguments)
    torch.testing.assert_close(output, expected_output, rtol=0, atol=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_bfloat16_stays_within_its_rounding(name):
    own, formula = PAIRS[name]
    arguments = arguments_of(name)
    output, found = gradients(own, arguments, torch.bfloat16)
    expected_output, expected = gradients(formula, arguments)
    assert output.dtype == torch.bfloat16
    scale = 2.0**-6  # three roundings of 8 bits
    torch.testing.assert_close(output.float(), expected_output, rtol=scale, atol=scale * 4)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=scale, atol=scale * other.abs().max().item())


@pytest.mark.parametrize("name", PAIRS)
def test_second_derivatives_equal_those_of_the_formula(name):
    results = []
    for function in PAIRS[name]:
        arguments = arguments_of(name)
        inputs = [x for x in arguments if x.requires_grad]
        first = torch.autograd.grad(function(*arguments).square().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(one.pow(3).sum() for one in first), inputs))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def saved_bytes(model):
    """Bytes that autograd keeps between the passes, each tensor once."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=tiny_ids(), use_cache=False)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for address, (size, _) in kept.items() if address not in weights)


def test_a_training_step_keeps_three_quarters_of_the_memory(monkeypatch):
    model = tiny_model().train()
    own = saved_bytes(model)
    monkeypatch.setattr(modeling, "is_eager", lambda *tensors: False)
    assert own < 0.75 * saved_bytes(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_and_all_gradients_of_a_model_are_the_same(variant, monkeypatch):
    model, ids = tiny_model(**VARIANTS[variant]).train(), tiny_ids()
    results = []
    for is_used in (True, False):
        if not is_used:
            monkeypatch.setattr(modeling, "is_eager", lambda *tensors: False)
        loss = model(input_ids=ids, labels=ids).loss
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_compiled_and_transformed_code_uses_the_formula():
    seen = []

    def function(x):
        seen.append(is_eager(x))
        return x * 2

    x = torch.ones(2, requires_grad=True)
    function(x)
    torch.compile(function, backend="eager", fullgraph=True)(x)
    torch.func.vmap(torch.func.grad(lambda x: function(x).sum()))(torch.ones(3, 2))
    assert seen == [True, False, False]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_do_not_depend_on_gradients_being_recorded(variant):
    model, ids = tiny_model(**VARIANTS[variant]), tiny_ids()
    logits = model(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, logits)
