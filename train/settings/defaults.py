"""Default values that follow from the model and from the amount of data.

The rates come from the sweeps of benchmarks/learning_rates.py and benchmarks/finetuning.py, whose tables are in
benchmarks/README.md.
"""

import math
from typing import Any

REFERENCE_WIDTH = 192  # hidden_size of the preset laptop
# Peak rates of pretraining at that width. Muon's updates have a spectral norm of rate x sqrt(width); AdamW's have the
# same size in every entry, so that their norm grows with the width itself (https://huggingface.co/papers/2203.03466).
# With Muon, AdamW only trains embeddings, head and norms, and can be faster.
PRETRAINING_RATES = {"muon": 8e-3, "adamw": 2e-3}
WIDTH_EXPONENTS = {"muon": 0.5, "adamw": 1.0}
RATE_BESIDE_MUON = 2.5  # of AdamW, as a multiple of Muon's

# Peak rates of fine-tuning all weights at that width, on the reference number of examples. With other numbers they
# change like the square root, between the two bounds. They fall faster with the width than those of pretraining, since
# wider models have been trained on more: AdamW's reach the usual 1e-4 for GPT-2 (768) and 3e-5 for Llama 1B (2048).
TUNING_RATES = {"muon": 2e-3, "adamw": 1e-3}
REFERENCE_EXAMPLES = 1_100
SMALLEST_FACTOR, LARGEST_FACTOR = 0.5, 4.0
TUNING_EXTRA_EXPONENT = 0.5
PART_FACTORS = {"lora": {"muon": 5, "adamw": 10}, "head": {"muon": 5, "adamw": 10}}

UPDATES_PER_EPOCH = 64  # that fine-tuning aims at, within the bounds of the batch
SMALLEST_BATCH, LARGEST_BATCH = 4, 64  # examples
FEWEST_UPDATES = 50  # fewer teach a model hardly anything
FEWEST_EPOCHS, MOST_EPOCHS = 3, 10
PLANNED_BATCH = 512  # sequences per step that `plan` assumes
MICRO_BATCH_TOKENS = 8192  # of a forward pass in fine-tuning, if all its examples are as long as the longest


def learning_rates_for(optimizer: str, config: Any) -> tuple[float, float | None]:
    """Peak learning rates of pretraining for a model with `config`: that of AdamW and, if it is used, that of Muon.

    To two digits.
    """
    rate = PRETRAINING_RATES[optimizer] * _relative_width(config) ** -WIDTH_EXPONENTS[optimizer]
    if optimizer == "muon":
        return _two_digits(RATE_BESIDE_MUON * rate), _two_digits(rate)
    return _two_digits(rate), None


def tuning_rate_for(optimizer: str, trainable: str, num_examples: int, config: Any) -> float:
    """Peak learning rate of fine-tuning, to two digits.

    Where only adapters or a head are trained it is higher, and does not rise above that on the reference examples.
    """
    part = PART_FACTORS.get(trainable, {}).get(optimizer, 1)
    amount = min(max(math.sqrt(num_examples / REFERENCE_EXAMPLES), SMALLEST_FACTOR), LARGEST_FACTOR)
    factor = part * (amount if part == 1 else min(amount, 1))
    exponent = WIDTH_EXPONENTS[optimizer] + TUNING_EXTRA_EXPONENT
    return _two_digits(TUNING_RATES[optimizer] * factor * _relative_width(config) ** -exponent)


def _relative_width(config: Any) -> float:
    return float(config.get_text_config().hidden_size / REFERENCE_WIDTH)


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


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
    share = max(1, batch_size // num_processes)  # a batch that is too small is refused later
    fitting = max(1, MICRO_BATCH_TOKENS // longest)
    return max(size for size in range(1, share + 1) if share % size == 0 and (size <= fitting or size == 1))
