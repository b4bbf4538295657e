"""Memory estimated by `scratch-gpt plan` compared with measured memory: `python -m benchmarks.plan_memory`.

Each shape is trained for two steps (the optimizer has state from the second step on) in a fresh process. The measured
value is the peak memory of all tensors, including temporary ones inside operations: on a GPU as reported by the
allocator, on a CPU the running sum of the profiler's allocations and frees. A CPU without bf16 hardware needs more
memory in bf16 than a GPU, because it computes each matrix product in float32 first.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from train.loop.optimizers import build_optimizers
from train.model.recomputation import set_gradient_checkpointing
from train.plan import memory_by_phase
from train.settings.command import run_command
from train.settings.planning import PlanArguments
from train.settings.recipe import parse_recipe

from .report import default_device, in_new_process, print_table

NUM_STEPS = 2
WIDE = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 8192}
GPT2 = {"num_hidden_layers": 2, "residual_dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # preset, changes to it, settings of the run
    "laptop": ("laptop", {}, {}),
    "laptop, checkpointing": ("laptop", {}, {"gradient_checkpointing": "true"}),
    "laptop, selective checkpointing": ("laptop", {}, {"gradient_checkpointing": "selective"}),
    "laptop, bf16": ("laptop", {}, {"precision": "bf16"}),
    "laptop, bf16, checkpointing": ("laptop", {}, {"precision": "bf16", "gradient_checkpointing": "true"}),
    "laptop, micro-batch 2": ("laptop", {}, {"micro_batch_size": 2}),
    "laptop, micro-batch 32": ("laptop", {}, {"micro_batch_size": 32}),
    "laptop, adamw": ("laptop", {}, {"optimizer": "adamw", "micro_batch_size": 2}),
    "laptop, 2 micro-batches": ("laptop", {}, {"global_batch_size": 16}),
    "laptop, grouped queries, relu2": ("laptop", {"num_key_value_heads": 1, "mlp_type": "relu2"}, {}),
    "wide": ("laptop", WIDE, {}),
    "wide, bf16, checkpointing": ("laptop", WIDE, {"precision": "bf16", "gradient_checkpointing": "true"}),
    "wide, bf16, selective checkpointing": (
        "laptop",
        WIDE,
        {"precision": "bf16", "gradient_checkpointing": "selective"},
    ),
    "wide, untied": ("laptop", {**WIDE, "tie_word_embeddings": False}, {"micro_batch_size": 2}),
    "gpt2, 2 layers": ("gpt2", GPT2, {"micro_batch_size": 4}),
}


@dataclass
class NoArguments:
    """This benchmark has no options; CASES lists the shapes."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parse_recipe([NoArguments], argv, description=__doc__ or "")
    rows = []
    for name, (preset, overrides, settings) in CASES.items():
        config, plan = case(preset, overrides, settings)
        estimates = memory_by_phase(config, plan, default_device().type)
        when = max(estimates, key=lambda moment: estimates[moment])
        measured = in_new_process(measured_peak, preset, overrides, settings)
        error = estimates[when] / measured - 1
        rows.append([name, f"{estimates[when] / 1e6:,.1f}", f"{measured / 1e6:,.1f}", f"{error:+.1%}", when])
    print_table(
        f"Peak memory in {NUM_STEPS} training steps, sequences of 256 tokens, 8 per micro-batch, "
        "float32 and Muon unless stated otherwise",
        ["", "estimate (MB)", "measured (MB)", "error", "expected peak"],
        rows,
    )


def case(preset: str, overrides: dict[str, Any], settings: dict[str, Any]) -> tuple[ScratchGPTConfig, PlanArguments]:
    """Config and plan of a row: one process, and one micro-batch per step unless `global_batch_size` is set."""
    run: dict[str, Any] = {"micro_batch_size": 8, "block_size": 256, "precision": "fp32"} | settings
    run.setdefault("global_batch_size", run["micro_batch_size"])
    return ScratchGPTConfig.from_preset(preset, **overrides), PlanArguments(**run)


def measured_peak(
    preset: str, overrides: dict[str, Any], settings: dict[str, Any], device: torch.device | None = None
) -> int:
    """Peak bytes of all tensors on `device` (default: the GPU, if any), counted from before the model is built."""
    config, plan = case(preset, overrides, settings)
    device = device or default_device()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        train(config, plan, device)
        return torch.cuda.max_memory_allocated() - before
    return peak_on_cpu(lambda: train(config, plan, device))


def peak_on_cpu(function: Callable[[], object]) -> int:
    """The maximum of allocated minus freed bytes while `function` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def train(config: ScratchGPTConfig, plan: PlanArguments, device: torch.device) -> None:
    """Run `NUM_STEPS` steps like those of `train.loop`, on random tokens."""
    with device:
        model = ScratchGPTForCausalLM(config).train()
    set_gradient_checkpointing(model, plan.gradient_checkpointing)
    is_low = plan.precision == "bf16"
    optimizers = build_optimizers(
        model,
        optimizer=plan.optimizer,
        learning_rate=1e-3,
        matrix_dtype=torch.bfloat16 if is_low else torch.float32,
    )
    shape = (plan.micro_batch_size, plan.block_size)
    for _ in range(NUM_STEPS):
        for _ in range(plan.num_micro_batches):
            ids = torch.randint(config.vocab_size, shape, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=is_low):
                loss = model(input_ids=ids, labels=ids, shift_labels=ids, skip_logits=True, use_cache=False).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    sys.exit(run_command(main))
