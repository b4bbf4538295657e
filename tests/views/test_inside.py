"""What is shown is what the model computes, for any architecture."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from tests.support.tiny import VARIANTS, VOCAB, shake, tiny_ids, tiny_model
from train.views.inside import eager_attention, look_inside
from train.views.lens import residual_norms

SHAPE = {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}
LLAMA = {"num_key_value_heads": 3, "intermediate_size": 80, "max_position_embeddings": 64}
OTHERS = {
    "gpt2 of transformers": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=48, n_layer=3, n_head=6)
    ),
    "llama of transformers": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **LLAMA)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SHAPE, ffn_dim=80, max_position_embeddings=64, word_embed_proj_dim=48)),
}
MODELS = {name: lambda changes=changes: tiny_model(**changes) for name, changes in VARIANTS.items()} | OTHERS
IDS = tiny_ids(batch=1, seq=11)[0].tolist()


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    torch.manual_seed(0)
    return shake(MODELS[request.param]()).eval()


@torch.no_grad()
def test_probabilities_and_residuals_are_exactly_those_of_the_model(model):
    inside = look_inside(model, IDS)
    output = model(torch.tensor([IDS]), output_hidden_states=True)
    assert torch.equal(inside.logits, output.logits[0])
    assert torch.equal(inside.probabilities, model(torch.tensor([IDS])).logits[0].softmax(dim=-1))
    assert torch.equal(inside.residuals[:-1], torch.stack(output.hidden_states[:-1])[:, 0])
    norms = residual_norms(inside.residuals)
    assert norms.shape == (model.config.num_hidden_layers + 1, len(IDS))
    assert norms[1, 2] == inside.residuals[1, 2].norm()


@torch.no_grad()
def test_attention_maps_are_exactly_those_of_eager_attention(model):
    before = model.config._attn_implementation
    maps = look_inside(model, IDS).attentions
    assert model.config._attn_implementation == before
    assert maps.shape == (model.config.num_hidden_layers, 6, len(IDS), len(IDS))
    with eager_attention(model):
        expected = model(torch.tensor([IDS]), output_attentions=True).attentions
    assert torch.equal(maps, torch.cat(expected))
    assert torch.equal(maps, maps.tril())
    assert torch.allclose(maps.sum(dim=-1), torch.ones(()))


def test_the_last_layer_of_the_lens_is_the_prediction(model):
    inside = look_inside(model, IDS)
    assert torch.equal(inside.lens.logits(inside.residuals[-1]), inside.logits)
    earlier = inside.lens.logits(inside.residuals[:-1])
    assert earlier.shape == (model.config.num_hidden_layers, len(IDS), VOCAB)
    assert not torch.allclose(earlier[-1], inside.logits, atol=1e-2)


def test_the_lens_of_a_layer_is_what_a_shorter_model_says(model):
    """A model without its last layers, which is what the lens claims to be."""
    inside = look_inside(model, IDS)
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    kept = list(layers)
    del layers[2:]
    count, model.config.num_hidden_layers = model.config.num_hidden_layers, 2
    try:
        with torch.no_grad():
            shorter = model(torch.tensor([IDS]), use_cache=False).logits[0]
    finally:
        layers.extend(kept[2:])
        model.config.num_hidden_layers = count
    torch.testing.assert_close(inside.lens.logits(inside.residuals[2]), shorter, atol=1e-5, rtol=1e-5)


def test_a_head_that_the_lens_does_not_know_gives_no_lens():
    """Cohere scales its logits."""
    config = CohereConfig(**SHAPE, **LLAMA, logit_scale=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    inside = look_inside(shake(CohereForCausalLM(config)).eval(), IDS)
    assert inside.lens is None
    assert inside.attentions is not None


def test_a_model_without_attention_has_no_maps():
    config = MambaConfig(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, state_size=4)
    inside = look_inside(shake(MambaForCausalLM(config)).eval(), IDS)
    assert inside.attentions is None
    assert torch.equal(inside.lens.logits(inside.residuals[-1]), inside.logits)


def test_the_attention_is_restored_after_an_error():
    model = tiny_model()
    with pytest.raises(RuntimeError, match="stop"), eager_attention(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"


def test_no_tokens_and_damaged_weights_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="no token"):
        look_inside(model, [])
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ValueError, match="damaged"):
        look_inside(model, IDS)
