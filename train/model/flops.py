"""Parameters and FLOPs of a model, as closed formulas of its config."""

from collections import Counter

from transformers import PreTrainedConfig

from hf_scratch_gpt import ScratchGPTConfig


def widths(config: ScratchGPTConfig) -> tuple[int, int, int]:
    """Widths of all queries, of all keys (as of all values), and of the MLP."""
    head_dim, key_heads = config.head_dim or 0, config.num_key_value_heads or 0  # a config has filled them in
    return config.num_attention_heads * head_dim, key_heads * head_dim, config.intermediate_size or 0


def matrix_shapes(config: ScratchGPTConfig) -> Counter[tuple[int, int]]:
    """How many matrices of each shape a block has: those that Muon trains and tensor parallelism splits."""
    hidden, (query, keys, inner) = config.hidden_size, widths(config)
    inputs = [(inner, hidden)] * (2 if config.mlp_type == "swiglu" else 1)
    return Counter([(query, hidden), (keys, hidden), (keys, hidden), (hidden, query), *inputs, (hidden, inner)])


def parameter_parts(config: ScratchGPTConfig) -> tuple[int, int]:
    """Weights in the matrices of all blocks, and all others."""
    per_block = sum(count * rows * columns for (rows, columns), count in matrix_shapes(config).items())
    matrices = config.num_hidden_layers * per_block
    return matrices, config.parameter_count - matrices


def flops_per_token(config: ScratchGPTConfig, block_size: int, computes_twice: bool = False) -> float:
    """3 x (2 N + 4 x layers x block x width): 6 N (Kaplan et al.) and attention, backward twice as much as forward.

    N counts the matrices and the head; attention is counted over the whole block, as usual.

    Args:
        computes_twice: gradient checkpointing runs the blocks forward once more, about 8 N. Model FLOPs utilisation
            leaves that out (https://huggingface.co/papers/2204.02311, appendix B).
    """
    blocks = 2 * parameter_parts(config)[0] + 4 * config.num_hidden_layers * block_size * widths(config)[0]
    return (3 + computes_twice) * blocks + 3 * 2 * config.vocab_size * config.hidden_size


def training_flops_per_token(config: PreTrainedConfig, sequence_length: int) -> float:
    """`flops_per_token` when all weights are trained; 0 for an architecture that the formula does not know."""
    return flops_per_token(config, sequence_length) if isinstance(config, ScratchGPTConfig) else 0.0
