"""Models of transformers with random weights, and the same weights in ours: same numbers, in both directions."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

import hf_scratch_gpt
from hf_scratch_gpt.conversion import FAMILIES, export_model, import_model
from hf_scratch_gpt.conversion.plan import pairs
from tests.support.tiny import assert_same, shake

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GPT2_SIZES = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 128}
GPT2_SIZES |= {"bos_token_id": 1, "eos_token_id": None}
# rotary positions that change beyond the first 32
LONGER = {"max_position_embeddings": 128}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}

SHAPES = {
    "gpt2": (GPT2Config, GPT2_SIZES, {
        "plain": {},
        "inner": {"n_inner": 100},
        "one-head": {"n_head": 1},
        "one-layer": {"n_layer": 1},
        "untied": {"tie_word_embeddings": False},
        "tanh": {"activation_function": "gelu_pytorch_tanh"},
        "epsilon": {"layer_norm_epsilon": 1e-3},
        "dropout": {"attn_pdrop": 0.3, "resid_pdrop": 0.2, "embd_pdrop": 0.15},
        "wide": {"n_embd": 96, "n_head": 4},
    }),
    "llama": (LlamaConfig, SIZES, {
        "grouped": {},
        "one-key": {"num_key_value_heads": 1},
        "all-keys": {"num_key_value_heads": 6},
        "head-dim": {"head_dim": 10},
        "tied": {"tie_word_embeddings": True},
        "attention-bias": {"attention_bias": True},
        "mlp-bias": {"mlp_bias": True, "attention_bias": True},
        "theta": {"rope_theta": 500000.0, "rms_norm_eps": 1e-5},
        "linear": {**LONGER, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        "yarn": {**LONGER, "rope_scaling": YARN},
        "llama3": {**LONGER, "rope_scaling": LLAMA3},
    }),
    "qwen2": (Qwen2Config, SIZES, {
        "grouped": {},
        "one-key": {"num_key_value_heads": 1},
        "all-keys": {"num_key_value_heads": 6},
        "tied": {"tie_word_embeddings": True},
        "theta": {"rope_theta": 1e6, "rms_norm_eps": 1e-5},
        "yarn": {**LONGER, "rope_scaling": YARN},
        "sliding": SLIDING,
        "one-layer": {"num_hidden_layers": 1},
    }),
    "qwen3": (Qwen3Config, SIZES, {
        "grouped": {"head_dim": 8},
        "head-dim": {"head_dim": 16},
        "one-key": {"head_dim": 8, "num_key_value_heads": 1},
        "tied": {"head_dim": 8, "tie_word_embeddings": True},
        "attention-bias": {"head_dim": 8, "attention_bias": True},
        "uneven": {"head_dim": 12, "num_attention_heads": 5, "num_key_value_heads": 5},
        "theta": {"head_dim": 8, "rope_theta": 1e6},
        "yarn": {"head_dim": 8, **LONGER, "rope_scaling": YARN},
        "dynamic": {"head_dim": 8, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        "sliding": {"head_dim": 8, **SLIDING},
    }),
}  # fmt: skip
ALL = [(family, shape) for family, (*_, shapes) in SHAPES.items() for shape in shapes]
HEADS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "Model": AutoModel,
}


def twin(family, shape, auto_class=AutoModelForCausalLM, **more):
    """A model of transformers with random weights."""
    config_class, sizes, shapes = SHAPES[family]
    values = {**sizes, **shapes[shape], **more}
    if "rope_scaling" in values:
        values["rope_scaling"] = {"rope_theta": 10000.0, **values["rope_scaling"]}
    torch.manual_seed(0)
    return shake(auto_class.from_config(config_class(**values))).eval()


def tiny_batch(length, seed=0):
    return torch.randint(2, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))


def imported(model, tmp_path, auto_class=AutoModelForCausalLM):
    model.save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    return auto_class.from_pretrained(tmp_path / "ours").eval()


def assert_same_results(ours, theirs, length):
    """Logits, loss and gradients."""
    ids = tiny_batch(length)
    outputs = []
    for model in (ours, theirs):
        model.zero_grad()
        outputs.append(model(ids, labels=ids))
        outputs[-1].loss.backward()
    assert_same(outputs[0].logits, outputs[1].logits)
    assert_same(outputs[0].loss, outputs[1].loss)
    assert_same_gradients(ours, theirs)


def assert_same_gradients(ours, theirs):
    family = FAMILIES[theirs.config.model_type]
    own, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    compared = set()
    for pair in pairs(
        family, type(ours).__name__, ours.config.num_hidden_layers, family.prefix_of(type(ours).__name__)
    ):
        parts = [own[name].grad for name in pair.ours if name in own]
        if parts:
            gradient = torch.cat(parts)
            assert_same(gradient.t() if pair.transposed else gradient, other[pair.theirs].grad)
            compared.add(pair.theirs)
    assert compared == set(other)


def assert_same_greedy_tokens(ours, theirs, count=64):
    prompt = tiny_batch(9, seed=1)
    arguments = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    tokens = [model.generate(prompt, **arguments) for model in (ours, theirs)]
    assert tokens[0].shape == (2, 9 + count)
    assert torch.equal(*tokens)


@pytest.mark.parametrize(("family", "shape"), ALL)
def test_same_results_after_import_and_same_bits_after_export(family, shape, tmp_path):
    theirs = twin(family, shape)
    ours = imported(theirs, tmp_path)
    assert type(ours) is hf_scratch_gpt.ScratchGPTForCausalLM
    assert_same_results(ours, theirs, length=80)  # longer than the 32 positions of scaled rotary positions
    assert_same_greedy_tokens(ours, theirs)
    if family == "qwen2":  # is imported only
        return
    export_model(tmp_path / "ours", tmp_path / "back", family)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert type(back) is type(theirs)
    state = theirs.state_dict()
    assert state.keys() == back.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())
    assert_same_outputs(back, theirs)
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "back"))
    assert_same_config(before, after)


def assert_same_config(before, after):
    """The same entries, but for defaults that are written out and a number that other entries replace."""
    replaced = {"n_inner", "max_window_layers", "activation_function", "_name_or_path"}
    differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {name for name in differing if before.get(name) is not None} <= replaced


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", SHAPES)
def test_models_with_other_heads(family, head, tmp_path):
    more = {"num_labels": 3, "pad_token_id": 0} if "Classification" in head else {}
    theirs = twin(family, next(iter(SHAPES[family][2])), HEADS[head], **more)
    ours = imported(theirs, tmp_path, HEADS[head])
    assert type(ours).__name__ == f"ScratchGPT{head}"
    assert_same_outputs(ours, theirs)
    if family != "qwen2":
        written = export_model(tmp_path / "ours", tmp_path / "back", family)
        back = HEADS[head].from_pretrained(tmp_path / "back").eval()
        assert type(back).__name__ == written == type(theirs).__name__
        assert_same_outputs(back, theirs)


def assert_same_outputs(model, other):
    with torch.no_grad():
        outputs = [one(tiny_batch(20)).to_tuple() for one in (model, other)]
    for actual, expected in zip(*outputs, strict=True):
        if isinstance(actual, torch.Tensor):
            assert_same(actual, expected)


@pytest.mark.parametrize("target", ["gpt2", "llama", "qwen3"])
def test_own_models_give_the_same_results_after_export(target, tmp_path):
    styles = {
        "gpt2": {"position_embedding_type": "learned", "norm_type": "layernorm", "mlp_type": "gelu", "qk_norm": False},
        "llama": {"qk_norm": False},
        "qwen3": {},
    }
    config = hf_scratch_gpt.ScratchGPTConfig(
        vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, max_position_embeddings=128,
        eos_token_id=None, **styles[target],
    )  # fmt: skip
    torch.manual_seed(0)
    ours = shake(hf_scratch_gpt.ScratchGPTForCausalLM(config)).eval()
    ours.save_pretrained(tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "theirs", target)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    assert theirs.config.model_type == target
    with torch.no_grad():
        assert_same(theirs(tiny_batch(80)).logits, ours(tiny_batch(80)).logits)
    assert_same_greedy_tokens(ours, theirs)
