"""A model in which no two dimensions are equal, so that a wrong transpose or view cannot pass unnoticed."""

import torch

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM

BATCH, SEQ, VOCAB = 7, 5, 97
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GPT2 = {
    "position_embedding_type": "learned",
    "norm_type": "layernorm",
    "mlp_type": "gelu",
    "qk_norm": False,
    "attention_bias": True,
    "mlp_bias": True,
}
SLIDING = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"] * 2}
VARIANTS = {
    "default": {},
    "gpt2": GPT2,
    "sinusoidal": {"position_embedding_type": "sinusoidal", "mlp_type": "relu2", "tie_word_embeddings": False},
    "sliding": SLIDING,
    "softcapping": {"final_logit_softcapping": 2.0},
}
POSITIONS = ["rope", "learned", "sinusoidal"]


def tiny_config(**overrides):
    return ScratchGPTConfig.from_values({**TINY, **overrides})


def shake(model):
    """Move every parameter away from its initial value: zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def tiny_model(model_class=ScratchGPTForCausalLM, **overrides):
    """A model in eval mode whose logits lie within about +-3 of each other."""
    attention = overrides.pop("attn_implementation", "sdpa")
    torch.manual_seed(0)
    model = model_class._from_config(tiny_config(**overrides), attn_implementation=attention)
    return shake(model).eval()


def tiny_ids(batch=BATCH, seq=SEQ, seed=0):
    """Random tokens without the special ones."""
    return torch.randint(2, VOCAB, (batch, seq), generator=torch.Generator().manual_seed(seed))


def assert_same(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}
