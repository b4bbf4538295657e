"""Estimate memory, traffic, time and the checkpoint interval of a training run before it starts.

    scratch-gpt plan --config gpt2 --num_gpus 8 --dp_shard_size 8
    scratch-gpt plan --config gpt2 --num_gpus 8 --tflops 989 --bandwidth_gb_per_second 50
    scratch-gpt plan --config gpt2 --num_gpus 8 --save_seconds 5 --hours_between_failures 20000

Everything but the time on this machine is computed from closed formulas, so no GPU is needed. Memory follows "Reducing
Activation Recomputation in Large Transformer Models" (https://huggingface.co/papers/2205.05198), adapted to this model;
`python -m benchmarks.plan_memory` compares it with measured runs. FLOPs are 6 N per token
(https://huggingface.co/papers/2001.08361). The checkpoint interval follows Young (1974) and Daly (2006). Times are
only as accurate as --tflops, --mfu and the bandwidth.
"""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch

from hf_scratch_gpt import PRESETS, ScratchGPTConfig
from hf_scratch_gpt.modeling_scratch_gpt import default_chunk_tokens

from .distributed.device import free_memory_of, has_bfloat16_hardware, matmul_rate, resolve_precision
from .loop.forecast import format_duration, measure_speed
from .model.flops import flops_per_token, matrix_shapes, parameter_parts, widths
from .model.new import new_model, parse_overrides, read_config
from .model.recomputation import set_gradient_checkpointing
from .settings.command import run_command
from .settings.defaults import learning_rates_for
from .settings.planning import FP32, PlanArguments
from .settings.recipe import parse_recipe
from .settings.training import GradientCheckpointing, ModelArguments

GB = 10**9  # bytes
CHECKPOINTING = get_args(GradientCheckpointing)  # from the fastest to the one that keeps least
LONGEST_MEASUREMENT = 10.0  # seconds of a micro-batch
USABLE_FRACTION = 0.9  # of a GPU's memory; assumed: the driver, libraries and fragmentation take the rest


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan, and a warning if it does not fit into memory."""
    model, plan = parse_recipe([ModelArguments, PlanArguments], argv, description=__doc__ or "")
    config = plan_config(model, plan)
    print("\n".join(f"{name:<37}{value}" for name, value in plan_rows(config, plan).items()))
    if not fits(config, plan):
        peak = max(memory_by_phase(config, plan).values())
        print(
            f"\nWARNING: {peak / GB:.1f} GB exceed {USABLE_FRACTION:.0%} of --gpu_memory_gb {plan.gpu_memory_gb:g}. "
            f"It fits with: {remedy(config, plan)}"
        )


def default_rates(optimizer: str, config: ScratchGPTConfig) -> str:
    """The learning rates of a run without --learning_rate, as text."""
    rate, matrix_rate = learning_rates_for(optimizer, config)
    return f"{rate:g} (AdamW)" + (f", {matrix_rate:g} (Muon)" if matrix_rate else "")


def plan_config(model: ModelArguments, plan: PlanArguments) -> ScratchGPTConfig:
    """The config. Without a tokenizer, --config_overrides may set vocab_size.

    Raises:
        ValueError: no such preset, unknown keys, or values that do not fit together or to the plan.
        OSError: config.json cannot be read.
    """
    name = model.config or model.model or ""
    values = PRESETS.get(name) or read_config(name)
    config = ScratchGPTConfig.from_values(values, **parse_overrides(model.config_overrides or ""))
    if plan.block_size > config.max_position_embeddings:
        raise ValueError(
            f"--block_size is {plan.block_size}, but max_position_embeddings is {config.max_position_embeddings}: "
            f"lower it, or set --config_overrides max_position_embeddings={plan.block_size}."
        )
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % plan.tp_size:
            raise ValueError(f"--tp_size ({plan.tp_size}) must divide {name} ({getattr(config, name)}): change it.")
    return config


def plan_rows(config: ScratchGPTConfig, plan: PlanArguments) -> dict[str, str]:
    """The rows of the printed table."""
    memory, tokens = memory_by_phase(config, plan), plan.global_batch_size * plan.block_size
    rows = {
        "parameters": f"{config.parameter_count:,}",
        "default learning rate": default_rates(plan.optimizer, config),
        "weights per GPU": _gb(split_bytes(config, plan, FP32, FP32)) + ", gradients the same",
        "optimizer state per GPU": _gb(optimizer_bytes(config, plan)),
        "activations kept per GPU": _gb(kept_activation_bytes(config, plan)),
    }
    rows |= {f"all tensors {phase}": _gb(size) for phase, size in memory.items()}
    rows["peak memory per GPU"] = f"{_gb(max(memory.values()))} of {plan.gpu_memory_gb:g} GB"
    for name, size in traffic(config, plan).items():
        rows[name] = f"{_gb(size)} per GPU and step, {size / config.parameter_count:.2f} bytes per parameter"
    rows["FLOPs per token"] = f"{flops_per_token(config, plan.block_size, plan.gradient_checkpointing == 'true'):.3g}"
    steps = math.ceil(plan.tokens / tokens) if plan.tokens else plan.max_steps
    rows["tokens of the run"] = f"{steps * tokens:,} = {steps:,} steps x {tokens:,}"
    if plan.tflops:
        rows |= time_rows(config, plan, steps)
    elif plan.num_gpus == 1 and plan.measure:
        rows["time on this machine"] = measured_time(config, plan, steps)
    whole = replace(plan, num_gpus=1, dp_shard_size=1, tp_size=1)
    rows["checkpoint size"] = _gb(FP32 * config.parameter_count + optimizer_bytes(config, whole))
    if plan.save_seconds:
        formula = f"sqrt(2 x {plan.save_seconds:g} s x {plan.hours_between_failures:g} h x 3600 / {plan.num_gpus} GPUs)"
        rows["time between checkpoints"] = f"{checkpoint_interval(plan):,.0f} s = {formula} (Young, Daly)"
    if plan.save_seconds and plan.tflops:
        rows["--save_steps"] = f"{max(1, round(checkpoint_interval(plan) / sum(step_seconds(config, plan)))):,} steps"
    return rows


def time_rows(config: ScratchGPTConfig, plan: PlanArguments, steps: int) -> dict[str, str]:
    """The rows that require --tflops, with their formulas."""
    computing, sending = step_seconds(config, plan)
    seconds, tokens = computing + sending, plan.global_batch_size * plan.block_size
    return {
        "computing per step": f"{computing:.3g} s = FLOPs / (GPUs x tflops x mfu {plan.mfu:g})",
        "sending per step": f"{sending:.3g} s = bytes / bandwidth x (1 - overlap {plan.overlap:g})",
        "tokens per second": f"{tokens / seconds:,.0f} = tokens per step / (computing + sending)",
        "time of the run": f"{(hours := steps * seconds / 3600):.3g} hours, {hours * plan.num_gpus:.3g} GPU hours",
    }


def measured_time(config: ScratchGPTConfig, plan: PlanArguments, steps: int) -> str:
    """The time of the run on this machine, from a few steps of a model with random weights."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    precision: Any = resolve_precision("auto", device)
    here = replace(plan, precision=precision)
    free = free_memory_of(device)
    if max(memory_by_phase(config, here, device.type).values()) > USABLE_FRACTION * free:
        return f"not measured: the run does not fit into the {free / GB:.3g} GB that are free on {device}"
    tokens = plan.micro_batch_tokens
    shortest = tokens * flops_per_token(config, plan.block_size) / matmul_rate(device, precision)
    if shortest > LONGEST_MEASUREMENT:
        hours = shortest * plan.num_micro_batches * steps / 3600
        return f"not measured: a micro-batch takes {shortest:.0f} s or more, the run {hours:,.0f} hours or more"
    model = new_model(config, seed=0)
    set_gradient_checkpointing(model, plan.gradient_checkpointing)
    speed = measure_speed(
        model,
        optimizer=plan.optimizer,
        micro_batch_size=plan.micro_batch_size,
        block_size=plan.block_size,
        precision=precision,
        device=device,
    )
    step = speed.step(plan.num_micro_batches)
    return (
        f"{format_duration(steps * step)} = {steps:,} steps x {step:.3g} s, measured ({precision} on {device}, "
        "without evaluations)"
    )


def _gb(size: float) -> str:
    return f"{size / GB:.3g} GB"


def fits(config: ScratchGPTConfig, plan: PlanArguments) -> bool:
    """Whether the peak memory stays within the usable part of a GPU."""
    return max(memory_by_phase(config, plan).values()) <= USABLE_FRACTION * plan.gpu_memory_gb * GB


def remedy(config: ScratchGPTConfig, plan: PlanArguments) -> str:
    """Options with which the plan fits: the largest micro-batch first, then little recomputing, then few shards."""
    sizes = [size for size in range(plan.micro_batch_size, 0, -1) if plan.micro_batch_size % size == 0]
    shards = sorted({plan.dp_shard_size, plan.num_gpus // plan.tp_size})
    ways = CHECKPOINTING[CHECKPOINTING.index(plan.gradient_checkpointing) :]
    for size, recompute, shard in itertools.product(sizes, ways, shards):
        changed: dict[str, Any] = {
            "micro_batch_size": size,
            "gradient_checkpointing": recompute,
            "dp_shard_size": shard,
        }
        if fits(config, replace(plan, **changed)):
            return " ".join(f"--{name} {value}" for name, value in changed.items() if value != getattr(plan, name))
    return "more GPUs and a larger --dp_shard_size, a smaller --block_size, or a smaller model."


# Memory
def memory_by_phase(config: ScratchGPTConfig, plan: PlanArguments, device: str = "cuda") -> dict[str, float]:
    """Bytes per GPU in each phase of a step that can be its peak.

    From the second micro-batch on, the gradients of earlier ones stay in memory; FSDP2 shards them only after the last.
    DDP keeps a second copy in its buckets. AdamW's gradients are freed before Muon's update.
    """
    is_ddp = plan.data_size > 1 and plan.dp_shard_size == plan.tp_size == 1
    weights = gradients = split_bytes(config, plan, FP32, FP32)
    always = weights + optimizer_bytes(config, plan) + (gradients if is_ddp else 0)
    summed = split_bytes(config, replace(plan, dp_shard_size=1), FP32, FP32) if plan.num_micro_batches > 1 else 0
    copies, kept = weight_copy_bytes(config, plan), kept_activation_bytes(config, plan)
    head = FP32 * config.vocab_size * config.hidden_size
    flowing = 4 * FP32 * config.hidden_size + 2 * plan.compute_bytes * widths(config)[2] / plan.tp_size
    layer = plan.micro_batch_tokens * (layer_bytes_per_token(config, plan) + flowing)
    recomputes = plan.gradient_checkpointing != "false"
    last_layer = layer - kept / config.num_hidden_layers
    copies_left = 0 if recomputes and plan.dp_shard_size == 1 else copies
    return {
        "at the loss": always + summed + copies + kept + loss_bytes(config, plan, device),
        "in backward, last layer": always + summed + copies_left + kept + head + last_layer,
        "in backward, first layer": always + max(gradients, summed) + max(head, layer),
        "in the optimizer": always + max(gradients, split_bytes(config, plan, FP32, 0) + muon_bytes(config, plan)),
    }


def split_bytes(config: ScratchGPTConfig, plan: PlanArguments, per_matrix_weight: float, per_other: float) -> float:
    """Bytes per GPU of a quantity with a value per weight: tensor parallelism splits matrices, FSDP2 everything."""
    matrices, others = parameter_parts(config)
    return (per_matrix_weight * matrices / plan.tp_size + per_other * others) / plan.dp_shard_size


def optimizer_bytes(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """Muon keeps one float32 per weight of a matrix (momentum), AdamW two for each of its weights (both moments)."""
    return split_bytes(config, plan, FP32 if plan.optimizer == "muon" else 2 * FP32, 2 * FP32)


def weight_copy_bytes(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """Copies of weights for the forward pass: those that autocast makes of all weights, or that FSDP2 has gathered.

    FSDP2 keeps two layers, as it fetches the next while one computes, and always the weights outside of layers.
    """
    matrices, others = parameter_parts(config)
    if plan.dp_shard_size > 1:
        return plan.compute_bytes * (2 * matrices / plan.tp_size / config.num_hidden_layers + others)
    copied = matrices / plan.tp_size + config.vocab_size * config.hidden_size
    return 0 if plan.compute_bytes == FP32 else plan.compute_bytes * copied


def kept_activation_bytes(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """Activations of a micro-batch that all layers keep until their backward pass."""
    per_token: dict[str, Callable[[], float]] = {
        "false": lambda: layer_bytes_per_token(config, plan),
        "selective": lambda: FP32 * config.hidden_size + product_bytes_per_token(config, plan),
        "true": lambda: FP32 * config.hidden_size,  # the layer's input
    }
    return config.num_hidden_layers * plan.micro_batch_tokens * per_token[plan.gradient_checkpointing]()


def product_bytes_per_token(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """What `keep_products` keeps of a layer for a token: wide results, those of attention, and the softmax's sums."""
    hidden, (query, key, inner) = config.hidden_size, widths(config)
    inputs = [query, key, key, *[inner] * (2 if config.mlp_type == "swiglu" else 1)]
    split = query + sum(width for width in inputs if width >= hidden)
    output = hidden if hidden >= query else 0
    per_head = FP32 * config.num_attention_heads
    return plan.compute_bytes * output + (plan.compute_bytes * split + per_head) / plan.tp_size


def layer_bytes_per_token(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """Activations of a token that a layer keeps for backward: section 4.1 of 2205.05198, adapted to this model.

    Each norm keeps its input, in float32 outside of attention. Each matrix keeps its input: in float32 the matrices
    after a norm share it, under autocast each has a copy. Dropout keeps a byte per element. FSDP2 in bf16 keeps less.
    """
    compute, (query, key, inner) = plan.compute_bytes, widths(config)
    num_matrices, kept_inside = (5, 3) if config.mlp_type == "swiglu" else (4, 2)
    inputs = 2 * FP32 if compute == FP32 else num_matrices * compute
    norms = config.hidden_size * (2 * FP32 + inputs + 2 * (config.residual_dropout > 0))
    head_norms = compute * (query + key) * config.qk_norm
    # queries, keys, values, output, and the softmax's sums
    attention = compute * (2 * query + 2 * key) + head_norms + FP32 * config.num_attention_heads
    return norms + (attention + kept_inside * compute * inner) / plan.tp_size


def loss_bytes(config: ScratchGPTConfig, plan: PlanArguments, device: str = "cuda") -> float:
    """Tensors of the chunked loss (`skip_logits`) and the last norm.

    Besides the gradient of the head: a chunk's logits and their exponentials in float32, and under autocast the
    product, which a CPU without bfloat16 units computes in float32 first.
    """
    chunk = min(plan.micro_batch_tokens, default_chunk_tokens(config.vocab_size, torch.device(device)))
    is_low = plan.compute_bytes < FP32
    is_emulated = is_low and device == "cpu" and not has_bfloat16_hardware(torch.device(device))
    per_logit = 8 + 2 * is_low + 6 * is_emulated
    last_norm = plan.micro_batch_tokens * config.hidden_size * (3 * FP32 + plan.compute_bytes)
    return last_norm + config.vocab_size * (FP32 * config.hidden_size + per_logit * chunk)


def muon_bytes(config: ScratchGPTConfig, plan: PlanArguments) -> float:
    """Temporary tensors while Muon orthogonalizes the largest stack of matrices; each process does so for whole stacks.

    The momentum in float32; the stack, its iterate, the next iterate, and two square products. Where the rounds do
    without the iterate, six square products.
    """

    def per_weight(rows: int, columns: int) -> float:
        square = min(rows, columns) / max(rows, columns)
        is_wide = plan.compute_bytes == FP32 and square <= 0.5
        return FP32 + plan.compute_bytes * max(3 + 2 * square, (2 + 6 * square) * is_wide)

    sizes = [count * math.prod(shape) * per_weight(*shape) for shape, count in matrix_shapes(config).items()]
    return config.num_hidden_layers * max(sizes) if plan.optimizer == "muon" else 0


# Traffic and time
def traffic(config: ScratchGPTConfig, plan: PlanArguments) -> dict[str, float]:
    """Bytes that one GPU sends per step in ring collectives: (n - 1) / n of the tensor, twice for an all-reduce.

    FSDP2 gathers the layers in each forward and each backward pass, other weights once for both, and scatters gradients
    once per step. Tensor parallelism sums two outputs of each layer in each pass (section 4.2.1 of 2205.05198).
    """
    matrices, others = parameter_parts(config)
    matrices_here, shards, tp = matrices / plan.tp_size, plan.dp_shard_size, plan.tp_size
    replicas, muon_parts = plan.data_size // shards, shards * tp if plan.optimizer == "muon" else 1
    outputs = config.num_hidden_layers * (4 + 2 * (plan.gradient_checkpointing != "false"))
    output = plan.compute_bytes * plan.micro_batch_tokens * config.hidden_size
    gathered = plan.compute_bytes * (2 * matrices_here + others)
    sent = {
        "all-gather of weights": plan.num_micro_batches * _ring(shards) * gathered,
        "reduce-scatter of gradients": _ring(shards) * FP32 * (matrices_here + others),
        "all-reduce of gradients": 2 * _ring(replicas) * FP32 * (matrices_here + others) / shards,
        "all-gather of Muon's momentum": _ring(muon_parts) * FP32 * matrices,
        "all-reduce of activations": plan.num_micro_batches * 2 * _ring(tp) * outputs * output,
    }
    return {name: size for name, size in sent.items() if size}


def _ring(parts: int) -> float:
    return (parts - 1) / parts


def step_seconds(config: ScratchGPTConfig, plan: PlanArguments) -> tuple[float, float]:
    """Seconds of (computing, sending) in a step; nan without --tflops."""
    tokens = plan.global_batch_size * plan.block_size
    flops = tokens * flops_per_token(config, plan.block_size, plan.gradient_checkpointing == "true")
    sent = sum(traffic(config, plan).values()) * (1 - plan.overlap)
    speed = plan.num_gpus * (plan.tflops or math.nan) * 1e12 * plan.mfu
    return flops / speed, sent / ((plan.bandwidth_gb_per_second or math.inf) * GB)


def checkpoint_interval(plan: PlanArguments) -> float:
    """Seconds between checkpoints that lose the least time: sqrt(2 x save_seconds x mean seconds between failures)."""
    between_failures = (plan.hours_between_failures or math.nan) * 3600 / plan.num_gpus
    return math.sqrt(2 * (plan.save_seconds or math.nan) * between_failures)


if __name__ == "__main__":
    sys.exit(run_command(main))
