"""Which parameter goes to which optimizer, Muon's arithmetic, and optimizer state as named tensors."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from train.checkpoint.optimizer_state import load_optimizers, optimizer_tensors
from train.loop import optimizers
from train.loop.optimizers import Muon, build_optimizers, orthogonalize

SETTINGS = {"learning_rate": 1e-2, "weight_decay": 0.1}


def tiny_model(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=tied, attention_bias=True,
        )
    )  # fmt: skip


def names_of(model, group):
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return {name_of[parameter] for parameter in group["params"]}


def backward(model):
    ids = torch.arange(24).view(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()


def newton_schulz_by_hand(matrix, rounds=3, bound=None):
    """The quintic iteration written out in float64 for one matrix, from the norm of its fourth powers by default."""
    bound = torch.linalg.svdvals(matrix.double()).pow(4).sum() ** 0.25 if bound is None else bound
    x = matrix.double() / bound
    for _ in range(rounds):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_weights_decay_and_norms_and_biases_do_not():
    model = tiny_model()
    (adamw,) = build_optimizers(model, optimizer="adamw", **SETTINGS)
    decaying, other = adamw.param_groups
    assert (decaying["weight_decay"], other["weight_decay"]) == (0.1, 0.0)
    assert all("norm" in name or "bias" in name for name in names_of(model, other))
    assert not any("norm" in name or "bias" in name for name in names_of(model, decaying))
    assert names_of(model, decaying) | names_of(model, other) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
def test_muon_trains_the_matrices_of_the_layers_only(tied):
    model = tiny_model(tied)
    adamw, muon = build_optimizers(model, optimizer="muon", **SETTINGS)
    assert names_of(model, muon.param_groups[0]) == {
        name for name, p in model.named_parameters() if name.startswith("model.layers.") and p.ndim == 2
    }
    tables = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert names_of(model, adamw.param_groups[0]) == tables


def test_frozen_parameters_are_not_optimized():
    model = tiny_model()
    model.model.layers[0].requires_grad_(False)
    optimizers = build_optimizers(model, optimizer="muon", **SETTINGS)
    assert not any("layers.0" in name for o in optimizers for g in o.param_groups for name in names_of(model, g))


def test_each_group_keeps_its_peak():
    rates = {"matrix_learning_rate": 0.05, "momentum": 0.8}
    adamw, muon = build_optimizers(tiny_model(), optimizer="muon", **rates, **SETTINGS)
    assert [group["peak_learning_rate"] for group in adamw.param_groups] == [1e-2, 1e-2]
    assert muon.param_groups[0]["peak_learning_rate"] == 0.05
    assert muon.param_groups[0]["momentum"] == 0.8


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5), (5, 10), (12, 4)])
def test_orthogonalize_equals_the_formula(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    expected = torch.stack([newton_schulz_by_hand(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_orthogonalize_rounds_little(dtype, tolerance):
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 64, dtype=torch.float64)).Q for size in (64, 160))
    matrices = (left * torch.logspace(0, -2, 64) @ right.mT)[None]  # (1, 64, 160), singular values from 1 to 0.01
    error = orthogonalize(matrices.to(dtype)).double() - orthogonalize(matrices)
    assert error.norm() <= tolerance * orthogonalize(matrices).norm()


def test_orthogonalize_brings_singular_values_near_1():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(4, 16, 40)))
    assert values.min() > 0.6
    assert values.max() < 1.3


def two_steps(build):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((8, 8), (8, 20), (8, 8), (20, 8))]
    optimizer = build(parameters)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return parameters


@pytest.fixture
def as_in_torch(monkeypatch):
    """torch.optim.Muon does five rounds from the Frobenius norm."""

    def orthogonalize_as_torch(matrices):
        rounds = [newton_schulz_by_hand(matrix, 5, matrix.double().norm()) for matrix in matrices]
        return torch.stack(rounds).to(matrices.dtype)

    monkeypatch.setattr(optimizers, "orthogonalize", orthogonalize_as_torch)


@pytest.mark.usefixtures("as_in_torch")
def test_muon_equals_torch_muon():
    def build_reference(parameters):
        return torch.optim.Muon(parameters, lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")

    reference = two_steps(build_reference)
    ours = two_steps(lambda parameters: Muon(parameters, 0.1, weight_decay=0.2))
    # torch orthogonalises in bfloat16: 8 bits of precision for entries below 1, times lr * size ~ 0.09
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.09 * 2 * 2**-6)


@pytest.mark.usefixtures("as_in_torch")
def test_muon_in_bfloat16_equals_torch_muon_closely():
    reference = two_steps(lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    ours = two_steps(lambda p: Muon(p, 0.1, dtype=torch.bfloat16))
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.09 * 2 * 2**-6)


def test_muon_one_step_equals_the_formula():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 10, dtype=torch.float64))
    start, weight.grad = weight.detach().clone(), torch.randn_like(weight)
    momentum = 0.05 * weight.grad
    nesterov = 0.05 * weight.grad + 0.95 * momentum
    expected = start * (1 - 0.1 * 0.2) - 0.1 * 0.2 * 10**0.5 * newton_schulz_by_hand(nesterov)
    Muon([weight], 0.1, weight_decay=0.2, dtype=torch.float64).step()
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-12)


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match="matrices"):
        Muon([nn.Parameter(torch.zeros(3))], 0.1)


class Saved(dict):
    """What a checkpoint knows of optimizers."""

    def optimizer_shapes(self):
        return {name: tensor.shape for name, tensor in self.items()}

    def load_optimizer(self, tensors):
        for name, tensor in tensors.items():
            tensor.copy_(self[name])


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_state_moves_to_a_new_optimizer_as_named_tensors(optimizer):
    model = tiny_model(tied=True)
    optimizers = build_optimizers(model, optimizer=optimizer, **SETTINGS)
    backward(model)
    for one in optimizers:
        one.step()
    saved = optimizer_tensors(model, optimizers)
    assert "model.norm.weight.exp_avg" in saved
    assert ("model.layers.0.mlp.up_proj.weight.momentum_buffer" in saved) == (optimizer == "muon")
    saved = Saved({name: tensor.clone() for name, tensor in saved.items()})
    fresh = build_optimizers(model, optimizer=optimizer, **SETTINGS)
    load_optimizers(model, fresh, saved)
    restored = optimizer_tensors(model, fresh)
    assert restored.keys() == saved.keys()
    assert all(torch.equal(restored[name], saved[name]) for name in saved)


def test_state_of_another_optimizer_is_refused():
    model = tiny_model()
    optimizers = build_optimizers(model, optimizer="adamw", **SETTINGS)
    with pytest.raises(ValueError, match=r"other\.weight"):
        load_optimizers(model, optimizers, Saved({"other.weight.exp_avg": torch.zeros(2)}))
