"""The loss: its value, ignored labels, and the memory-saving path compared with the plain one."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_scratch_gpt import ScratchGPTConfig
from hf_scratch_gpt.modeling_scratch_gpt import ScratchGPTForCausalLM, causal_lm_loss, next_token_labels
from tests.support.operations import Operations
from tests.support.tiny import (
    BATCH,
    GPT2,
    SEQ,
    SLIDING,
    VARIANTS,
    VOCAB,
    assert_same,
    gradients,
    tiny_config,
    tiny_ids,
    tiny_model,
)


def ragged_labels():
    """Labels with ignored prompts and padding: a different number of targets in each sequence."""
    labels = tiny_ids()
    labels[0, :3] = labels[1, 2:] = labels[2, 1] = -100
    return labels


def test_loss_is_the_mean_of_minus_log_probability_of_the_next_token():
    logits, labels = torch.randn(BATCH, SEQ, VOCAB), ragged_labels()
    probabilities = logits.softmax(-1)
    terms = [
        -math.log(probabilities[row, t, labels[row, t + 1]])
        for row in range(BATCH)
        for t in range(SEQ - 1)
        if labels[row, t + 1] != -100
    ]
    assert causal_lm_loss(logits, labels).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    assert causal_lm_loss(torch.full((BATCH, SEQ, VOCAB), 3.0), tiny_ids()).item() == pytest.approx(math.log(VOCAB))


@pytest.mark.parametrize(
    "config",
    [
        *(tiny_config(**overrides) for overrides in VARIANTS.values()),
        tiny_config(tie_word_embeddings=False, final_logit_softcapping=30.0),
        tiny_config(**GPT2, **SLIDING),
        *(ScratchGPTConfig.from_preset(name) for name in ("tiny", "laptop", "small")),
        tiny_config(**GPT2, vocab_size=65, hidden_size=128, intermediate_size=512),
    ],
)
def test_initial_loss_is_within_two_percent_of_the_logarithm_of_the_vocabulary(config):
    ids = torch.randint(0, config.vocab_size, (16, 64))
    with torch.no_grad():
        loss = ScratchGPTForCausalLM(config).eval()(ids, labels=ids).loss
    assert loss.item() == pytest.approx(math.log(config.vocab_size), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "layers"), [("gpt2", 12), ("gpt2-xl", 6), ("llama3-1b", 2)])
def test_the_initial_loss_of_wide_models_too(preset, layers):
    config = ScratchGPTConfig.from_preset(preset, num_hidden_layers=layers)
    ids = torch.randint(0, config.vocab_size, (2, 64))
    with torch.no_grad():
        loss = ScratchGPTForCausalLM(config).eval()(ids, labels=ids).loss
    assert loss.item() == pytest.approx(math.log(config.vocab_size), rel=0.02)


def test_loss_is_taken_in_float32():
    logits, labels = 5 * torch.randn(BATCH, SEQ, VOCAB), tiny_ids()
    loss = causal_lm_loss(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert loss == causal_lm_loss(logits.bfloat16().float(), labels)


@pytest.mark.parametrize("skip_logits", [False, True])
def test_ignored_labels_give_no_gradient(skip_logits):
    model, ids = tiny_model(), tiny_ids()
    labels = torch.full_like(ids, -100)
    labels[:, 2] = ids[:, 2]  # predicted at position 1 from the tokens 0 and 1
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embeds, labels=labels, skip_logits=skip_logits).loss.backward()
    assert (embeds.grad[:, 2:] == 0).all()
    assert (embeds.grad[:, :2].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("skip_logits", [False, True])
def test_no_label_at_all_costs_nothing(skip_logits):
    model, ids = tiny_model(), tiny_ids()
    loss = model(ids, labels=torch.full_like(ids, -100), skip_logits=skip_logits).loss
    loss.backward()
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(model).values())


@pytest.mark.parametrize("skip_logits", [False, True])
def test_labels_may_be_shifted_already(skip_logits):
    model, ids, labels = tiny_model(), tiny_ids(), ragged_labels()
    expected = model(ids, labels=labels).loss
    shifted = next_token_labels(labels)
    assert shifted.tolist() == [[*row[1:], -100] for row in labels.tolist()]
    actual = model(ids, labels=ids, shift_labels=shifted, skip_logits=skip_logits).loss
    assert_same(actual, expected)


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("make_number", [int, torch.tensor])
def test_num_items_in_batch_replaces_the_number_of_targets(skip_logits, make_number):
    model, ids, labels = tiny_model(), tiny_ids(), ragged_labels()
    targets = int((labels[:, 1:] != -100).sum())
    mean = model(ids, labels=labels).loss
    actual = model(ids, labels=labels, skip_logits=skip_logits, num_items_in_batch=make_number(100)).loss
    assert_same(actual, mean * targets / 100)


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("wrong", [-1, -99, -101, VOCAB])
def test_a_label_that_is_no_token_is_refused(skip_logits, wrong):
    """-1 is the ignored label of other programs; it must not be learned as token 0."""
    model, ids, labels = tiny_model(), tiny_ids(), ragged_labels()
    labels[3, 2] = wrong
    with pytest.raises(ValueError, match=f"labels contains {wrong}, .* between 0 and 96 .* use -100 to exclude"):
        model(ids, labels=labels, skip_logits=skip_logits)


# ----------------------------------------------------------------------------------------------------------------------
# skip_logits: the same loss and gradients without the logits
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_tokens", [1, 9, 35, 1000])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("tie", [True, False])
def test_skip_logits_gives_the_same_loss_and_gradients(tie, cap, chunk_tokens):
    model = tiny_model(tie_word_embeddings=tie, final_logit_softcapping=cap)
    model.loss_chunk_tokens = chunk_tokens
    results = []
    for skip_logits in (False, True):
        model.zero_grad()
        for labels in (ragged_labels(), tiny_ids()):  # gradients of two micro-batches add up
            output = model(tiny_ids(), labels=labels, skip_logits=skip_logits, num_items_in_batch=40)
            (output.loss * 0.5).backward()
        assert (output.logits is None) == skip_logits
        results.append((output.loss.detach(), {name: grad.clone() for name, grad in gradients(model).items()}))
    assert_same(results[1][0], results[0][0], 1e-6)
    for name, expected in results[0][1].items():
        assert expected.abs().max() > 0, name
        assert_same(results[1][1][name], expected, 1e-6)


def test_skip_logits_in_bfloat16_stays_close():
    model, ids = tiny_model().bfloat16(), tiny_ids()
    plain = model(ids, labels=ids).loss
    skipped = model(ids, labels=ids, skip_logits=True).loss
    assert skipped.dtype == torch.float32
    assert_same(skipped, plain, 1e-3)
    skipped.backward()
    assert model.lm_head.weight.grad.dtype == torch.bfloat16


def test_skip_logits_without_gradients():
    model, ids = tiny_model(), tiny_ids()
    with torch.no_grad():
        assert_same(model(ids, labels=ids, skip_logits=True).loss, model(ids, labels=ids).loss)


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor returned by any operation."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *(tensor.numel() for tensor in tensors)])
        return result


@pytest.mark.parametrize("skip_logits", [False, True])
def test_skip_logits_never_holds_all_logits_at_once(skip_logits):
    model, ids = tiny_model(final_logit_softcapping=2.0), tiny_ids(16, 40)
    model.loss_chunk_tokens = 50
    with LargestTensor() as largest:
        model(ids, labels=ids, skip_logits=skip_logits).loss.backward()
    assert (largest.numel >= 16 * 40 * VOCAB) == (not skip_logits)
    assert largest.numel >= 50 * VOCAB  # the measurement saw the chunks


def test_skip_logits_needs_labels_and_all_positions():
    model, ids = tiny_model(), tiny_ids()
    for arguments in ({}, {"labels": ids, "logits_to_keep": 1}, {"labels": ids, "logits_to_keep": torch.tensor([0])}):
        with pytest.raises(ValueError, match=r"skip_logits=True requires labels .* logits_to_keep"):
            model(ids, skip_logits=True, **arguments)


def test_skip_logits_refuses_a_head_that_something_else_changed():
    model, ids = tiny_model(), tiny_ids()
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"requires lm_head .* is a Linear changed by an adapter"):
        model(ids, labels=ids, skip_logits=True)
    handle.remove()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match=r"requires lm_head .* is a Sequential"):
        model(ids, labels=ids, skip_logits=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked by PEFT
def test_skip_logits_refuses_a_head_with_lora():
    peft = pytest.importorskip("peft")
    model = tiny_model(tie_word_embeddings=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ValueError, match=r"skip_logits=True requires lm_head to be a plain nn\.Linear"):
        adapted(tiny_ids(), labels=tiny_ids(), skip_logits=True)


@pytest.mark.parametrize("autocast", [False, True])
def test_skip_logits_with_a_frozen_head_or_body(autocast):
    """Gradients that nobody needs are not computed, and the others do not change."""
    model, ids = tiny_model(tie_word_embeddings=False), tiny_ids()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(ids, labels=ids, skip_logits=True).loss.backward()
        expected = {name: grad.clone() for name, grad in gradients(model).items()}
        for frozen in (model.lm_head, model.model):
            model.zero_grad()
            model.requires_grad_(True)
            frozen.requires_grad_(False)
            with Operations() as operations:
                model(ids, labels=ids, skip_logits=True).loss.backward()
            for name, parameter in model.named_parameters():
                assert (parameter.grad is None) == (not parameter.requires_grad)
                if parameter.grad is not None:
                    assert torch.equal(parameter.grad, expected[name])
    head_products = 2  # logits, gradient of the weight; the body without gradients multiplies only forwards
    assert operations.products == head_products + 7 * model.config.num_hidden_layers


def test_skip_logits_under_the_transforms_of_torch_func():
    model, ids = tiny_model(), tiny_ids()
    parameters = dict(model.named_parameters())

    def loss(parameters, skip_logits):
        arguments = {"input_ids": ids, "labels": ids, "skip_logits": skip_logits}
        return torch.func.functional_call(model, parameters, (), arguments).loss

    expected, found = (torch.func.grad(loss)(parameters, skip_logits) for skip_logits in (False, True))
    for name, gradient in expected.items():
        assert_same(found[name], gradient, 1e-6)


def test_skip_logits_refuses_second_derivatives():
    """Its gradients are constants for autograd, so their derivatives would be wrong."""
    model, ids = tiny_model(), tiny_ids()
    loss = model(ids, labels=ids, skip_logits=True).loss
    with pytest.raises(RuntimeError, match="skip_logits=True has no second derivatives; pass skip_logits=False"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
