"""The network against oracles: other implementations, formulas and numbers calculated by hand."""

import itertools
import math

import pytest
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hf_scratch_gpt import modeling_scratch_gpt as modeling
from hf_scratch_gpt.modeling_scratch_gpt import ScratchGPTAttention, ScratchGPTModel
from tests.support.tiny import (
    BATCH,
    GPT2,
    SEQ,
    VARIANTS,
    assert_same,
    gradients,
    shake,
    tiny_config,
    tiny_ids,
    tiny_model,
)

# ----------------------------------------------------------------------------------------------------------------------
# Twins: the same weights in a transformers model of the same architecture
# ----------------------------------------------------------------------------------------------------------------------


def assert_twins(ours, twin, rename=lambda state: state):
    """Same weights give the same logits, loss and gradients."""
    twin.load_state_dict(rename(ours.state_dict()))
    ids = tiny_ids()
    results = [model.eval()(ids, labels=ids) for model in (ours, twin)]
    assert_same(results[0].logits, results[1].logits)
    assert_same(results[0].loss, results[1].loss)
    for result in results:
        result.loss.backward()
    expected = gradients(twin)
    actual = rename(gradients(ours))
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert_same(actual[name], gradient)


@pytest.mark.parametrize("tie", [True, False])
def test_llama_twin(tie):
    ours = tiny_model(qk_norm=False, attention_bias=True, mlp_bias=True, tie_word_embeddings=tie)
    config = LlamaConfig(**{k: v for k, v in ours.config.to_dict().items() if k not in ("model_type", "auto_map")})
    assert_twins(ours, LlamaForCausalLM(config))


def test_qwen3_twin():
    ours = tiny_model(tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    config = Qwen3Config(**{k: v for k, v in ours.config.to_dict().items() if k not in ("model_type", "auto_map")})
    assert_twins(ours, Qwen3ForCausalLM(config))


def as_gpt2(state):
    """Rename our tensors to GPT-2's, which stores projections transposed and q, k, v in one tensor."""
    renamed = {}
    for name in [name for name in state if ".k_proj." not in name and ".v_proj." not in name]:
        tensor = state[name]
        if ".q_proj." in name:
            tensor = torch.cat([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        if "_proj.weight" in name:
            tensor = tensor.T
        for old, new in (
            ("model.layers", "transformer.h"), ("embed_tokens", "wte"), ("embed_positions", "wpe"),
            ("model.", "transformer."),
            ("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2"), ("transformer.norm", "transformer.ln_f"),
            ("self_attn.q_proj", "attn.c_attn"), ("self_attn.o_proj", "attn.c_proj"),
            ("up_proj", "c_fc"), ("down_proj", "c_proj"),
        ):  # fmt: skip
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def test_gpt2_twin():
    ours = tiny_model(**GPT2, num_key_value_heads=6, intermediate_size=192, rms_norm_eps=1e-5)
    config = GPT2Config(
        vocab_size=97, n_positions=64, n_embd=48, n_layer=4, n_head=6, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    assert_twins(ours, GPT2LMHeadModel(config), as_gpt2)


# ----------------------------------------------------------------------------------------------------------------------
# Parts against formulas
# ----------------------------------------------------------------------------------------------------------------------


def test_norms_equal_those_of_torch():
    x = 1e-3 * torch.randn(BATCH, SEQ, 48)  # so small that epsilon matters
    rms = shake(modeling.ScratchGPTRMSNorm(48, 1e-6))
    assert_same(rms(x), F.rms_norm(x, (48,), rms.weight, 1e-6))
    layer = shake(modeling.ScratchGPTLayerNorm(48, 1e-5))
    assert_same(layer(x + 1), F.layer_norm(x + 1, (48,), layer.weight, layer.bias, 1e-5), 1e-4)
    assert rms(x.bfloat16()).dtype == torch.float32  # promoted by the weight, as in Llama
    assert rms.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_activations():
    x = torch.linspace(-3, 3, 13)
    assert_same(modeling.gelu(x), 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    assert modeling.relu2(torch.tensor([-2.0, 0.5, 3.0])).tolist() == [0.0, 0.25, 9.0]


def test_sinusoidal_positions_are_the_formula_of_the_paper():
    actual = modeling.sinusoidal_positions(torch.tensor([[0, 3, 11]]), 6)[0]
    for row, position in enumerate([0, 3, 11]):
        angles = [position / 10000 ** (2 * i / 6) for i in range(3)]
        assert_same(actual[row], torch.tensor([*map(math.sin, angles), *map(math.cos, angles)]))


def test_sinusoidal_positions_are_added_to_scaled_embeddings():
    model, ids = tiny_model(ScratchGPTModel, position_embedding_type="sinusoidal"), tiny_ids()
    positions = modeling.sinusoidal_positions(torch.arange(SEQ)[None], 48)
    expected = math.sqrt(48) * model.embed_tokens(ids) + positions
    assert_same(model(ids, output_hidden_states=True).hidden_states[0], expected)


ROPE_OPTIONS = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("rope_type", sorted({"default", *ROPE_INIT_FUNCTIONS}))
def test_rope_types_equal_those_of_transformers(rope_type):
    parameters = {"rope_type": rope_type, "rope_theta": 100.0, **ROPE_OPTIONS.get(rope_type, {})}
    config = tiny_config(rope_parameters=parameters)
    llama = LlamaConfig(hidden_size=48, num_attention_heads=6, max_position_embeddings=64, rope_parameters=parameters)
    ours, theirs = modeling.ScratchGPTRotaryEmbedding(config), LlamaRotaryEmbedding(llama)
    for length in (9, 80, 9):  # beyond max_position_embeddings (64) and back
        positions = torch.arange(length)[None]
        cosine, sine = ours(torch.zeros(1), positions)
        expected_cosine, expected_sine = theirs(torch.zeros(1), positions)
        assert_same(cosine, expected_cosine[..., : cosine.shape[-1]])  # transformers repeats each angle
        assert_same(sine, expected_sine[..., : sine.shape[-1]])


def test_rotary_scores_depend_on_distance_only():
    embedding = modeling.ScratchGPTRotaryEmbedding(tiny_config())
    query, key = torch.randn(2, 1, 1, 6, 8)

    def score(query_position, key_position):
        rotated = [
            modeling.rotate(x, *embedding(x, torch.tensor([[position]])))
            for x, position in ((query, query_position), (key, key_position))
        ]
        return (rotated[0] * rotated[1]).sum(-1)

    assert_same(score(9, 4), score(25, 20))
    assert (score(9, 4) - score(9, 5)).abs().max() > 1e-2


def test_partial_rotation_leaves_the_rest_alone():
    parameters = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
    embedding = modeling.ScratchGPTRotaryEmbedding(tiny_config(rope_parameters=parameters))
    x = torch.randn(BATCH, SEQ, 6, 8)
    rotated = modeling.rotate(x, *embedding(x, torch.arange(SEQ)[None]))
    assert torch.equal(rotated[..., 4:], x[..., 4:])
    assert (rotated[:, 1:, :, :4] - x[:, 1:, :, :4]).abs().max() > 1e-2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_equals_an_einsum_oracle(implementation):
    config = tiny_config(qk_norm=False, attention_bias=True)
    config._attn_implementation = implementation
    attention = shake(ScratchGPTAttention(config, layer_idx=0))
    x = torch.randn(BATCH, SEQ, 48)
    embedding = modeling.ScratchGPTRotaryEmbedding(config)
    actual, _ = attention(x, embedding(x, torch.arange(SEQ)[None]))
    assert_same(actual, attention_oracle(attention, x))


def attention_oracle(attention, x):
    """Rotation by complex numbers; a loop over heads and queries; softmax over the keys up to each query."""
    query, key, value = (
        F.linear(x, projection.weight, projection.bias).unflatten(-1, (-1, 8))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    frequencies = torch.tensor([10000 ** (-2 * i / 8) for i in range(4)])
    turns = torch.exp(1j * torch.arange(SEQ)[:, None, None] * frequencies)
    query, key = (turns * torch.complex(part[..., :4], part[..., 4:]) for part in (query, key))
    outputs = []
    for head, t in itertools.product(range(6), range(SEQ)):
        scores = torch.einsum("bd,bsd->bs", query[:, t, head], key[:, : t + 1, head // 2].conj()).real / math.sqrt(8)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        outputs.append(torch.einsum("bs,bsd->bd", weights, value[:, : t + 1, head // 2]))
    output = torch.stack(outputs).unflatten(0, (6, SEQ))
    output = torch.einsum("htbd->bthd", output).flatten(2)
    return F.linear(output, attention.o_proj.weight, attention.o_proj.bias)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_computed_by_hand(implementation):
    """Two tokens (1, 0) and (0, 1), one head of width 2.

    queries = c x with c = sqrt(2) ln 3, keys = x, values = (4, 0) and (0, 8), output = weighted values.
    scores = q k / sqrt(2): the second query gives c * 0 / sqrt(2) = 0 and c * 1 / sqrt(2) = ln 3;
    softmax (0, ln 3) = (1, 3) / (1 + 3) = (1/4, 3/4), so its output is 1/4 (4, 0) + 3/4 (0, 8) = (1, 6).
    The first query sees only itself: (4, 0).
    """
    config = tiny_config(
        hidden_size=2, head_dim=2, num_attention_heads=1, num_key_value_heads=1, qk_norm=False,
        position_embedding_type="learned",
    )  # fmt: skip
    config._attn_implementation = implementation
    attention = ScratchGPTAttention(config, layer_idx=0)
    with torch.no_grad():
        attention.q_proj.weight.copy_(math.sqrt(2) * math.log(3) * torch.eye(2))
        attention.k_proj.weight.copy_(torch.eye(2))
        attention.v_proj.weight.copy_(torch.diag(torch.tensor([4.0, 8.0])))
        attention.o_proj.weight.copy_(torch.eye(2))
        output, _ = attention(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    assert_same(output, torch.tensor([[[4.0, 0.0], [1.0, 6.0]]]), 1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Causality, tested with changed tokens and with gradients
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_changed_token_leaves_all_earlier_logits_bit_identical(variant, implementation):
    model = tiny_model(**VARIANTS[variant], attn_implementation=implementation)
    ids = tiny_ids()
    with torch.no_grad():
        before = model(ids).logits
        for t in range(SEQ):
            changed = ids.clone()
            changed[:, t] = (changed[:, t] + 1) % 97
            after = model(changed).logits
            assert torch.equal(after[:, :t], before[:, :t])
            assert (after[:, t:] - before[:, t:]).abs().amax(dim=(0, 2)).min() > 1e-4  # all later ones changed


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_gradient_of_a_logit_towards_later_inputs_is_exactly_zero(variant, implementation):
    model = tiny_model(**VARIANTS[variant], attn_implementation=implementation)
    for t in range(SEQ):
        embeds = torch.randn(BATCH, SEQ, 48, requires_grad=True)
        model(inputs_embeds=embeds).logits[:, t].square().sum().backward()
        assert (embeds.grad[:, t + 1 :] == 0).all()
        assert (embeds.grad[:, : t + 1].abs().amax(dim=2) > 0).all()


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # FSDP1 is deprecated, and warns of one process and of the CPU
@pytest.mark.parametrize(
    "rope", [{}, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}]
)
def test_fsdp1_with_buffers_in_bfloat16_leaves_the_angles_alone(rope, one_process):
    """Its mixed precision casts buffers in place, without `nn.Module.to`."""
    if rope:
        rope |= {"rope_theta": 10000.0, "original_max_position_embeddings": 8}
    model = tiny_model(**({"rope_parameters": rope} if rope else {}))
    ids = tiny_ids()
    expected = model(ids).logits
    mixed = MixedPrecision(buffer_dtype=torch.bfloat16)
    sharded = FullyShardedDataParallel(model, mixed_precision=mixed, device_id=torch.device("cpu"))
    assert torch.equal(sharded(ids).logits, expected)
    assert model.model.rotary_emb.inv_freq.dtype == torch.bfloat16  # else, this tests nothing
