"""GPT-2, as transformers and as OpenAI name its tensors (https://github.com/openai/gpt-2).

Both store the matrices of a layer as (input, output), and queries, keys and values in one.
"""

from typing import Any

from ..configuration_scratch_gpt import ScratchGPTConfig
from .families import (
    BASE,
    LANGUAGE_MODEL,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFIER,
    TOKEN_CLASSIFIER,
    Family,
    Rule,
    same_heads,
    shared_values,
)

# our tensor(s) | transformers' name | OpenAI's name | stored transposed?
NAMES = (
    ("embed_tokens.weight", "wte.weight", "model/wte", False),
    ("embed_positions.weight", "wpe.weight", "model/wpe", False),
    ("layers.{i}.input_layernorm.weight", "h.{i}.ln_1.weight", "model/h{i}/ln_1/g", False),
    ("layers.{i}.input_layernorm.bias", "h.{i}.ln_1.bias", "model/h{i}/ln_1/b", False),
    ("layers.{i}.self_attn.{q,k,v}_proj.weight", "h.{i}.attn.c_attn.weight", "model/h{i}/attn/c_attn/w", True),
    ("layers.{i}.self_attn.{q,k,v}_proj.bias", "h.{i}.attn.c_attn.bias", "model/h{i}/attn/c_attn/b", False),
    ("layers.{i}.self_attn.o_proj.weight", "h.{i}.attn.c_proj.weight", "model/h{i}/attn/c_proj/w", True),
    ("layers.{i}.self_attn.o_proj.bias", "h.{i}.attn.c_proj.bias", "model/h{i}/attn/c_proj/b", False),
    ("layers.{i}.post_attention_layernorm.weight", "h.{i}.ln_2.weight", "model/h{i}/ln_2/g", False),
    ("layers.{i}.post_attention_layernorm.bias", "h.{i}.ln_2.bias", "model/h{i}/ln_2/b", False),
    ("layers.{i}.mlp.up_proj.weight", "h.{i}.mlp.c_fc.weight", "model/h{i}/mlp/c_fc/w", True),
    ("layers.{i}.mlp.up_proj.bias", "h.{i}.mlp.c_fc.bias", "model/h{i}/mlp/c_fc/b", False),
    ("layers.{i}.mlp.down_proj.weight", "h.{i}.mlp.c_proj.weight", "model/h{i}/mlp/c_proj/w", True),
    ("layers.{i}.mlp.down_proj.bias", "h.{i}.mlp.c_proj.bias", "model/h{i}/mlp/c_proj/b", False),
    ("norm.weight", "ln_f.weight", "model/ln_f/g", False),
    ("norm.bias", "ln_f.bias", "model/ln_f/b", False),
)


def _ours(name: str) -> tuple[str, ...]:
    return tuple(name.replace("{q,k,v}", part) for part in ("q", "k", "v")) if "{q,k,v}" in name else (name,)


RULES = tuple(Rule(theirs, _ours(ours), transposed) for ours, theirs, _, transposed in NAMES)
OPENAI_RULES = tuple(Rule(theirs, _ours(ours), transposed) for ours, _, theirs, transposed in NAMES)

# the only head whose tensors have other names than ours
HEAD_RULES = same_heads() | {
    TOKEN_CLASSIFIER: (Rule("classifier.weight", ("score.weight",)), Rule("classifier.bias", ("score.bias",)))
}


def import_config(config: Any) -> dict[str, Any]:
    """The values of our config for a `GPT2Config`."""
    return shared_values(config) | {
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner or 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "max_position_embeddings": config.n_positions,
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "rms_norm_eps": config.layer_norm_epsilon,
        "mlp_type": "gelu",
        "qk_norm": False,
        "attention_bias": True,
        "mlp_bias": True,
        "attention_dropout": config.attn_pdrop,
        "residual_dropout": config.resid_pdrop,
        "embedding_dropout": config.embd_pdrop,
    }


def export_config(config: ScratchGPTConfig) -> dict[str, Any]:
    """The values of a `GPT2Config` for ours."""
    return shared_values(config) | {
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "layer_norm_epsilon": config.rms_norm_eps,
        "activation_function": "gelu_new",
        "attn_pdrop": config.attention_dropout,
        "resid_pdrop": config.residual_dropout,
        "embd_pdrop": config.embedding_dropout,
    }


def export_limits(config: ScratchGPTConfig) -> list[str]:
    """GPT-2 has as many key/value heads as query heads, and they are as wide as the residual stream."""
    limits = []
    if config.num_key_value_heads != config.num_attention_heads:
        limits.append(
            f"num_key_value_heads is {config.num_key_value_heads}, but must equal num_attention_heads "
            f"({config.num_attention_heads})"
        )
    if config.num_attention_heads * (config.head_dim or 0) != config.hidden_size:
        limits.append(
            f"head_dim is {config.head_dim}, but must be hidden_size / num_attention_heads "
            f"({config.hidden_size} / {config.num_attention_heads})"
        )
    return limits


GPT2 = Family(
    model_type="gpt2",
    architectures={
        BASE: "GPT2Model",
        LANGUAGE_MODEL: "GPT2LMHeadModel",
        SEQUENCE_CLASSIFIER: "GPT2ForSequenceClassification",
        TOKEN_CLASSIFIER: "GPT2ForTokenClassification",
        QUESTION_ANSWERING: "GPT2ForQuestionAnswering",
    },
    rules=RULES,
    head_rules=HEAD_RULES,
    prefix="transformer.",
    ignored=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",
    zero_biases=True,
    import_requires={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    import_config=import_config,
    export_requires={
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "mlp_type": "gelu",
        "qk_norm": False,
        "sliding_window": None,
        "final_logit_softcapping": None,
    },
    export_config=export_config,
    export_limits=export_limits,
)
