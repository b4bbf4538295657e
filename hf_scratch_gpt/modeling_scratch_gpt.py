"""The whole ScratchGPT network, leaf first: norms, positions, attention, MLP, block, model, loss, heads.

Read it from top to bottom. Every layer is written here from torch operations; transformers supplies the base
classes and the contracts (saving, generation, caches, masks, attention kernels), so that a model from this file
is a model like any other to the whole ecosystem. The architecture is the decoder of
https://huggingface.co/papers/1706.03762 as GPT-2 and Llama made it; each class names the paper of its part.

Shapes stand behind the lines that change them, in these words (a test compares them with the real ones); a line
that makes several tensors has several shapes, or one for all:
    batch       sequences processed together
    seq         tokens of each sequence in this call (the queries)
    key_seq     tokens that are attended to: `seq` plus what the cache holds
    hidden      config.hidden_size, the width of the residual stream
    heads       config.num_attention_heads
    kv_heads    config.num_key_value_heads;  group: query heads that share one, `heads` / `kv_heads`
    head_dim    config.head_dim;  half: half of the rotated part of it
    inner       config.intermediate_size
    vocab       config.vocab_size
    chunk       tokens whose logits exist at the same time when `skip_logits` is set
    1           a dimension of size one that broadcasts
    ...         leading dimensions that the line does not touch
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_scratch_gpt import ScratchGPTConfig

IGNORE_INDEX = -100  # labels with this value take no part in the loss


# ----------------------------------------------------------------------------------------------------------------------
# Norms
# ----------------------------------------------------------------------------------------------------------------------


class ScratchGPTRMSNorm(nn.Module):
    """weight * x / sqrt(mean(x ** 2) + eps), in float32 (https://huggingface.co/papers/1910.07467)."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(hidden_states.dtype)


class ScratchGPTLayerNorm(nn.Module):
    """weight * (x - mean(x)) / sqrt(var(x) + eps) + bias, in float32 (https://huggingface.co/papers/1607.06450)."""

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.to(torch.float32)
        x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(hidden_states.dtype) + self.bias


NORMS = {"rmsnorm": ScratchGPTRMSNorm, "layernorm": ScratchGPTLayerNorm}


# ----------------------------------------------------------------------------------------------------------------------
# Positions
# ----------------------------------------------------------------------------------------------------------------------


class ScratchGPTRotaryEmbedding(nn.Module):
    """Cosine and sine of the rotation angles position / theta ** (2 i / head_dim).

    https://huggingface.co/papers/2104.09864. `rope_type` selects transformers' scalings for longer contexts. The names
    of the class and of its buffers are a contract: `from_pretrained` refills the buffers by them.
    """

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: ScratchGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        frequencies = self.compute_default_rope_parameters
        if self.rope_type != "default":
            frequencies = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = frequencies(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: ScratchGPTConfig, device: torch.device | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, float]:
        """Angle per position of each rotated pair, (half,), and the factor on cosine and sine."""
        rotated = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = position_ids[:, :, None].to(torch.float32)  # (..., seq, 1)
        angles = positions * self.inv_freq.to(hidden_states.device, torch.float32)  # (..., seq, half)
        cosine = angles.cos() * self.attention_scaling
        sine = angles.sin() * self.attention_scaling
        return cosine.to(hidden_states.dtype), sine.to(hidden_states.dtype)


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (x[i], x[i + half]) of every head by its angle; what lies behind the pairs stays.

    Args:
        x: queries or keys, (batch, seq, heads, head_dim).
        cosine, sine: of the angles, (batch, seq, half), batch may be 1.
    """
    half = cosine.shape[-1]
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)  # (..., seq, 1, half)
    sizes = [half, half, x.shape[-1] - 2 * half]
    first, second, rest = x.split(sizes, dim=-1)  # (..., half), (..., half), (..., head_dim - 2 * half)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, rest), dim=-1)  # (..., head_dim)


def sinusoidal_positions(position_ids: torch.Tensor, size: int) -> torch.Tensor:
    """Sines and cosines of wavelengths from 2 pi to 10000 * 2 pi (https://huggingface.co/papers/1706.03762, 3.5)."""
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=position_ids.device) / size
    angles = position_ids[:, :, None] * 10000.0**-exponents  # (..., seq, hidden / 2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)  # (..., seq, hidden)


# ----------------------------------------------------------------------------------------------------------------------
# Attention
# ----------------------------------------------------------------------------------------------------------------------


def repeat_heads(x: torch.Tensor, group: int) -> torch.Tensor:
    """Copy each key/value head for the `group` query heads that share it: kv_heads becomes heads."""
    if group == 1:
        return x
    batch, kv_heads, key_seq, head_dim = x.shape
    x = x[:, :, None].expand(batch, kv_heads, group, key_seq, head_dim)  # (batch, kv_heads, group, key_seq, head_dim)
    return x.reshape(batch, kv_heads * group, key_seq, head_dim)  # (batch, heads, key_seq, head_dim)


def causal_mask(scores: torch.Tensor) -> torch.Tensor:
    """0 where a query may look and the smallest finite number where the key lies in its future."""
    seq, key_seq = scores.shape[-2:]
    future = torch.ones(seq, key_seq, dtype=torch.bool, device=scores.device).triu(key_seq - seq + 1)
    mask = torch.zeros(seq, key_seq, dtype=scores.dtype, device=scores.device)
    return mask.masked_fill(future, torch.finfo(scores.dtype).min)


def eager_attention_forward(
    module: "ScratchGPTAttention",
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(query key^T * scaling + mask) value, written out: the readable twin of the fused kernels.

    The mask is additive and finite, so that a row in which everything is masked stays a number. Without a mask
    attention is causal.
    """
    key = repeat_heads(key, module.num_key_value_groups)  # (batch, heads, key_seq, head_dim)
    value = repeat_heads(value, module.num_key_value_groups)  # (batch, heads, key_seq, head_dim)
    scores = query @ key.transpose(2, 3) * scaling  # (batch, heads, seq, key_seq)
    if attention_mask is None and kwargs.get("is_causal") is not False:
        attention_mask = causal_mask(scores)  # (seq, key_seq)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    output = weights @ value  # (batch, heads, seq, head_dim)
    return output.transpose(1, 2).contiguous(), weights  # (batch, seq, heads, head_dim), (batch, heads, seq, key_seq)


def residual_projection(input_size: int, output_size: int, bias: bool) -> nn.Linear:
    """A linear layer whose output is added to the residual stream; `_init_weights` knows it by its mark."""
    linear = nn.Linear(input_size, output_size, bias=bias)
    linear.is_residual_projection = True  # type: ignore[assignment]
    return linear


class ScratchGPTAttention(nn.Module):
    """Multi-head causal self-attention (https://huggingface.co/papers/1706.03762, 3.2).

    softmax(Q K^T / sqrt(head_dim)) V for each head, with Q, K and V linear in the input. Key and value heads may be
    fewer than query heads (https://huggingface.co/papers/2305.13245).
    """

    def __init__(self, config: ScratchGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        is_sliding = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if is_sliding else None

        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = residual_projection(query_size, config.hidden_size, bias=config.attention_bias)
        self.q_norm = ScratchGPTRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = ScratchGPTRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, seq, _ = hidden_states.shape
        heads_shape = (batch, seq, -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads_shape))  # (batch, seq, heads, head_dim)
        key = self.k_norm(self.k_proj(hidden_states).view(heads_shape))  # (batch, seq, kv_heads, head_dim)
        value = self.v_proj(hidden_states).view(heads_shape)  # (batch, seq, kv_heads, head_dim)
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)

        query = query.transpose(1, 2)  # (batch, heads, seq, head_dim)
        key = key.transpose(1, 2)  # (batch, kv_heads, seq, head_dim)
        value = value.transpose(1, 2)  # (batch, kv_heads, seq, head_dim)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (batch, kv_heads, key_seq, head_dim)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        output = output.reshape(batch, seq, -1).contiguous()  # (batch, seq, heads * head_dim)
        return self.o_proj(output), weights  # (batch, seq, hidden), (batch, heads, seq, key_seq)


# ----------------------------------------------------------------------------------------------------------------------
# MLP and block
# ----------------------------------------------------------------------------------------------------------------------


class ScratchGPTSwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (https://huggingface.co/papers/2002.05202)."""

    def __init__(self, config: ScratchGPTConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = residual_projection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate = nn.functional.silu(self.gate_proj(hidden_states))  # (batch, seq, inner)
        return self.down_proj(gate * self.up_proj(hidden_states))  # (batch, seq, hidden)


class ScratchGPTMLP(nn.Module):
    """down(activation(up(x))): the two layers of GPT-2."""

    def __init__(self, config: ScratchGPTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = residual_projection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = ACTIVATIONS[config.mlp_type]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inner = self.activation(self.up_proj(hidden_states))  # (batch, seq, inner)
        return self.down_proj(inner)  # (batch, seq, hidden)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (https://huggingface.co/papers/1606.08415)."""
    return nn.functional.gelu(x, approximate="tanh")


def relu2(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0) ** 2 (https://huggingface.co/papers/2109.08668)."""
    return nn.functional.relu(x).square()


ACTIVATIONS = {"gelu": gelu, "relu2": relu2}


class ScratchGPTDecoderLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm block (https://huggingface.co/papers/2002.04745)."""

    def __init__(self, config: ScratchGPTConfig, layer_idx: int) -> None:
        super().__init__()
        norm = NORMS[config.norm_type]
        self.input_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = ScratchGPTAttention(config, layer_idx)
        self.post_attention_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ScratchGPTSwiGLU(config) if config.mlp_type == "swiglu" else ScratchGPTMLP(config)
        self.residual_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attention_output, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.residual_dropout(attention_output)
        mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.residual_dropout(mlp_output)


# ----------------------------------------------------------------------------------------------------------------------
# Model
# ----------------------------------------------------------------------------------------------------------------------


class ScratchGPTPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about every ScratchGPT model, and the initial weights."""

    config: ScratchGPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ScratchGPTDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ScratchGPTDecoderLayer, "attentions": ScratchGPTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights and zero biases, as in GPT-2.

        2 * num_hidden_layers outputs add up in the residual stream, so the projections that write to it start smaller
        by the root of that. They carry a mark because this method is not called on modules without own weights.
        In wide models the embeddings, which may also be the head, start smaller, so that the first logits do not
        spread with the width and the first loss is that of guessing.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.embedding_std)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.Linear) and hasattr(module, "is_residual_projection"):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)


class ScratchGPTModel(ScratchGPTPreTrainedModel):
    """Token ids to final hidden states: embedding, blocks, norm."""

    def __init__(self, config: ScratchGPTConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        elif config.position_embedding_type == "rope":
            self.rotary_emb = ScratchGPTRotaryEmbedding(config)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList([ScratchGPTDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = NORMS[config.norm_type](config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Compute the hidden states of every position.

        Args:
            input_ids: (batch, seq); or `inputs_embeds`, (batch, seq, hidden), instead.
            attention_mask: (batch, key_seq), 0 at padding; or a prepared 4-D mask.
            position_ids: (batch, seq). Where they restart at 0 a new document begins, and documents packed into one
                row do not see each other if there is neither an attention_mask nor a filled cache.
            past_key_values: keys and values of earlier tokens; extended in place.
            use_cache: make a cache if none is given and return it. In training mode none is ever made.

        Raises:
            ValueError: ids outside the vocabulary (checked on CPU), both or neither kind of input, or positions
                beyond max_position_embeddings where positions are learned.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            check_range("input_ids", input_ids, self.config.vocab_size, "vocab_size; is this the model's tokenizer?")
            inputs_embeds = self.embed_tokens(input_ids)  # (batch, seq, hidden)

        masks = self._attention_masks(inputs_embeds, attention_mask, past_key_values, position_ids, kwargs)
        if position_ids is None:
            position_ids = self._default_positions(inputs_embeds, attention_mask, past_key_values)
        hidden_states = self.embedding_dropout(self._add_positions(inputs_embeds, position_ids))
        position_embeddings = None
        if self.config.position_embedding_type == "rope":
            position_embeddings = self.rotary_emb(hidden_states, position_ids)
        if use_cache and past_key_values is None and not self.training:
            # Made only after the masks, which would otherwise not see packed documents (a cache switches that off).
            past_key_values = DynamicCache(config=self.config)

        for layer, layer_type in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer_type],
                position_ids=position_ids,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states, past_key_values=past_key_values if use_cache else None
        )

    def _attention_masks(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> dict[str, torch.Tensor | None]:
        """The mask of each layer type; None lets the kernel be causal by itself, which is faster than any mask.

        Only `position_ids` that the caller gave count here: those that we make hold no document boundary, but under
        torch.compile they would force a dense mask.
        """
        if isinstance(attention_mask, dict):  # prepared by `generate`
            return attention_mask
        is_plain = attention_mask is None and past_key_values is None and position_ids is None
        is_plain = is_plain and self.config._attn_implementation == "sdpa" and kwargs.get("is_causal") is not False
        arguments: dict[str, Any] = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        masks: dict[str, Any] = {}  # tensors, or the block masks of flex attention
        if "full_attention" in self.config.layer_types:
            masks["full_attention"] = None if is_plain else create_causal_mask(**arguments)
        if "sliding_attention" in self.config.layer_types:
            is_short = is_plain and inputs_embeds.shape[1] <= self.config.sliding_window
            masks["sliding_attention"] = None if is_short else create_sliding_window_causal_mask(**arguments)
        return masks

    def _default_positions(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None
    ) -> torch.Tensor:
        """Count on from the cache; where absolute positions matter, do not count padding on the left."""
        seq = inputs_embeds.shape[1]
        is_absolute = self.config.position_embedding_type != "rope"
        if is_absolute and isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            return positions[:, -seq:]  # (batch, seq)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = torch.arange(seq, device=inputs_embeds.device) + past
        return positions[None]  # (1, seq)

    def _add_positions(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Add absolute positions to the embeddings; rotary ones come in later, inside attention."""
        if self.config.position_embedding_type == "learned":
            limit = self.config.max_position_embeddings
            check_range("position_ids", position_ids, limit, "max_position_embeddings; shorten the sequence")
            return inputs_embeds + self.embed_positions(position_ids)  # (batch, seq, hidden)
        if self.config.position_embedding_type == "sinusoidal":
            # The paper scales the embeddings up, so that positions of size one do not drown them (section 3.4).
            positions = sinusoidal_positions(position_ids, self.config.hidden_size)  # (..., seq, hidden)
            return inputs_embeds * math.sqrt(self.config.hidden_size) + positions.to(inputs_embeds.dtype)
        return inputs_embeds


def check_range(name: str, values: torch.Tensor, limit: int, remedy: str) -> None:
    """Refuse indices that a table of `limit` rows does not have, where looking costs no device synchronisation."""
    if values.device.type != "cpu" or values.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} holds {wrong}, but must lie in 0 ... {limit - 1}, below {remedy}")


# ----------------------------------------------------------------------------------------------------------------------
# Language modelling: loss and head
# ----------------------------------------------------------------------------------------------------------------------


def next_token_labels(labels: torch.Tensor) -> torch.Tensor:
    """Shift labels so that position t holds the token to be predicted there; the last position predicts none."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # (batch, seq)


def token_loss_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of -log softmax(logits)[target] over the targets that are not IGNORE_INDEX, in float32 nats."""
    return nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")


def normalise_loss(
    loss_sum: torch.Tensor, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Divide by the number of targets: of the whole batch if the trainer tells it, else of this call (at least 1)."""
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORE_INDEX).sum().clamp(min=1)
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(loss_sum.device)
    return loss_sum / num_items_in_batch


def causal_lm_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    vocab_size: int | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Cross-entropy of the next token, in nats per target token.

    Args:
        logits: (batch, seq, vocab).
        labels: (batch, seq), the input ids again; the shift happens here. IGNORE_INDEX leaves a position out.
        vocab_size: unused, part of transformers' contract for loss functions.
        num_items_in_batch: number of targets by which the sum is divided; default: those of `labels`.
        shift_labels: (batch, seq), labels that are shifted already; they replace `labels`.
    """
    targets = shift_labels if shift_labels is not None else next_token_labels(labels)
    targets = targets.to(logits.device).reshape(-1)  # (batch * seq)
    loss_sum = token_loss_sum(logits.reshape(-1, logits.shape[-1]), targets)  # ()
    return normalise_loss(loss_sum, targets, num_items_in_batch)


class ChunkedLossSum(torch.autograd.Function):
    """token_loss_sum of all tokens without ever holding the logits of more than one chunk of them.

    The gradient with respect to the logits is softmax(logits) - one_hot(target). It is taken on the way, while a
    chunk's logits exist, so that nothing is kept for the backward pass and nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        softcapping: float | None,
        chunk_tokens: int,
    ) -> torch.Tensor:
        """Sum the losses of `hidden_states`, (tokens, hidden), under `weight`, (vocab, hidden)."""
        needs_gradient = any(ctx.needs_input_grad)
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
        hidden_gradients = []
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        for chunk, target in zip(
            hidden_states.split(chunk_tokens), targets.split(chunk_tokens), strict=True
        ):  # (chunk, hidden), (chunk)
            chunk_loss, gradient = chunk_loss_and_gradient(chunk, weight, target, softcapping, needs_gradient)
            loss_sum += chunk_loss
            if gradient is not None:
                hidden_gradients.append(gradient @ weight)  # (chunk, hidden)
                weight_gradient += gradient.T @ chunk  # (vocab, hidden)
            del gradient  # before the next chunk's logits are made
        if hidden_gradients:
            hidden_gradient = torch.cat(hidden_gradients)  # (batch * seq, hidden)
            ctx.save_for_backward(hidden_gradient.to(hidden_states.dtype), weight_gradient.to(weight.dtype))
        return loss_sum

    @staticmethod
    def backward(ctx: Any, loss_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients of the sum."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * loss_gradient, weight_gradient * loss_gradient, None, None, None


def chunk_loss_and_gradient(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    softcapping: float | None,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The summed loss of a chunk of tokens, (chunk, hidden), and its gradient by their logits, (chunk, vocab)."""
    raw_logits = nn.functional.linear(hidden_states, weight)  # (chunk, vocab)
    logits = cap_logits(raw_logits.float(), softcapping)
    is_target = (targets != IGNORE_INDEX)[:, None]  # (chunk, 1)
    index = targets.clamp(min=0)[:, None]  # (chunk, 1)
    log_normaliser = logits.logsumexp(dim=-1, keepdim=True)  # (chunk, 1)
    loss_sum = ((log_normaliser - logits.gather(1, index)) * is_target).sum()
    if not needs_gradient:
        return loss_sum, None
    slope = 1.0 if softcapping is None else 1 - (logits / softcapping).square()
    gradient = logits.sub_(log_normaliser).exp_().scatter_add_(1, index, -torch.ones_like(log_normaliser))
    return loss_sum, gradient.mul_(is_target).mul_(slope).to(raw_logits.dtype)


def cap_logits(logits: torch.Tensor, softcapping: float | None) -> torch.Tensor:
    """softcapping * tanh(logits / softcapping), or the logits themselves (https://huggingface.co/papers/2408.00118)."""
    return logits if softcapping is None else torch.tanh(logits / softcapping) * softcapping


class ScratchGPTForCausalLM(ScratchGPTPreTrainedModel, GenerationMixin):
    """The language model: hidden states to a score for every token of the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    _loss_function = staticmethod(causal_lm_loss)
    loss_chunk_tokens = 1024  # tokens whose logits exist at the same time when `skip_logits` is set

    def __init__(self, config: ScratchGPTConfig) -> None:
        super().__init__(config)
        self.model = ScratchGPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(  # noqa: PLR0913  the arguments are transformers' contract
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Score the next token at every position and, with `labels`, compute the loss.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache: see ScratchGPTModel.
            labels: (batch, seq), usually the input ids themselves; shifted here. -100 leaves a position out.
                `shift_labels` among the further arguments gives labels that are shifted already, and
                `num_items_in_batch` the number of targets to divide by.
            logits_to_keep: score only the last n positions (0: all), or the positions in a 1-D tensor.
            skip_logits: with labels, never hold all logits at once and return none: same loss and gradients at a
                fraction of the memory.

        Raises:
            ValueError: `skip_logits` without `labels` or with `logits_to_keep`; see also ScratchGPTModel.
        """
        loss_arguments = {name: kwargs.pop(name, None) for name in ("shift_labels", "num_items_in_batch")}
        if use_cache is None and labels is not None:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        logits, loss = None, None
        if skip_logits:
            if labels is None or not isinstance(logits_to_keep, int) or logits_to_keep:
                raise ValueError("skip_logits needs labels and excludes logits_to_keep: only the loss is computed")
            loss = self._chunked_loss(hidden_states, labels, **loss_arguments)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, kept, :])  # (batch, seq, vocab)
            logits = cap_logits(logits, self.config.final_logit_softcapping)
            if labels is not None:
                vocab_size = self.config.vocab_size
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **loss_arguments)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _chunked_loss(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor,
        shift_labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        head = self.lm_head
        if type(head) is not nn.Linear or head._forward_pre_hooks or head._forward_hooks:
            raise ValueError(
                f"skip_logits reads the weight of a plain nn.Linear, but lm_head is a {type(head).__name__} that an "
                "adapter, quantisation or parallelism has changed; train without skip_logits"
            )
        hidden_states = hidden_states.flatten(0, 1)  # (batch * seq, hidden)
        targets = shift_labels if shift_labels is not None else next_token_labels(labels)
        targets = targets.to(hidden_states.device).flatten()  # (batch * seq)
        loss_sum = ChunkedLossSum.apply(
            hidden_states, head.weight, targets, self.config.final_logit_softcapping, self.loss_chunk_tokens
        )
        return normalise_loss(loss_sum, targets, num_items_in_batch)


# ----------------------------------------------------------------------------------------------------------------------
# Other heads: transformers' forward passes over our base model
#
# The mixins' own constructors ask AutoModel for the base model, which knows none where this file comes from a
# checkpoint (trust_remote_code); so each head calls only ScratchGPTPreTrainedModel's and builds its parts itself.
# ----------------------------------------------------------------------------------------------------------------------


class LossOfWholeBatch:
    """Divides the loss of a head by the number of labels in the whole batch, where the trainer tells it.

    The mixins take the mean over their own labels, and swallow `num_items_in_batch`. Trainer believes that it was used:
    with gradient accumulation, loss and gradients would be as many times too large as there are parts.
    """

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the mixin, with `num_items_in_batch`, the number of labels of the whole batch."""
        outputs = super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        if outputs.loss is not None and num_items_in_batch is not None:
            own_items = (labels != IGNORE_INDEX).sum().to(outputs.loss.device)  # () a tensor
            outputs.loss = outputs.loss * own_items / num_items_in_batch
        return outputs


class ScratchGPTForSequenceClassification(
    LossOfWholeBatch, GenericForSequenceClassification, ScratchGPTPreTrainedModel
):
    """One label (or value) per text, from the last token that is not padding."""

    def __init__(self, config: ScratchGPTConfig) -> None:
        ScratchGPTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = ScratchGPTModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class ScratchGPTForTokenClassification(LossOfWholeBatch, GenericForTokenClassification, ScratchGPTPreTrainedModel):
    """One label per token."""

    def __init__(self, config: ScratchGPTConfig) -> None:
        ScratchGPTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = ScratchGPTModel(config)
        self.dropout = nn.Dropout(config.residual_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class ScratchGPTForQuestionAnswering(GenericForQuestionAnswering, ScratchGPTPreTrainedModel):
    """Start and end of an answer inside the text."""

    def __init__(self, config: ScratchGPTConfig) -> None:
        ScratchGPTPreTrainedModel.__init__(self, config)
        self.model = ScratchGPTModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


__all__ = [
    "ScratchGPTForCausalLM",
    "ScratchGPTForQuestionAnswering",
    "ScratchGPTForSequenceClassification",
    "ScratchGPTForTokenClassification",
    "ScratchGPTModel",
    "ScratchGPTPreTrainedModel",
]
