"""What a GGUF file says about the architecture of its model."""

import math
import re
from typing import TYPE_CHECKING

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..configuration_scratch_gpt import ScratchGPTConfig
from ..modeling_scratch_gpt import ScratchGPTRotaryEmbedding
from .gguf_architectures import YARN_RANGE

if TYPE_CHECKING:
    from gguf import GGUFWriter

# llama.cpp changes how such models read special tokens, and then may not load them at all.
SPECIAL_NAMES = re.compile(r"phi-?3|modern-bert", re.IGNORECASE)


def add_config(writer: "GGUFWriter", config: ScratchGPTConfig, name: str, dtype: str) -> None:
    """Write the architecture."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    if not SPECIAL_NAMES.search(name):
        writer.add_name(name)
    writer.add_type("model")
    kind = "ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"
    writer.add_file_type(LlamaFileType[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    assert config.intermediate_size is not None
    assert config.num_key_value_heads is not None
    assert config.head_dim is not None
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if config.norm_type == "layernorm":
        writer.add_layer_norm_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        add_rope(writer, config)


def add_rope(writer: "GGUFWriter", config: ScratchGPTConfig) -> None:
    """Write the rotary positions, except the tensor `rope_factors`."""
    from gguf import RopeScalingType

    rope = config.rope_parameters
    assert rope is not None
    assert config.head_dim is not None
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        attention_factor = scaled_frequencies(config)[1]
        if rope_factors(config) is None:
            writer.add_rope_scaling_type(RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            attention_factor /= 1 + 0.1 * math.log(rope["factor"])  # what llama.cpp multiplies by itself
        writer.add_rope_scaling_attn_factors(attention_factor)


def rope_factors(config: ScratchGPTConfig) -> torch.Tensor | None:
    """What the angles are divided by, (half,), where llama.cpp cannot compute it; None where it can.

    That is for the type `llama3`, and for YaRN with a range of its own. Only `llama` reads such a tensor.
    """
    rope = config.rope_parameters or {}
    has_own_range = any(rope.get(name) not in (None, *values) for name, values in YARN_RANGE.items())
    if not (rope.get("rope_type") == "llama3" or (rope.get("rope_type") == "yarn" and has_own_range)):
        return None
    plain, _ = ScratchGPTRotaryEmbedding.compute_default_rope_parameters(config)
    return plain / scaled_frequencies(config)[0]


def scaled_frequencies(config: ScratchGPTConfig) -> tuple[torch.Tensor, float]:
    """Angle per position of each pair, (half,), and the factor of cosine and sine."""
    assert config.rope_parameters is not None
    frequencies: tuple[torch.Tensor, float] = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config)
    return frequencies
