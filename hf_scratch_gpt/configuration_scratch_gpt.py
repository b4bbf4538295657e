"""The configuration of a ScratchGPT model: each architecture choice is a typed, validated field."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

# The classes in a saved folder that the Auto classes load when this package is not installed.
AUTO_MAP = {
    "AutoConfig": "configuration_scratch_gpt.ScratchGPTConfig",
    "AutoModel": "modeling_scratch_gpt.ScratchGPTModel",
    "AutoModelForCausalLM": "modeling_scratch_gpt.ScratchGPTForCausalLM",
    "AutoModelForSequenceClassification": "modeling_scratch_gpt.ScratchGPTForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_scratch_gpt.ScratchGPTForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_scratch_gpt.ScratchGPTForQuestionAnswering",
}

_GPT2 = {
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
    "position_embedding_type": "learned",
    "norm_type": "layernorm",
    "rms_norm_eps": 1e-5,
    "mlp_type": "gelu",
    "qk_norm": False,
    "attention_bias": True,
    "mlp_bias": True,
    "attention_dropout": 0.1,
    "residual_dropout": 0.1,
    "embedding_dropout": 0.1,
    "tie_word_embeddings": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}

# Architectures by name. When training from scratch, the size of the tokenizer replaces `vocab_size`.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    },
    "laptop": {
        "vocab_size": 4096,
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "max_position_embeddings": 1024,
    },
    "small": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "max_position_embeddings": 2048,
    },
    "gpt2": {**_GPT2, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "gpt2-medium": {**_GPT2, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "gpt2-large": {**_GPT2, "hidden_size": 1280, "num_hidden_layers": 36, "num_attention_heads": 20},
    "gpt2-xl": {**_GPT2, "hidden_size": 1600, "num_hidden_layers": 48, "num_attention_heads": 25},
    "llama3-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "qk_norm": False,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
}

# Keys that `save_pretrained` writes or transformers reads, but that are not dataclass fields.
_SERIALISED_KEYS = {
    "model_type", "auto_map", "id2label", "label2id", "num_labels", "_name_or_path", "name_or_path",
    "attn_implementation", "torch_dtype", "rope_theta", "rope_scaling", "output_attentions",
    "quantization_config", "is_causal",
}  # fmt: skip

# The fields that decide the default layer types.
LAYER_TYPES_FOLLOW = {"num_hidden_layers", "sliding_window"}

# Entries that a type of rotary positions requires, besides rope_theta.
ROPE_REQUIRED = {
    "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",), "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip

# Entries of `rope_parameters` that are positive numbers, and their lowest value.
ROPE_LOWEST = {
    "rope_theta": 0, "factor": 1, "partial_rotary_factor": 0, "original_max_position_embeddings": 1,
    "attention_factor": 0, "beta_fast": 0, "beta_slow": 0, "low_freq_factor": 0, "high_freq_factor": 0,
}  # fmt: skip


@strict
class ScratchGPTConfig(PreTrainedConfig):
    """The architecture of a ScratchGPT model, saved as config.json.

    The default is a modern decoder: rotary positions, RMSNorm before each sub-layer, SwiGLU, and normalized
    queries and keys. `ScratchGPTConfig.from_preset("gpt2")` is the classic one.

    Args:
        vocab_size: number of rows of the embedding; need not be a multiple of 64.
        hidden_size: width of the residual stream.
        intermediate_size: inner width of the MLP (default: 8/3 of hidden_size with swiglu, rounded to a multiple of 64,
            the size of tiles and quantized blocks; otherwise 4 * hidden_size).
        num_hidden_layers: number of layers.
        num_attention_heads: query heads per layer.
        num_key_value_heads: key/value heads per layer; fewer than query heads is grouped-query attention
            (default: num_attention_heads).
        head_dim: width of one head (default: hidden_size / num_attention_heads).
        max_position_embeddings: longest sequence in tokens (a hard limit for learned positions).
        position_embedding_type: "rope" (https://huggingface.co/papers/2104.09864), "learned" (GPT-2) or
            "sinusoidal" (https://huggingface.co/papers/1706.03762).
        rope_parameters: rope_theta, rope_type and its options, as in transformers; requires "rope" positions.
        norm_type: "rmsnorm" (https://huggingface.co/papers/1910.07467) or "layernorm" (with bias).
        rms_norm_eps: epsilon inside the square root, for either norm type.
        mlp_type: "swiglu" (https://huggingface.co/papers/2002.05202), "gelu" (two layers, tanh form) or
            "relu2" (two layers, https://huggingface.co/papers/2109.08668).
        qk_norm: RMSNorm over each head of queries and keys (https://huggingface.co/papers/2302.05442).
        attention_bias: biases in the four attention projections.
        mlp_bias: biases in the MLP projections.
        attention_dropout: probability of dropping an attention weight.
        residual_dropout: probability of dropping an element of a sub-layer's output.
        embedding_dropout: probability of dropping an element of the embedded input.
        tie_word_embeddings: use the embedding matrix as the output head.
        layer_types: "full_attention" or "sliding_attention" for each layer (default: sliding in all layers if
            sliding_window is set, else full). The default follows when num_hidden_layers or sliding_window is changed.
        sliding_window: number of positions, including its own, that a token attends to in a sliding layer.
        final_logit_softcapping: logits = cap * tanh(logits / cap) (https://huggingface.co/papers/2408.00118);
            None disables it.
        initializer_range: standard deviation of the initial weights; divided by sqrt(2 * num_hidden_layers), as in
            GPT-2, in the projections that write to the residual stream.
        use_cache: return keys and values for decoding; ignored in training mode.

    Raises:
        StrictDataclassError: a field has the wrong type or conflicts with another field.
    """

    model_type: ClassVar[str] = "scratch_gpt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan: ClassVar[dict[str, Sequence[list[str]]]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 50257
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    position_embedding_type: Literal["rope", "learned", "sinusoidal"] = "rope"
    rope_parameters: dict[str, Any] | None = None
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    rms_norm_eps: float | int = 1e-6
    mlp_type: Literal["swiglu", "gelu", "relu2"] = "swiglu"
    qk_norm: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    final_logit_softcapping: float | int | None = None
    initializer_range: float | int = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self._require_positive("num_attention_heads", "hidden_size")
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                    f"({self.num_attention_heads}); change one of them or set head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            self.intermediate_size = self._default_intermediate_size()
        if self.layer_types is None:
            self.layer_types = self._default_layer_types()
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        rope_was_given = bool(self.rope_parameters or {"rope_theta", "rope_scaling"} & kwargs.keys())
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rope":
            if rope_was_given:
                raise ValueError(
                    f"rope_parameters requires position_embedding_type='rope', "
                    f"but it is '{self.position_embedding_type}'"
                )
            self.rope_parameters = None  # the base class sets a default

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; `layer_types` follow, unless they were chosen."""
        is_built = "auto_map" in self.__dict__
        follows = is_built and name in LAYER_TYPES_FOLLOW and self.layer_types == self._default_layer_types()
        super().__setattr__(name, value)
        if follows:
            self.layer_types = self._default_layer_types()

    def _default_layer_types(self) -> list[str]:
        kind = "full_attention" if self.sliding_window is None else "sliding_attention"
        return [kind] * self.num_hidden_layers

    def _default_intermediate_size(self) -> int:
        """Inner width that gives about 8 * hidden_size ** 2 weights per MLP for every mlp_type."""
        if self.mlp_type != "swiglu":
            return 4 * self.hidden_size
        return 64 * max(1, round(self.hidden_size * 8 / 3 / 64))

    def validate_architecture(self) -> None:
        """Check ranges and combinations of fields; called when a config is built and when it is saved."""
        self._require_positive(
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "initializer_range",
        )  # fmt: skip
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.position_embedding_type == "rope":
            self._validate_rope()
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be even with position_embedding_type='sinusoidal'")
        for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 0 and below 1")
        if self.final_logit_softcapping is not None and not 0 < self.final_logit_softcapping < math.inf:
            raise ValueError(
                f"final_logit_softcapping ({self.final_logit_softcapping}) must be positive, or None to disable it"
            )

    def _validate_rope(self) -> None:
        """Refuse values that no model can compute with; the base class only logs a warning."""
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even with position_embedding_type='rope'")
        given = {key: value for key, value in (self.rope_parameters or {}).items() if value is not None}
        allowed = sorted({"default", *ROPE_INIT_FUNCTIONS})
        if (rope_type := given.get("rope_type")) not in allowed:
            raise ValueError(f"rope_parameters['rope_type'] is {rope_type!r}; allowed values: {', '.join(allowed)}")
        if unknown := sorted(given.keys() - RopeParameters.__annotations__.keys() - {"type"}):
            known = ", ".join(sorted(RopeParameters.__annotations__))
            raise ValueError(f"rope_parameters has the unknown key '{unknown[0]}'; known keys: {known}")
        if missing := sorted({"rope_theta", *ROPE_REQUIRED.get(rope_type, ())} - given.keys()):
            raise ValueError(f"rope_parameters of rope_type '{rope_type}' must contain {', '.join(missing)}")
        for key in given.keys() & ROPE_LOWEST.keys():
            value, lowest = given[key], ROPE_LOWEST[key]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and lowest <= value < math.inf and value > 0):
                limit = f"of at least {lowest}" if lowest else "above 0"
                raise ValueError(f"rope_parameters['{key}'] is {value!r}, but must be a number {limit}")
        self._validate_rotated_dimensions(given)

    def _validate_rotated_dimensions(self, given: dict[str, Any]) -> None:
        share = given.get("partial_rotary_factor", 1.0)
        if share > 1 or int(self.head_dim * share) < 1:
            raise ValueError(
                f"rope_parameters['partial_rotary_factor'] is {share}, but must be at most 1 and rotate at least one "
                f"of the {self.head_dim} dimensions of a head"
            )
        pairs = math.ceil(int(self.head_dim * share) / 2)
        for key in given.keys() & {"short_factor", "long_factor"}:
            is_list = isinstance(given[key], list) and all(isinstance(factor, int | float) for factor in given[key])
            if not is_list or len(given[key]) != pairs:
                raise ValueError(f"rope_parameters['{key}'] must be a list of {pairs} numbers, not {given[key]!r}")

    def validate_token_ids(self) -> None:
        """Check the ids of special tokens; padding is embedded, so its id must be in the vocabulary."""
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id ({self.pad_token_id}) must be the id of a token, between 0 and {self.vocab_size - 1} "
                "(vocab_size - 1), or None for no padding"
            )
        super().validate_token_ids()

    def validate_sliding_window(self) -> None:
        """Check that `sliding_window` and `layer_types` agree."""
        allowed = {"full_attention", "sliding_attention"}
        if unknown := sorted(set(self.layer_types) - allowed):
            raise ValueError(f"layer_types contains {unknown}; allowed values: {sorted(allowed)}")
        has_sliding = "sliding_attention" in self.layer_types
        if has_sliding and (self.sliding_window is None or self.sliding_window < 1):
            raise ValueError(
                f"sliding_window ({self.sliding_window}) must be at least 1 with 'sliding_attention' in layer_types"
            )
        if self.sliding_window is not None and not has_sliding:
            raise ValueError(f"sliding_window ({self.sliding_window}) requires 'sliding_attention' in layer_types")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} ({getattr(self, name)}) must be positive")

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the initial embeddings: `initializer_range`, reduced if hidden_size exceeds 512."""
        scale: float = (512 / self.hidden_size) ** 0.5
        return self.initializer_range * min(1.0, scale)

    @property
    def parameter_count(self) -> int:
        """Number of parameters of the causal language model, by formula; tied weights count once."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key_value = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        norm = hidden * (2 if self.norm_type == "layernorm" else 1)
        attention = 2 * hidden * query + 2 * hidden * key_value + 2 * self.head_dim * self.qk_norm
        attention += (query + 2 * key_value + hidden) * self.attention_bias
        num_inputs = 2 if self.mlp_type == "swiglu" else 1  # gate and up, or up alone
        mlp = (num_inputs + 1) * hidden * inner + (num_inputs * inner + hidden) * self.mlp_bias
        positions = self.max_position_embeddings * hidden * (self.position_embedding_type == "learned")
        embeddings = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        return embeddings + positions + self.num_hidden_layers * (attention + mlp + 2 * norm) + norm

    @classmethod
    def from_values(cls, values: dict[str, Any], /, **overrides: Any) -> "ScratchGPTConfig":
        """Build a config from plain values and reject unknown keys, which `PreTrainedConfig` would silently keep.

        `overrides` replace `values` before missing fields are derived. Default `layer_types` count as missing.

        Raises:
            ValueError: a key is unknown or a value is not allowed.
        """
        if overrides.keys() & LAYER_TYPES_FOLLOW and "layer_types" in values:
            saved = cls.from_values(values)
            values = {key: value for key, value in values.items() if key != "layer_types"}
            if saved.layer_types != saved._default_layer_types():
                values["layer_types"] = saved.layer_types
        values = values | overrides
        fields = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in fields | _SERIALISED_KEYS:
                own = [name for name in cls.__annotations__ if name in fields]
                nearest = difflib.get_close_matches(key, own, n=1)
                hint = f"did you mean '{nearest[0]}'?" if nearest else f"known keys: {', '.join(own)}"
                raise ValueError(f"unknown config key '{key}'; {hint}")
        model_type = values.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(f"model_type is '{model_type}', but must be '{cls.model_type}'")
        try:
            return cls(**{key: value for key, value in values.items() if key != "model_type"})
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from error

    @classmethod
    def from_preset(cls, name: str, /, **overrides: Any) -> "ScratchGPTConfig":
        """Build the config of a preset; `overrides` are applied before derived fields are computed.

        Raises:
            ValueError: the preset or a key of `overrides` is unknown, or a value is not allowed.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset '{name}'; allowed values: {', '.join(PRESETS)}")
        return cls.from_values(PRESETS[name], **overrides)


__all__ = ["AUTO_MAP", "PRESETS", "ScratchGPTConfig"]
