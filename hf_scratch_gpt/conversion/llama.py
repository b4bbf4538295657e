"""Llama, Qwen2 and Qwen3. Their tensors have the names of ours, which were taken from Llama.

Qwen2 has biases in the projections of queries, keys and values only: the bias of our output projection is zero.
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
    shared_values,
)

NAMES = (
    "embed_tokens.weight",
    "layers.{i}.input_layernorm.weight",
    "layers.{i}.self_attn.q_proj.weight",
    "layers.{i}.self_attn.q_proj.bias",
    "layers.{i}.self_attn.k_proj.weight",
    "layers.{i}.self_attn.k_proj.bias",
    "layers.{i}.self_attn.v_proj.weight",
    "layers.{i}.self_attn.v_proj.bias",
    "layers.{i}.self_attn.o_proj.weight",
    "layers.{i}.self_attn.o_proj.bias",
    "layers.{i}.self_attn.q_norm.weight",
    "layers.{i}.self_attn.k_norm.weight",
    "layers.{i}.post_attention_layernorm.weight",
    "layers.{i}.mlp.gate_proj.weight",
    "layers.{i}.mlp.gate_proj.bias",
    "layers.{i}.mlp.up_proj.weight",
    "layers.{i}.mlp.up_proj.bias",
    "layers.{i}.mlp.down_proj.weight",
    "layers.{i}.mlp.down_proj.bias",
    "norm.weight",
)
RULES = tuple(Rule(name, (name,)) for name in NAMES)
# Qwen2 has no such tensor. The rules of Llama would ask for it, because our config has one switch for all four biases.
QWEN2_RULES = tuple(rule for rule in RULES if rule.theirs != "layers.{i}.self_attn.o_proj.bias")

SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "max_position_embeddings", "rms_norm_eps", "attention_dropout"),
)
OLD_BUFFERS = r".*\.rotary_emb\.inv_freq"  # saved by early versions of transformers

# Fields of ours, and the only value that these families have.
REQUIRED = {
    "position_embedding_type": "rope",
    "norm_type": "rmsnorm",
    "mlp_type": "swiglu",
    "final_logit_softcapping": None,
}


def architectures(name: str) -> dict[str, str]:
    """Our classes and those of a family."""
    return {
        BASE: f"{name}Model",
        LANGUAGE_MODEL: f"{name}ForCausalLM",
        SEQUENCE_CLASSIFIER: f"{name}ForSequenceClassification",
        TOKEN_CLASSIFIER: f"{name}ForTokenClassification",
        QUESTION_ANSWERING: f"{name}ForQuestionAnswering",
    }


def import_sizes(config: Any) -> dict[str, Any]:
    """The values that the configs of all three families have."""
    values = shared_values(config) | {name: getattr(config, name, None) for name in SIZES}
    pad = values["pad_token_id"]
    if pad is not None and not 0 <= pad < config.vocab_size:
        values["pad_token_id"] = None  # some early models have -1
    rope = dict(config.rope_parameters)
    rope.pop("partial_rotary_factor", None)  # these families rotate whole heads
    return values | {"rope_parameters": rope}


def import_llama(config: Any) -> dict[str, Any]:
    """The values of our config for a `LlamaConfig`."""
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    return import_sizes(config) | {"qk_norm": False} | biases


def import_qwen2(config: Any) -> dict[str, Any]:
    """The values of our config for a `Qwen2Config`."""
    return import_sizes(config) | {"qk_norm": False, "attention_bias": True} | sliding(config)


def import_qwen3(config: Any) -> dict[str, Any]:
    """The values of our config for a `Qwen3Config`."""
    return import_sizes(config) | {"qk_norm": True, "attention_bias": config.attention_bias} | sliding(config)


def sliding(config: Any) -> dict[str, Any]:
    """Which layers have a sliding window, and how long it is."""
    is_used = "sliding_attention" in config.layer_types
    return {"layer_types": list(config.layer_types), "sliding_window": config.sliding_window if is_used else None}


def export_sizes(config: ScratchGPTConfig) -> dict[str, Any]:
    """The values that the configs of all families have."""
    values = shared_values(config) | {name: getattr(config, name) for name in SIZES}
    rope = dict(config.rope_parameters or {})
    return values | {"hidden_act": "silu", "attention_bias": config.attention_bias, "rope_parameters": rope}


def export_llama(config: ScratchGPTConfig) -> dict[str, Any]:
    """The values of a `LlamaConfig` for ours."""
    return export_sizes(config) | {"mlp_bias": config.mlp_bias}


def export_qwen3(config: ScratchGPTConfig) -> dict[str, Any]:
    """The values of a `Qwen3Config` for ours."""
    is_sliding = config.sliding_window is not None
    return export_sizes(config) | {
        "layer_types": list(config.layer_types or ()),
        "use_sliding_window": is_sliding,
        "sliding_window": config.sliding_window,
        "max_window_layers": 0 if is_sliding else config.num_hidden_layers,
    }


def rope_limits(config: ScratchGPTConfig) -> list[str]:
    """These families rotate whole heads."""
    share = (config.rope_parameters or {}).get("partial_rotary_factor") or 1.0
    return [f"rope_parameters['partial_rotary_factor'] is {share}, but must be 1.0"] if share != 1.0 else []


def llama_limits(config: ScratchGPTConfig) -> list[str]:
    """Further limits of Llama: `LlamaConfig` checks the sizes even if head_dim is given."""
    limits = rope_limits(config)
    if config.hidden_size % config.num_attention_heads:
        limits.append(
            f"hidden_size is {config.hidden_size}, but must be a multiple of num_attention_heads "
            f"({config.num_attention_heads})"
        )
    return limits


LLAMA = Family(
    model_type="llama",
    architectures=architectures("Llama"),
    rules=RULES,
    ignored=OLD_BUFFERS,
    import_requires={"hidden_act": ("silu", "swish")},
    import_config=import_llama,
    export_requires=REQUIRED | {"qk_norm": False, "sliding_window": None},
    export_config=export_llama,
    export_loses=("residual_dropout", "embedding_dropout"),
    export_limits=llama_limits,
)

QWEN2 = Family(
    model_type="qwen2",
    architectures=architectures("Qwen2"),
    rules=QWEN2_RULES,
    ignored=OLD_BUFFERS,
    zeros=r".*\.self_attn\.o_proj\.bias",
    import_requires={"hidden_act": ("silu", "swish")},
    import_config=import_qwen2,
)

QWEN3 = Family(
    model_type="qwen3",
    architectures=architectures("Qwen3"),
    rules=RULES,
    ignored=OLD_BUFFERS,
    import_requires={"hidden_act": ("silu", "swish")},
    import_config=import_qwen3,
    export_requires=REQUIRED | {"qk_norm": True, "mlp_bias": False},
    export_config=export_qwen3,
    export_loses=("residual_dropout", "embedding_dropout"),
    export_limits=rope_limits,
)
