"""The ScratchGPT network: norms, positions, attention, MLP, layer, model, loss, heads.

Read it from top to bottom: each part uses only the parts above it. The network is written in plain torch operations.
transformers supplies the base classes and the contracts (saving, generation, caches, masks, attention kernels), so
these models work wherever a Hugging Face model does. The architecture is the decoder of
https://huggingface.co/papers/1706.03762 with the changes made by GPT-2 and Llama; each class cites its paper.

A comment gives the shape of every tensor that a line reshapes, in the terms below (a test checks them against the real
shapes). A line that makes several tensors lists several shapes, or one if they are equal.
    batch       sequences processed together
    seq         tokens per sequence in this call (the queries)
    key_seq     tokens attended to: the cached ones plus `seq`
    hidden      config.hidden_size, the width of the residual stream
    heads       config.num_attention_heads
    kv_heads    config.num_key_value_heads;  group: query heads per key/value head, `heads` / `kv_heads`
    head_dim    config.head_dim;  half: half of its rotated part
    inner       config.intermediate_size
    vocab       config.vocab_size
    chunk       tokens per chunk of logits when `skip_logits` is set
    size        width of a normalized vector, `hidden` or `head_dim`;  rows: number of such vectors
    1           a dimension of size one that broadcasts
    ...         leading dimensions that the line does not change
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
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
from transformers.models.auto import modeling_auto
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_scratch_gpt import ScratchGPTConfig

IGNORE_INDEX = -100  # labels with this value are ignored by the loss


# ----------------------------------------------------------------------------------------------------------------------
# Backward passes written by hand
#
# RMSNorm, rotary positions and SwiGLU compute little but touch much memory: autograd keeps the result of each operation
# for the backward pass. The subclasses of torch.autograd.Function below keep only their inputs. torch.compile does the
# same on its own, so compiled code uses the plain formula.
# ----------------------------------------------------------------------------------------------------------------------


def is_traced(x: torch.Tensor) -> bool:
    """Whether `x` has no values to look at: in compiled or exported code and in the transforms of torch.func."""
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)


def is_eager(*tensors: torch.Tensor) -> bool:
    """Whether to use the functions with a backward pass written by hand."""
    return not any(is_traced(x) or isinstance(x, DTensor) for x in tensors)


def wants_gradient(*tensors: torch.Tensor) -> bool:
    """As `is_eager`, for functions whose plain formula gives the same bits, and is faster where nothing is kept."""
    return torch.is_grad_enabled() and is_eager(*tensors)


def gradients_of_formula(
    formula: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], gradient: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The gradients that autograd derives: they can be differentiated again, those written by hand cannot."""
    return torch.autograd.grad(formula(*tensors), tensors, gradient, create_graph=True)


# ----------------------------------------------------------------------------------------------------------------------
# Norms
# ----------------------------------------------------------------------------------------------------------------------


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x ** 2) + eps), in float32 (https://huggingface.co/papers/1910.07467)."""
    normalized = x.to(torch.float32)
    normalized = normalized * torch.rsqrt(normalized.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normalized.to(x.dtype)


class RMSNormFunction(torch.autograd.Function):
    """`rms_norm` that keeps only its input and the scale of each row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See `rms_norm`."""
        x32 = x.to(torch.float32)
        scale = x32.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.eps = eps
        normalized = (x32 * scale).to(x.dtype)
        return normalized.mul_(weight) if weight.dtype == x.dtype else normalized * weight

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """With s the scale and n the size: dx = s w g - x s^3 / n sum(x w g), and dw = sum over rows of x s g.

        Torch's gradient of LayerNorm with mean 0 is this dx minus s / n sum(w g), so that term is added.
        """
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *gradients_of_formula(functools.partial(rms_norm, eps=ctx.eps), (x, weight), gradient), None
        x32, weight32, gradient = (tensor.to(torch.float32) for tensor in (x, weight, gradient))
        size, mean = x.shape[-1], torch.zeros_like(scale)
        x_gradient, weight_gradient, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x32, [size], mean, scale, weight32, None, [True, True, False]
        )
        sums = (gradient.reshape(-1, size) @ weight32).reshape(scale.shape)  # (..., 1)
        x_gradient.add_(sums.mul_(scale).div_(size))
        return x_gradient.to(x.dtype), weight_gradient.to(weight.dtype), None


class ScratchGPTRMSNorm(nn.Module):
    """Root mean square normalization; see `rms_norm`."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        norm = RMSNormFunction.apply if wants_gradient(hidden_states, self.weight) else rms_norm
        return norm(hidden_states, self.weight, self.eps)


class ScratchGPTLayerNorm(nn.Module):
    """weight * (x - mean(x)) / sqrt(var(x) + eps) + bias, in float32 (https://huggingface.co/papers/1607.06450)."""

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states.to(self.weight.dtype)
        return nn.functional.layer_norm(hidden_states, self.weight.shape, self.weight, self.bias, self.eps)


NORMS = {"rmsnorm": ScratchGPTRMSNorm, "layernorm": ScratchGPTLayerNorm}


# ----------------------------------------------------------------------------------------------------------------------
# Positions
# ----------------------------------------------------------------------------------------------------------------------


class ScratchGPTRotaryEmbedding(nn.Module):
    """Cosine and sine of the rotation angles position / theta ** (2 i / head_dim).

    https://huggingface.co/papers/2104.09864. `rope_type` selects one of transformers' scalings for longer contexts.
    `from_pretrained` recomputes the buffers, which it finds by the names of this class and of the buffers. They stay
    float32 when the model is cast: with bfloat16 frequencies, angles at position 2000 are off by one to three radians.
    """

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: ScratchGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        inv_freq, self.attention_scaling = self.initial_frequencies()
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "ScratchGPTRotaryEmbedding":
        """Move the buffers to another device, but keep their type; `nn.Module.to` and `.half` call this method."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != before[name].dtype:
                setattr(self, name, before[name].to(buffer.device))
        return self

    def initial_frequencies(self, device: torch.device | None = None) -> tuple[torch.Tensor, float]:
        """As `compute_default_rope_parameters`, with the scaling of `rope_type`."""
        scaled = self.rope_type != "default"
        compute = ROPE_INIT_FUNCTIONS[self.rope_type] if scaled else self.compute_default_rope_parameters
        return compute(self.config, device)

    @staticmethod
    def compute_default_rope_parameters(
        config: ScratchGPTConfig, device: torch.device | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, float]:
        """Angle per position of each rotated pair, (half,), and the factor applied to cosine and sine."""
        rotated = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = position_ids[:, :, None].to(torch.float32)  # (..., seq, 1)
        inv_freq = self.inv_freq
        if inv_freq.dtype != torch.float32:  # FSDP1 with mixed precision casts buffers in place
            inv_freq, _ = self.initial_frequencies(hidden_states.device)
        angles = positions * inv_freq.to(hidden_states.device)  # (..., seq, half)
        cosine = angles.cos() * self.attention_scaling
        sine = angles.sin() * self.attention_scaling
        return cosine.to(hidden_states.dtype), sine.to(hidden_states.dtype)


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (x[i], x[i + half]) of every head by its angle; dimensions after the pairs are unchanged.

    Args:
        x: queries or keys, (batch, seq, heads, head_dim).
        cosine, sine: of the angles, (batch, seq, half); batch may be 1.
    """
    half = cosine.shape[-1]
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)  # (..., seq, 1, half)
    sizes = [half, half, x.shape[-1] - 2 * half]
    first, second, rest = x.split(sizes, dim=-1)  # (..., half), (..., half), (..., head_dim - 2 * half)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, rest), dim=-1)  # (..., head_dim)


class RotateFunction(torch.autograd.Function):
    """`rotate` that keeps only cosine and sine: the gradient is rotated back, by the negative angle."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        """See `rotate`; the products are computed in the memory of the result."""
        ctx.save_for_backward(cosine, sine)
        half = cosine.shape[-1]
        cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)  # (..., seq, 1, half)
        sizes = [half, half, x.shape[-1] - 2 * half]
        result = torch.empty_like(x)
        first, second, rest = x.split(sizes, dim=-1)  # (..., half), (..., half), (..., head_dim - 2 * half)
        out1, out2, out_rest = result.split(sizes, dim=-1)  # (..., half), (..., half), (..., head_dim - 2 * half)
        torch.mul(first, cosine, out=out1).addcmul_(second, sine, value=-1)
        torch.mul(second, cosine, out=out2).addcmul_(first, sine)
        out_rest.copy_(rest)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Rotate the gradient; this can be differentiated again."""
        cosine, sine = ctx.saved_tensors
        return RotateFunction.apply(gradient, cosine, -sine), None, None


def sinusoidal_positions(position_ids: torch.Tensor, size: int) -> torch.Tensor:
    """Sines and cosines of wavelengths from 2 pi to 10000 * 2 pi (https://huggingface.co/papers/1706.03762, 3.5)."""
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=position_ids.device) / size
    angles = position_ids[:, :, None] * 10000.0**-exponents  # (..., seq, hidden / 2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)  # (..., seq, hidden)


# ----------------------------------------------------------------------------------------------------------------------
# Attention
# ----------------------------------------------------------------------------------------------------------------------


def repeat_heads(x: torch.Tensor, group: int) -> torch.Tensor:
    """Repeat each key/value head for the `group` query heads that share it: kv_heads becomes heads."""
    if group == 1:
        return x
    batch, kv_heads, key_seq, head_dim = x.shape
    x = x[:, :, None].expand(batch, kv_heads, group, key_seq, head_dim)  # (batch, kv_heads, group, key_seq, head_dim)
    return x.reshape(batch, kv_heads * group, key_seq, head_dim)  # (batch, heads, key_seq, head_dim)


def causal_mask(scores: torch.Tensor) -> torch.Tensor:
    """Additive mask: 0 where a query may attend to a key, the smallest finite number at later keys."""
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
    """softmax(query key^T * scaling + mask) value: the readable version of the fused kernels.

    The mask is additive and finite, so that a fully masked row does not become NaN. Without a mask, attention is
    causal unless `is_causal=False`.
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
    """A linear layer whose output is added to the residual stream, marked for `_init_weights`."""
    linear = nn.Linear(input_size, output_size, bias=bias)
    linear.is_residual_projection = True  # type: ignore[assignment]
    return linear


class ScratchGPTAttention(nn.Module):
    """Multi-head causal self-attention (https://huggingface.co/papers/1706.03762, 3.2).

    softmax(Q K^T / sqrt(head_dim)) V for each head, where Q, K and V are linear in the input. Several query heads may
    share a key/value head (https://huggingface.co/papers/2305.13245).
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

        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = residual_projection(query_size, config.hidden_size, bias=config.attention_bias)
        self.q_norm = ScratchGPTRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = ScratchGPTRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    @property
    def sliding_window(self) -> int | None:
        """Number of positions that a token attends to; None: all. Read from the config, which may change later.

        A layer that PEFT has replicated may have a copy of the config from before, with fewer layers of one type.
        """
        is_full = self.config.layer_types[self.layer_idx :][:1] == ["full_attention"]
        return None if is_full else self.config.sliding_window

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
            turn = RotateFunction.apply if is_eager(query, key) else rotate
            query, key = turn(query, *position_embeddings), turn(key, *position_embeddings)

        query = query.transpose(1, 2)  # (batch, heads, seq, head_dim)
        key = key.transpose(1, 2)  # (batch, kv_heads, seq, head_dim)
        value = value.transpose(1, 2)  # (batch, kv_heads, seq, head_dim)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (batch, kv_heads, key_seq, head_dim)

        attention_interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
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
# MLP and layer
# ----------------------------------------------------------------------------------------------------------------------


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, where silu(x) = x sigmoid(x) (https://huggingface.co/papers/2002.05202)."""
    return nn.functional.silu(gate) * up


class SwiGLUFunction(torch.autograd.Function):
    """`swiglu` that keeps only its inputs."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """See `swiglu`."""
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """With s the sigmoid: dgate = g up s (1 + gate (1 - s)), and dup = g silu(gate)."""
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradients_of_formula(swiglu, (gate, up), gradient)
        gate_gradient = torch.ops.aten.silu_backward(gradient * up, gate)
        return gate_gradient, nn.functional.silu(gate).mul_(gradient)


class ScratchGPTSwiGLU(nn.Module):
    """down(swiglu(gate(x), up(x)))."""

    def __init__(self, config: ScratchGPTConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = residual_projection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(hidden_states)  # (batch, seq, inner)
        up = self.up_proj(hidden_states)  # (batch, seq, inner)
        activation = SwiGLUFunction.apply if wants_gradient(gate, up) else swiglu
        return self.down_proj(activation(gate, up))  # (batch, seq, hidden)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (https://huggingface.co/papers/1606.08415)."""
    return nn.functional.gelu(x, approximate="tanh")


def relu2(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0) ** 2 (https://huggingface.co/papers/2109.08668)."""
    return nn.functional.relu(x).square()


ACTIVATIONS = {"gelu": gelu, "relu2": relu2}


class ScratchGPTMLP(nn.Module):
    """down(activation(up(x))): the MLP of GPT-2."""

    def __init__(self, config: ScratchGPTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = residual_projection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = ACTIVATIONS[config.mlp_type]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inner = self.activation(self.up_proj(hidden_states))  # (batch, seq, inner)
        return self.down_proj(inner)  # (batch, seq, hidden)


class ScratchGPTDecoderLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm layer (https://huggingface.co/papers/2002.04745)."""

    def __init__(self, config: ScratchGPTConfig, layer_idx: int) -> None:
        super().__init__()
        norm = NORMS[config.norm_type]
        self.input_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = ScratchGPTAttention(config, layer_idx)
        self.post_attention_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ScratchGPTSwiGLU(config) if config.mlp_type == "swiglu" else ScratchGPTMLP(config)
        self.residual_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        # by name: PEFT's AdaptionPrompt replaces self_attn by a module that takes only named arguments
        attention_output, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.residual_dropout(attention_output)
        mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.residual_dropout(mlp_output)


# ----------------------------------------------------------------------------------------------------------------------
# Model
# ----------------------------------------------------------------------------------------------------------------------


class ScratchGPTPreTrainedModel(PreTrainedModel):
    """The capabilities that every ScratchGPT model declares to transformers, and the initial weights."""

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

        The residual stream sums 2 * num_hidden_layers outputs, so the projections that write to it start smaller by the
        square root of that number. They are marked because transformers calls this method only on modules that own
        weights, not on the attention or MLP around them. In wide models the embeddings, which may be tied to the head,
        start smaller too: the initial logits do not grow with the width, and the initial loss is that of guessing.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.embedding_std)
        if isinstance(module, nn.Linear) and hasattr(module, "is_residual_projection"):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)


def check_range(name: str, values: torch.Tensor, limit: int, limit_name: str, remedy: str) -> None:
    """Raise if an index is outside a table of `limit` rows.

    CPU only: elsewhere the check would wait for the device.
    """
    if values.device.type != "cpu" or values.numel() == 0 or is_traced(values):
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} contains {wrong}, but must be between 0 and {limit - 1} ({limit_name} - 1); {remedy}")


class ScratchGPTModel(ScratchGPTPreTrainedModel):
    """Token ids to final hidden states: embedding, layers, norm."""

    def __init__(self, config: ScratchGPTConfig) -> None:
        super().__init__(config)
        # No padding_idx: it would keep the padding token from being trained, which is often the end-of-text token too.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
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
            input_ids: (batch, seq). Alternatively, pass `inputs_embeds`, (batch, seq, hidden).
            attention_mask: (batch, key_seq), 0 at padding; or a prepared 4-D mask.
            position_ids: (batch, seq). A restart at 0 begins a new document: documents packed into one row do not
                attend to each other, provided that there is no attention_mask and no filled cache.
            past_key_values: keys and values of earlier tokens; extended in place.
            use_cache: return the cache, and create one if none is given. Never creates one in training mode.

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds, or (checked on CPU only) ids outside the
                vocabulary or learned positions beyond max_position_embeddings.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            limit = self.config.vocab_size
            check_range("input_ids", input_ids, limit, "vocab_size", "use the tokenizer of this model")
            inputs_embeds = self.embed_tokens(input_ids)  # (batch, seq, hidden)

        masks = self._attention_masks(inputs_embeds, attention_mask, past_key_values, position_ids, kwargs)
        if position_ids is None:
            position_ids = self._default_positions(inputs_embeds, attention_mask, past_key_values)
        hidden_states = self.embedding_dropout(self._add_positions(inputs_embeds, position_ids))
        position_embeddings = None
        if self.config.position_embedding_type == "rope":
            position_embeddings = self.rotary_emb(hidden_states, position_ids)
        if use_cache and past_key_values is None and not self.training:
            # Created after the masks: given a cache, transformers does not look for packed documents.
            past_key_values = DynamicCache(config=self.config)

        depth = self.config.num_hidden_layers  # fewer than len(self.layers) while `generate` drafts with early exit
        for layer, layer_type in zip(self.layers[:depth], self.config.layer_types[:depth], strict=True):
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
        """The mask of each layer type; None if the kernel's own causal mode is enough, which is faster than a mask.

        `position_ids` are those passed by the caller: the default ones contain no document boundaries, but would force
        a dense mask under torch.compile.
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
        masks: dict[str, Any] = {}  # tensors, or BlockMask objects with flex attention
        if "full_attention" in self.config.layer_types:
            masks["full_attention"] = None if is_plain else create_causal_mask(**arguments)
        if "sliding_attention" in self.config.layer_types:
            is_short = is_plain and inputs_embeds.shape[1] <= self.config.sliding_window
            masks["sliding_attention"] = None if is_short else create_sliding_window_causal_mask(**arguments)
        return masks

    def _default_positions(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None
    ) -> torch.Tensor:
        """Continue the count of the cache; absolute positions do not count left padding."""
        seq = inputs_embeds.shape[1]
        is_absolute = self.config.position_embedding_type != "rope"
        if is_absolute and isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            return positions[:, -seq:]  # (batch, seq)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = torch.arange(seq, device=inputs_embeds.device) + past
        return positions[None]  # (1, seq)

    def _add_positions(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Add absolute positions to the embeddings; rotary positions are applied inside attention."""
        if self.config.position_embedding_type == "learned":
            limit = self.config.max_position_embeddings
            check_range("position_ids", position_ids, limit, "max_position_embeddings", "shorten the sequence")
            inputs_embeds = inputs_embeds + self.embed_positions(position_ids)  # (batch, seq, hidden)
        elif self.config.position_embedding_type == "sinusoidal":
            # The paper (section 3.4) scales the embeddings up; positions of magnitude 1 would otherwise dominate them.
            positions = sinusoidal_positions(position_ids, self.config.hidden_size)  # (..., seq, hidden)
            inputs_embeds = inputs_embeds * math.sqrt(self.config.hidden_size) + positions.to(inputs_embeds.dtype)
        return inputs_embeds


# ----------------------------------------------------------------------------------------------------------------------
# Language modeling: loss and head
# ----------------------------------------------------------------------------------------------------------------------


def next_token_labels(labels: torch.Tensor) -> torch.Tensor:
    """Shift labels left, so that position t has the label of token t + 1; the last position is ignored."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # (batch, seq)


def check_targets(targets: torch.Tensor, vocab_size: int) -> None:
    """Raise if a label is neither IGNORE_INDEX nor the id of a token; see `check_range`."""
    remedy = f"use {IGNORE_INDEX} to exclude a position from the loss"
    check_range("labels", targets.where(targets != IGNORE_INDEX, 0), vocab_size, "vocab_size", remedy)


def token_loss_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of -log softmax(logits)[target] over targets other than IGNORE_INDEX, in nats, computed in float32."""
    return nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")


def normalise_loss(
    loss_sum: torch.Tensor, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Divide by the number of targets: of the whole batch if the trainer passes it, else of this call (at least 1)."""
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
        labels: (batch, seq), aligned with the input ids; shifted here. IGNORE_INDEX excludes a position.
        vocab_size: unused; part of transformers' contract for loss functions.
        num_items_in_batch: number of targets to divide the sum by (default: those in this call).
        shift_labels: (batch, seq), labels that are already shifted; used instead of `labels`.

    Raises:
        ValueError: a label is neither IGNORE_INDEX nor the id of a token (checked on CPU only).
    """
    targets = shift_labels if shift_labels is not None else next_token_labels(labels)
    targets = targets.to(logits.device).reshape(-1)  # (batch * seq)
    check_targets(targets, logits.shape[-1])
    loss_sum = token_loss_sum(logits.reshape(-1, logits.shape[-1]), targets)  # ()
    return normalise_loss(loss_sum, targets, num_items_in_batch)


def cap_logits(logits: torch.Tensor, softcapping: float | None) -> torch.Tensor:
    """softcapping * tanh(logits / softcapping); None returns the logits (https://huggingface.co/papers/2408.00118)."""
    return logits if softcapping is None else torch.tanh(logits / softcapping) * softcapping


def logit_gradient(
    raw_logits: torch.Tensor, index: torch.Tensor, softcapping: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target, (chunk, 1), and the gradient of its negative for the logits, (chunk, vocab).

    The gradient is softmax(logits) - one_hot(target), times the slope of the softcapping. It is computed in float32.

    Args:
        raw_logits: before softcapping, (chunk, vocab).
        index: the targets, (chunk, 1).
    """
    logits = cap_logits(raw_logits.float(), softcapping)
    log_probabilities = logits.log_softmax(dim=-1)
    of_target = log_probabilities.gather(1, index)  # (chunk, 1)
    gradient, gradient_at_target = log_probabilities.exp_(), of_target.exp() - 1  # (chunk, vocab), (chunk, 1)
    if softcapping is not None:
        slope = 1 - (logits / softcapping).square()
        gradient, gradient_at_target = gradient * slope, gradient_at_target * slope.gather(1, index)
    dtype = raw_logits.dtype
    return of_target, gradient.to(dtype).scatter_(1, index, gradient_at_target.to(dtype))


@functools.cache
def compiled_logit_gradient() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`logit_gradient` with all passes over the logits fused."""
    return torch.compile(logit_gradient)


def add_weight_gradient(total: torch.Tensor, gradient: torch.Tensor, chunk: torch.Tensor) -> None:
    """Add to `total`, (vocab, hidden) in float32, the part of a chunk: (chunk, vocab) and (chunk, hidden)."""
    gradient = gradient.T  # (vocab, chunk)
    if gradient.dtype == total.dtype:
        total.addmm_(gradient, chunk)
    else:
        total += torch.mm(gradient, chunk)


def chunked_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    softcapping: float | None,
    chunk_tokens: int,
    needs_gradient: list[bool],
    gradient_function: Callable[..., tuple[torch.Tensor, torch.Tensor]] = logit_gradient,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """token_loss_sum of all tokens and its gradients, with the logits of one chunk of tokens in memory at a time.

    Args:
        hidden_states, weight: (tokens, hidden) and (vocab, hidden), of one type.
        needs_gradient: whether to compute the gradient for the hidden states (in their type), and for the weight (in
            float32). The result is empty if not.
    """
    loss_sum = torch.zeros((), dtype=torch.float32, device=weight.device)
    hidden_gradient = torch.empty_like(hidden_states) if needs_gradient[0] else hidden_states.new_empty(0)
    weight_gradient = torch.zeros_like(weight if needs_gradient[1] else weight[:0], dtype=torch.float32)
    is_target = (targets != IGNORE_INDEX)[:, None]  # (batch * seq, 1)
    for start in range(0, len(targets), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        chunk, kept = hidden_states[rows], is_target[rows]  # (chunk, hidden), (chunk, 1)
        raw_logits = nn.functional.linear(chunk, weight)  # (chunk, vocab)
        if not any(needs_gradient):
            loss_sum += token_loss_sum(cap_logits(raw_logits, softcapping), targets[rows])
            continue
        index = targets[rows, None].where(kept, 0)  # (chunk, 1)
        of_target, gradient = gradient_function(raw_logits, index, softcapping)  # (chunk, 1), (chunk, vocab)
        loss_sum -= of_target.where(kept, 0).sum()
        if needs_gradient[0]:
            product = torch.mm(gradient, weight, out=hidden_gradient[rows])  # (chunk, hidden)
            product.mul_(kept)
        if needs_gradient[1]:
            add_weight_gradient(weight_gradient, gradient, chunk * kept)
        del raw_logits, gradient  # free them before the logits of the next chunk are computed
    return loss_sum, hidden_gradient, weight_gradient


@torch.library.custom_op(re.sub(r"\W", "_", __name__) + "::chunked_loss", mutates_args=())
def chunked_loss_operator(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    softcapping: float | None,
    chunk_tokens: int,
    needs_gradient: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`chunked_loss` as one operation of a compiled graph, which would otherwise contain every chunk.

    The name begins with that of this module, which may be loaded twice: from the package and from a checkpoint.
    """
    is_fused = weight.device.type != "cpu" and any(needs_gradient)
    function = compiled_logit_gradient() if is_fused else logit_gradient
    return chunked_loss(hidden_states, weight, targets, softcapping, chunk_tokens, needs_gradient, function)


@chunked_loss_operator.register_fake
def shapes_of_chunked_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    softcapping: float | None,
    chunk_tokens: int,
    needs_gradient: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tensors of the shapes and types that `chunked_loss` returns, without values."""
    empty = hidden_states.new_empty(0)
    return (
        hidden_states.new_empty((), dtype=torch.float32),
        torch.empty_like(hidden_states if needs_gradient[0] else empty),
        torch.empty_like(weight if needs_gradient[1] else weight[:0], dtype=torch.float32),
    )


class ChunkedLossSum(torch.autograd.Function):
    """token_loss_sum of all tokens, with the logits of only one chunk of tokens in memory at a time.

    The gradient with respect to the logits, softmax(logits) - one_hot(target), is computed in the forward pass, while
    the logits of a chunk exist. No logits are kept for the backward pass, and none are computed twice.
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
        ctx.dtypes = hidden_states.dtype, weight.dtype
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
        function = chunked_loss_operator if torch.compiler.is_compiling() else chunked_loss
        needs_gradient = list(ctx.needs_input_grad[:2])
        loss_sum, *both = function(hidden_states, weight, targets, softcapping, chunk_tokens, needs_gradient)
        ctx.save_for_backward(*both)
        return loss_sum

    @staticmethod
    def backward(ctx: Any, loss_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients computed in the forward pass.

        Raises:
            RuntimeError: a second derivative is requested, which the stored gradients do not have.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("skip_logits=True has no second derivatives; pass skip_logits=False")
        both = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
        scaled = [gradient.to(dtype) * loss_gradient if is_needed else None for gradient, dtype, is_needed in both]
        return *scaled, None, None, None


def default_chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Tokens per chunk of logits: enough for fast matrix products; with a small vocabulary, 16 MB of float32 logits."""
    return max(1024 if device.type == "cpu" else 8192, 2**22 // vocab_size)


class ScratchGPTForCausalLM(ScratchGPTPreTrainedModel, GenerationMixin):
    """The language model: a linear head scores every token of the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    _loss_function = staticmethod(causal_lm_loss)
    loss_chunk_tokens: int | None = None  # when `skip_logits` is set; None: `default_chunk_tokens`

    def __init__(self, config: ScratchGPTConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # transformers guesses it from the name of the class, also of a subclass
        self.model = ScratchGPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _get_name(self) -> str:
        """The name by which Trainer recognizes a causal language model, also for subclasses and under FSDP2."""
        return ScratchGPTForCausalLM.__name__

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
            labels: (batch, seq), usually the input ids; shifted here. -100 excludes a position. The keyword argument
                `shift_labels` passes labels that are already shifted, and `num_items_in_batch` the number of targets
                to divide by.
            logits_to_keep: score only the last n positions (0: all), or the positions in a 1-D tensor.
            skip_logits: compute the loss in chunks and return no logits: same loss and gradients in a fraction of the
                memory. Requires `labels`.

        Raises:
            ValueError: `skip_logits` without `labels`, with `logits_to_keep`, or with a head that is not a plain
                nn.Linear; labels that are neither -100 nor the id of a token (checked on CPU only); see also
                ScratchGPTModel.
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
                raise ValueError("skip_logits=True requires labels and cannot be combined with logits_to_keep")
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
                f"skip_logits=True requires lm_head to be a plain nn.Linear, but it is a {type(head).__name__} changed "
                "by an adapter, quantization or parallelism; pass skip_logits=False"
            )
        hidden_states = hidden_states.flatten(0, 1)  # (batch * seq, hidden)
        targets = shift_labels if shift_labels is not None else next_token_labels(labels)
        targets = targets.to(hidden_states.device).flatten()  # (batch * seq)
        check_targets(targets, head.out_features)
        weight = head.weight
        if not torch.is_grad_enabled():  # `ctx.needs_input_grad` does not know
            hidden_states, weight = hidden_states.detach(), weight.detach()
        softcapping = self.config.final_logit_softcapping
        if not torch.compiler.is_compiling() and is_traced(hidden_states):  # torch.func derives by its own rules
            loss_sum = token_loss_sum(cap_logits(head(hidden_states), softcapping), targets)
        else:
            chunk_tokens = self.loss_chunk_tokens or default_chunk_tokens(head.out_features, hidden_states.device)
            loss_sum = ChunkedLossSum.apply(hidden_states, weight, targets, softcapping, chunk_tokens)
        return normalise_loss(loss_sum, targets, num_items_in_batch)


# ----------------------------------------------------------------------------------------------------------------------
# Other heads: transformers' mixins on our base model
#
# The constructors of the mixins get the base model from AutoModel, which does not know it if this file was loaded from
# a checkpoint (trust_remote_code). So each head calls only ScratchGPTPreTrainedModel.__init__ and builds its own parts.
# ----------------------------------------------------------------------------------------------------------------------


class LossOfWholeBatch:
    """Divides the loss of a head by the number of labels in the whole batch, if the trainer passes it.

    The mixins average over the labels of one call and ignore `num_items_in_batch`, but Trainer assumes that they use
    it: with gradient accumulation over n micro-batches, loss and gradients would be n times too large. Without any
    label in this call, the loss is 0; the average would be NaN.
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
        """Run the mixin's forward pass; `num_items_in_batch` is the number of labels in the whole batch."""
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
        if outputs.loss is not None:
            own_items = (labels != IGNORE_INDEX).sum().to(outputs.loss.device)
            outputs.loss = outputs.loss.where(own_items > 0, 0.0)
            if num_items_in_batch is not None:
                outputs.loss = outputs.loss * own_items / num_items_in_batch
        return outputs


class ScratchGPTForSequenceClassification(
    LossOfWholeBatch, GenericForSequenceClassification, ScratchGPTPreTrainedModel
):
    """One label (or value) per sequence, from the last token that is not padding."""

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


def span_loss(
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    start_positions: torch.Tensor,
    end_positions: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Mean cross-entropy of start and end, (batch, seq) each; a position outside the sequence is ignored."""
    losses = []
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        targets = positions.to(logits.device).reshape(-1)  # (batch)
        is_inside = (targets >= 0) & (targets < logits.shape[-1])
        targets = targets.where(is_inside, IGNORE_INDEX)
        losses.append(normalise_loss(token_loss_sum(logits, targets), targets, num_items_in_batch))
    return (losses[0] + losses[1]) / 2


class ScratchGPTForQuestionAnswering(GenericForQuestionAnswering, ScratchGPTPreTrainedModel):
    """Start and end of an answer in the sequence."""

    _loss_function = staticmethod(span_loss)

    def __init__(self, config: ScratchGPTConfig) -> None:
        ScratchGPTPreTrainedModel.__init__(self, config)
        self.model = ScratchGPTModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


# ----------------------------------------------------------------------------------------------------------------------
# Some parts of transformers know the task of a model only by the name of its class: Trainer, when it shifts the labels
# for label smoothing; pipelines; model cards; `transformers serve`. The names are registered here, not in the package,
# because a model that is loaded from a checkpoint (trust_remote_code) needs them too.
# ----------------------------------------------------------------------------------------------------------------------

CLASS_NAMES = {
    "MODEL_MAPPING_NAMES": ScratchGPTModel,
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": ScratchGPTForCausalLM,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": ScratchGPTForSequenceClassification,
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": ScratchGPTForTokenClassification,
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": ScratchGPTForQuestionAnswering,
}
for table, model_class in CLASS_NAMES.items():
    getattr(modeling_auto, table)[ScratchGPTConfig.model_type] = model_class.__name__


__all__ = [
    "ScratchGPTForCausalLM",
    "ScratchGPTForQuestionAnswering",
    "ScratchGPTForSequenceClassification",
    "ScratchGPTForTokenClassification",
    "ScratchGPTModel",
    "ScratchGPTPreTrainedModel",
]
