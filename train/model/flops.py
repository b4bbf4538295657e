"""Parameters and FLOPs of a model, as closed formulas of its config."""

from collections import Counter

from transformers import PreTrainedConfig

from hf_scratch_gpt import ScratchGPTConfig


def training_flops_per_token(config: PreTrainedConfig, sequence_length: int) -> float:
    """`flops_per_token` if the formula knows the architecture, else 0."""
    return flops_per_token(config, sequence_length) if isinstance(config, ScratchGPTConfig) else 0.0


def flops_per_token(config: ScratchGPTConfig, block_size: int, gradient_checkpointing: bool = False) -> float:
    """FLOPs of one training token: 6 N (https://huggingface.co/papers/2001.08361) plus attention.

    That is 3 x (2 N + 4 x layers x block_size x query width), as the backward pass costs twice the forward pass. N
    counts the matrices and the head. Attention is counted over the whole block, as usual.

    Args:
        gradient_checkpointing: count the second forward pass of the layers too, about 8 N in all. Model FLOPs
            utilization does not (https://huggingface.co/papers/2204.02311, appendix B).
    """
    layers = 2 * parameter_parts(config)[0] + 4 * config.num_hidden_layers * block_size * widths(config)[0]
    return (3 + gradient_checkpointing) * layers + 3 * 2 * config.vocab_size * config.hidden_size


def parameter_parts(config: ScratchGPTConfig) -> tuple[int, int]:
    """The number of weights in the matrices of all layers, and of all other weights."""
    per_layer = sum(count * rows * columns for (rows, columns), count in matrix_shapes(config).items())
    matrices = config.num_hidden_layers * per_layer
    return matrices, config.parameter_count - matrices


def matrix_shapes(config: ScratchGPTConfig) -> Counter[tuple[int, int]]:
    """The number of matrices of each shape in a layer. Muon trains them, and tensor parallelism splits them."""
    hidden, (query, key, inner) = config.hidden_size, widths(config)
    inputs = [(inner, hidden)] * (2 if config.mlp_type == "swiglu" else 1)
    return Counter([(query, hidden), (key, hidden), (key, hidden), (hidden, query), *inputs, (hidden, inner)])


def widths(config: ScratchGPTConfig) -> tuple[int, int, int]:
    """The total width of the queries, of the keys (and values), and of the MLP."""
    head_dim, key_heads = config.head_dim or 0, config.num_key_value_heads or 0  # never None once the config is built
    return config.num_attention_heads * head_dim, key_heads * head_dim, config.intermediate_size or 0
