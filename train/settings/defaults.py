"""Default values that follow from the model and from the amount of data.

They come from the sweeps of benchmarks/learning_rates.py and benchmarks/finetuning.py; the tables are in
benchmarks/README.md.
"""

import math
from typing import Any

REFERENCE_WIDTH = 192  # hidden_size of the preset laptop, at which the rates below were measured
PRETRAINING_RATES = {"muon": 8e-3, "adamw": 2e-3}
TUNING_RATES = {"muon": 2e-3, "adamw": 1e-3}
# How a good rate falls with the width. Muon's updates have a spectral norm of rate x sqrt(width); AdamW's have the same
# size in every entry, so that their norm grows with the width itself (https://huggingface.co/papers/2203.03466).
WIDTH_EXPONENTS = {"muon": 0.5, "adamw": 1.0}
PART_FACTORS = {"all": 1.0, "layers": 1.0, "lora": 5.0, "head": 5.0}  # the rate where only a part is trained

UPDATES_PER_EPOCH = 64  # that fine-tuning aims at, within the two bounds
SMALLEST_BATCH, LARGEST_BATCH = 4, 64  # examples
FEWEST_UPDATES = 50  # fewer teach a model hardly anything
FEWEST_EPOCHS, MOST_EPOCHS = 3, 10
MICRO_BATCH_TOKENS = 8192  # of a forward pass in fine-tuning, if all its examples are as long as the longest


def learning_rate_for(optimizer: str, config: Any) -> float:
    """Peak learning rate of pretraining for a model with `config`, to two digits."""
    return _scaled(PRETRAINING_RATES[optimizer], optimizer, config)


def tuning_rate_for(optimizer: str, trainable: str, config: Any) -> float:
    """Peak learning rate of fine-tuning, to two digits."""
    return _scaled(TUNING_RATES[optimizer] * PART_FACTORS[trainable], optimizer, config)


def _scaled(rate: float, optimizer: str, config: Any) -> float:
    width = config.get_text_config().hidden_size
    return float(f"{rate * (REFERENCE_WIDTH / width) ** WIDTH_EXPONENTS[optimizer]:.1e}")


def batch_size_for(num_examples: int, num_processes: int = 1) -> int:
    """Examples per step of fine-tuning: a power of two, or the next multiple of the number of processes."""
    wanted = 1 << round(math.log2(max(1.0, num_examples / UPDATES_PER_EPOCH)))
    batch = min(max(wanted, SMALLEST_BATCH), LARGEST_BATCH)
    return math.ceil(batch / num_processes) * num_processes


def epochs_for(num_examples: int, batch_size: int) -> float:
    """Passes over the examples: enough for twice the fewest updates, within the two bounds."""
    epochs = math.ceil(2 * FEWEST_UPDATES * batch_size / num_examples)
    return float(min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS))


def micro_batch_size_for(batch_size: int, longest: int, num_processes: int = 1) -> int:
    """Examples per forward pass: the largest divisor of a process's share of the batch that bounds the memory.

    Args:
        longest: tokens of the longest example.
    """
    share = batch_size // num_processes
    fitting = max(1, MICRO_BATCH_TOKENS // longest)
    return max(size for size in range(1, share + 1) if share % size == 0 and (size <= fitting or size == 1))
