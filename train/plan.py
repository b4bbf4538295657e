"""What a training run will need, before it is started: memory, traffic, time, and how often to save.

    scratch-gpt plan --config gpt2 --num_gpus 8 --dp_shard_size 8 --tflops 989 --bandwidth_gb_per_second 50 \
        --save_seconds 5 --hours_between_failures 20000

Closed formulas; no model is built, no GPU asked. Memory: "Reducing Activation Recomputation in Large Transformer
Models" (https://huggingface.co/papers/2205.05198), counted again for the operations of our network, and held against
measured runs by `python -m benchmarks.plan_memory`. Operations: 6 N per token (https://huggingface.co/papers/2001.08361).
Interval of checkpoints: Young (1974), Daly (2006). Times are as good as --tflops, --mfu and the bandwidth given.
"""

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hf_scratch_gpt import PRESETS, ScratchGPTConfig, ScratchGPTForCausalLM

from .model.flops import flops_per_token, matrix_shapes, parameter_parts, widths
from .model.new import parse_overrides, read_config
from .settings.command import run_command
from .settings.recipe import option, parse_recipe
from .settings.training import ModelArguments

GB = 10**9  # bytes
FP32 = 4  # bytes
USABLE_SHARE = 0.9  # of a GPU's memory; assumed: the driver, the libraries and fragmentation take the rest


@dataclass
class PlanArguments:
    """The run and the machines; what train.pretrain has too means the same here."""

    num_gpus: int = option("GPUs, one process each.", 1)
    dp_shard_size: int = option("Processes over which weights, gradients and optimizer state are split.", 1)
    tp_size: int = option("Processes that share each matrix of a block.", 1)
    gpu_memory_gb: float = option("Memory of one GPU, in 10^9 bytes.", 80.0)
    micro_batch_size: int = option("Sequences per forward pass of one process.", 8)
    global_batch_size: int = option("Sequences per step, over all processes.", 512)
    block_size: int = option("Tokens per sequence.", 1024)
    optimizer: Literal["muon", "adamw"] = option("The optimizer.", "muon")
    precision: Literal["bf16", "fp16", "fp32"] = option("Number format of the forward pass.", "bf16")
    gradient_checkpointing: bool = option("Compute activations again instead of keeping them.", False)
    max_steps: int = option("Steps of the run.", 1000)
    tokens: float | None = option("Tokens of the run, such as 1e10; replaces --max_steps.")
    tflops: float | None = option("10^12 operations per second of one GPU in matrix products, measured or datasheet.")
    mfu: float = option("Share of --tflops that training is assumed to reach.", 0.4)
    bandwidth_gb_per_second: float | None = option("What one GPU can send to others, in 10^9 bytes per second.")
    overlap: float = option("Share of the traffic assumed to hide behind computation.", 0.0)
    save_seconds: float | None = option("Seconds that training waits for a checkpoint.")
    hours_between_failures: float | None = option("Mean hours between two failures of one GPU with its machine.")

    def __post_init__(self) -> None:
        """Refuse values out of range or that do not fit each other."""
        for name, value in asdict(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0 and name != "overlap":
                raise ValueError(f"--{name} is {value}: it must be positive.")
        for name in ("mfu", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is {getattr(self, name)}: it is a share, from 0 to 1.")
        if self.num_gpus % (parts := self.dp_shard_size * self.tp_size):
            raise ValueError(
                f"--num_gpus ({self.num_gpus}) must be a multiple of --dp_shard_size ({self.dp_shard_size}) x "
                f"--tp_size ({self.tp_size}) = {parts}: change one of them."
            )
        if self.global_batch_size % (at_once := self.micro_batch_size * self.data_size):
            raise ValueError(
                f"--global_batch_size ({self.global_batch_size}) must be a multiple of --micro_batch_size ({self.micro_batch_size}) "
                f"x data-parallel processes ({self.data_size}) = {at_once}: change one of them."
            )
        if self.tflops and self.num_gpus > 1 and not self.bandwidth_gb_per_second:
            raise ValueError(f"--tflops with --num_gpus {self.num_gpus} needs --bandwidth_gb_per_second for a time.")
        if bool(self.hours_between_failures) != bool(self.save_seconds):
            raise ValueError("--hours_between_failures and --save_seconds only have an effect together: give both.")

    @property
    def data_size(self) -> int:
        """Processes that see different examples."""
        return self.num_gpus // self.tp_size

    @property
    def micro_batches(self) -> int:
        """Forward passes of one process per step."""
        return self.global_batch_size // (self.micro_batch_size * self.data_size)

    @property
    def micro_tokens(self) -> int:
        """Tokens per forward pass."""
        return self.micro_batch_size * self.block_size

    @property
    def low(self) -> int:
        """Bytes of a number in matrix products."""
        return FP32 if self.precision == "fp32" else 2


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan, and a warning where it does not fit into memory."""
    model, plan = parse_recipe([ModelArguments, PlanArguments], argv, description=__doc__ or "")
    config = plan_config(model, plan)
    print("\n".join(f"{name:<37}{value}" for name, value in report(config, plan).items()))
    if not fits(config, plan):
        print(
            f"\nWARNING: {max(moments(config, plan).values()) / GB:.1f} GB do not fit into {USABLE_SHARE:.0%} of "
            f"--gpu_memory_gb {plan.gpu_memory_gb:g}. What would: {remedy(config, plan)}"
        )


def plan_config(model: ModelArguments, plan: PlanArguments) -> ScratchGPTConfig:
    """The config; there is no tokenizer here, so --config_overrides may set vocab_size.

    Raises:
        ValueError: no such preset, unknown keys, values that do not fit each other or the plan.
        OSError: config.json cannot be read.
    """
    values = PRESETS.get(model.config) or read_config(model.config)
    config = ScratchGPTConfig.from_values(values | parse_overrides(model.config_overrides or ""))
    if plan.block_size > config.max_position_embeddings:
        raise ValueError(
            f"--block_size is {plan.block_size}, but max_position_embeddings is {config.max_position_embeddings}: "
            f"shorten it, or --config_overrides max_position_embeddings={plan.block_size}."
        )
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % plan.tp_size:
            raise ValueError(f"--tp_size ({plan.tp_size}) must divide {name} ({getattr(config, name)}): change it.")
    return config


def split_bytes(config: ScratchGPTConfig, plan: PlanArguments, per_matrix_weight: float, per_other: float) -> float:
    """Bytes per GPU of something that each weight has: tensor parallelism splits matrices, FSDP2 everything."""
    matrices, others = parameter_parts(config)
    return (per_matrix_weight * matrices / plan.tp_size + per_other * others) / plan.dp_shard_size


def optimizer_bytes(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """Muon keeps one float32 (the momentum) per weight of a matrix, AdamW two (both means) per weight of its own."""
    return split_bytes(config, plan, FP32 if plan.optimizer == "muon" else 2 * FP32, 2 * FP32)


def block_bytes_per_token(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """What a block keeps of a token for the backward pass: section 4.1 of 2205.05198, counted for our block.

    Each norm keeps its input and the normalised input in float32. Each matrix keeps its input: in float32 the readers
    of one norm share it, under autocast each has a copy. Dropout keeps a byte per element. FSDP2 in bf16 keeps less.
    """
    low, (query, keys, inner) = plan.low, widths(config)
    readers, kept_inside = (5, 4) if config.mlp_type == "swiglu" else (4, 2)
    inputs = 2 * FP32 if low == FP32 else readers * low
    norms = config.hidden_size * (2 * 2 * FP32 + inputs + 2 * (config.residual_dropout > 0))
    head_norms = (FP32 + low) * (query + keys) * config.qk_norm
    attention = low * (2 * query + 2 * keys) + head_norms + FP32 * config.num_attention_heads  # q, k, v, output, sums
    return norms + (attention + kept_inside * low * inner) / plan.tp_size


def kept_activation_bytes(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """What all blocks keep of a micro-batch; with gradient checkpointing only their inputs."""
    per_block = FP32 * config.hidden_size if plan.gradient_checkpointing else block_bytes_per_token(config, plan)
    return config.num_hidden_layers * plan.micro_tokens * per_block


def loss_bytes(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """What `skip_logits` holds while it works on a chunk of tokens, the last norm included.

    Beside the gradient of the head: the chunk's logits and their exponentials in float32, under autocast also the
    product.
    """
    chunk = min(plan.micro_tokens, ScratchGPTForCausalLM.loss_chunk_tokens)
    per_logit = 8 if plan.low == FP32 else 10
    last_norm = plan.micro_tokens * config.hidden_size * (3 * FP32 + plan.low)
    return last_norm + config.vocab_size * (FP32 * config.hidden_size + per_logit * chunk)


def computing_weight_bytes(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """Further copies of weights, to compute with: of all, made by autocast; or what FSDP2 has gathered.

    FSDP2 holds two blocks, as the next is fetched while one computes, and what is in no block all the time.
    """
    matrices, others = parameter_parts(config)
    if plan.dp_shard_size > 1:
        return plan.low * (2 * matrices / plan.tp_size / config.num_hidden_layers + others)
    copied = matrices / plan.tp_size + config.vocab_size * config.hidden_size
    return 0 if plan.low == FP32 else plan.low * copied


def muon_bytes(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """Temporary tensors while Muon makes the largest stack of equal matrices orthogonal; each process does it whole.

    The momentum in float32; then the stack, its iterate, the next iterate, and two square products.
    """
    sizes = [
        count * rows * columns * (FP32 + plan.low * (3 + 2 * min(rows, columns) / max(rows, columns)))
        for (rows, columns), count in matrix_shapes(config).items()
    ]
    return config.num_hidden_layers * max(sizes) if plan.optimizer == "muon" else 0


def moments(config: ScratchGPTConfig, plan: PlanArguments) -> dict[str, float]:
    """Bytes per GPU at each moment that can be the peak of a step.

    From the second micro-batch of a step on, the gradients of those before are there all the time; FSDP2 splits them
    only after the last. DDP holds them twice: it sends from buckets. AdamW's gradients are gone before Muon's update.
    """
    is_ddp = plan.data_size > 1 and plan.dp_shard_size == plan.tp_size == 1
    weights = gradients = split_bytes(config, plan, FP32, FP32)
    always = weights + optimizer_bytes(config, plan) + (gradients if is_ddp else 0)
    summed = split_bytes(config, replace(plan, dp_shard_size=1), FP32, FP32) if plan.micro_batches > 1 else 0
    copies, kept = computing_weight_bytes(config, plan), kept_activation_bytes(config, plan)
    head = FP32 * config.vocab_size * config.hidden_size
    flowing = 4 * FP32 * config.hidden_size + 2 * plan.low * widths(config)[2] / plan.tp_size
    block = plan.micro_tokens * (block_bytes_per_token(config, plan) + flowing)
    again = block if plan.gradient_checkpointing else plan.micro_tokens * flowing
    copies_left = 0 if plan.gradient_checkpointing and plan.dp_shard_size == 1 else copies
    return {
        "at the loss": always + summed + copies + kept + loss_bytes(config, plan),
        "in backward, last block": always + summed + copies_left + kept + head + again,
        "in backward, first block": always + max(gradients, summed) + max(head, block),
        "in the optimizer": always + max(gradients, split_bytes(config, plan, FP32, 0) + muon_bytes(config, plan)),
    }


def fits(config: ScratchGPTConfig, plan: PlanArguments) -> bool:
    """Whether the peak stays within the usable share of a GPU."""
    return max(moments(config, plan).values()) <= USABLE_SHARE * plan.gpu_memory_gb * GB


def remedy(config: ScratchGPTConfig, plan: PlanArguments) -> str:
    """The options that make it fit: with the largest micro-batch, and rather by splitting than by computing again."""
    sizes = [size for size in range(plan.micro_batch_size, 0, -1) if plan.micro_batch_size % size == 0]
    splits = sorted({plan.dp_shard_size, plan.num_gpus // plan.tp_size})
    for size, again, split in itertools.product(sizes, sorted({plan.gradient_checkpointing, True}), splits):
        changed: dict[str, Any] = {"micro_batch_size": size, "gradient_checkpointing": again, "dp_shard_size": split}
        if fits(config, replace(plan, **changed)):
            return " ".join(f"--{name} {value}" for name, value in changed.items() if value != getattr(plan, name))
    return "more GPUs with a larger --dp_shard_size, a shorter --block_size, or a smaller model."


def traffic(config: ScratchGPTConfig, plan: PlanArguments) -> dict[str, float]:
    """Bytes that one GPU sends per step, over rings: (n - 1) / n of what is gathered or scattered, twice to reduce.

    FSDP2 gathers the blocks for each forward and each backward pass, the rest once for both, and scatters gradients
    once per step. Tensor parallelism adds up two outputs of each block in each pass (section 4.2.1 of 2205.05198).
    """
    matrices, others = parameter_parts(config)
    matrices_here, shards, tp = matrices / plan.tp_size, plan.dp_shard_size, plan.tp_size
    replicas, muon_parts = plan.data_size // shards, shards * tp if plan.optimizer == "muon" else 1
    outputs = config.num_hidden_layers * (4 + 2 * plan.gradient_checkpointing)
    output = plan.low * plan.micro_tokens * config.hidden_size
    sent = {
        "all-gather of weights": plan.micro_batches * _share(shards) * plan.low * (2 * matrices_here + others),
        "reduce-scatter of gradients": _share(shards) * FP32 * (matrices_here + others),
        "all-reduce of gradients": 2 * _share(replicas) * FP32 * (matrices_here + others) / shards,
        "all-gather of Muon's momentum": _share(muon_parts) * FP32 * matrices,
        "all-reduce of activations": plan.micro_batches * 2 * _share(tp) * outputs * output,
    }
    return {name: size for name, size in sent.items() if size}


def _share(parts: int) -> float:
    return (parts - 1) / parts


def step_seconds(config: ScratchGPTConfig, plan: PlanArguments) -> tuple[float, float]:
    """(computing, sending) in a step; not a number without --tflops."""
    operations = (
        plan.global_batch_size * plan.block_size * flops_per_token(config, plan.block_size, plan.gradient_checkpointing)
    )
    sent = sum(traffic(config, plan).values()) * (1 - plan.overlap)
    rate = plan.num_gpus * (plan.tflops or math.nan) * 1e12 * plan.mfu
    return operations / rate, sent / ((plan.bandwidth_gb_per_second or math.inf) * GB)


def checkpoint_interval(plan: PlanArguments) -> float:
    """sqrt(2 x save_seconds x mean seconds between failures of any GPU): loses the least time (Young, Daly)."""
    between_failures = (plan.hours_between_failures or math.nan) * 3600 / plan.num_gpus
    return math.sqrt(2 * (plan.save_seconds or math.nan) * between_failures)


def report(config: ScratchGPTConfig, plan: PlanArguments) -> dict[str, str]:
    """The rows of the table."""
    found, tokens = moments(config, plan), plan.global_batch_size * plan.block_size
    rows = {
        "parameters": f"{config.parameter_count:,}",
        "weights per GPU": _gb(split_bytes(config, plan, FP32, FP32)) + ", gradients as much",
        "optimizer state per GPU": _gb(optimizer_bytes(config, plan)),
        "activations kept per GPU": _gb(kept_activation_bytes(config, plan)),
    }
    rows |= {f"all tensors {moment}": _gb(size) for moment, size in found.items()}
    rows["peak of memory per GPU"] = f"{_gb(max(found.values()))} of {plan.gpu_memory_gb:g} GB"
    for name, size in traffic(config, plan).items():
        rows[name] = f"{_gb(size)} per GPU and step, {size / config.parameter_count:.2f} bytes per parameter"
    rows["operations per token"] = f"{flops_per_token(config, plan.block_size, plan.gradient_checkpointing):.3g}"
    steps = math.ceil(plan.tokens / tokens) if plan.tokens else plan.max_steps
    rows["tokens of the run"] = f"{steps * tokens:,} = {steps:,} steps x {tokens:,}"
    if plan.tflops:
        rows |= time_rows(config, plan, steps)
    whole = replace(plan, num_gpus=1, dp_shard_size=1, tp_size=1)
    rows["checkpoint"] = _gb(FP32 * config.parameter_count + optimizer_bytes(config, whole))
    if plan.save_seconds:
        formula = f"sqrt(2 x {plan.save_seconds:g} s x {plan.hours_between_failures:g} h x 3600 / {plan.num_gpus} GPUs)"
        rows["time between checkpoints"] = f"{checkpoint_interval(plan):,.0f} s = {formula} (Young, Daly)"
    if plan.save_seconds and plan.tflops:
        rows["--save_steps"] = f"{max(1, round(checkpoint_interval(plan) / sum(step_seconds(config, plan)))):,} steps"
    return rows


def time_rows(config: ScratchGPTConfig, plan: PlanArguments, steps: int) -> dict[str, str]:
    """What follows from --tflops, with the formulas."""
    computing, sending = step_seconds(config, plan)
    seconds, tokens = computing + sending, plan.global_batch_size * plan.block_size
    return {
        "computing per step": f"{computing:.3g} s = operations / (GPUs x tflops x mfu {plan.mfu:g})",
        "sending per step": f"{sending:.3g} s = bytes / bandwidth x (1 - overlap {plan.overlap:g})",
        "tokens per second": f"{tokens / seconds:,.0f} = tokens per step / (computing + sending)",
        "time of the run": f"{(hours := steps * seconds / 3600):.3g} hours, {hours * plan.num_gpus:.3g} GPU hours",
    }


def _gb(size: float) -> str:
    return f"{size / GB:.3g} GB"


if __name__ == "__main__":
    sys.exit(run_command(main))
