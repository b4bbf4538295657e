"""Evaluate a model during and after training: metrics on held-out examples, and samples."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.state import TrainState
from ..data.examples import Examples
from ..distributed import parallel
from ..distributed.errors import run_on_main
from ..settings.run_folder import METRICS_FILE
from .batches import to_device
from .log import JsonLines, RunLog
from .run import Run


def evaluate_and_log(run: Run, state: TrainState, log: RunLog) -> None:
    """Evaluate, sample, and write both to the logs."""
    metrics = evaluate(run)
    state.eval_loss, state.eval_step = metrics["eval_loss"], state.step
    log.write_evaluation(state, metrics, run.objective.format_metrics(metrics))
    if run.is_split:  # all processes take part in the samples
        log.write_samples(state.step, sample(run))
    run_on_main(run.accelerator, lambda: show(run, state, metrics, log))


def logged_evaluation(folder: Path, step: int) -> dict[str, Any] | None:
    """The line of metrics.jsonl with the evaluation of a step; None if a full disk or a power loss has cost it."""
    records = JsonLines(folder / METRICS_FILE).read()
    return next((record for record in records if record["step"] == step and "eval_loss" in record), None)


def show(run: Run, state: TrainState, metrics: dict[str, Any], log: RunLog) -> None:
    """Draw the metrics, and sample from a whole model. Main process only: the others wait, however long it takes."""
    run.objective.plot(metrics, run.folder, state.step)
    if not run.is_split:
        log.write_samples(state.step, sample(run))


@torch.no_grad()
def evaluate(run: Run, examples: Examples | None = None) -> dict[str, Any]:
    """Metrics for `max_eval_samples` validation examples spread evenly over the split, or for all of `examples`."""
    size, shares = run.arguments.micro_batch_size, run.grid.data_size
    limit = run.arguments.max_eval_samples if examples is None else 0
    examples = run.validation if examples is None else examples
    num_examples = min(len(examples), limit or len(examples))
    starts = range(0, num_examples, size)
    sums: Tensor | None = None
    with eager(), _eval_mode(run.bare_model) as model:
        # with a split model all processes call it equally often; the last ones may have nothing to count
        for number in range(run.grid.data_index, math.ceil(len(starts) / shares) * shares, shares):
            start = starts[min(number, len(starts) - 1)]
            chosen = range(start, min(start + size, num_examples))
            batch = examples.batch([i * len(examples) // num_examples for i in chosen])
            with run.accelerator.autocast():
                counted = run.objective.evaluate_batch(model, to_device(batch, run.accelerator.device))
            counted = counted if number < len(starts) else torch.zeros_like(counted)
            sums = counted if sums is None else sums + counted  # on the device: no batch waits for the one before
    assert sums is not None
    return run.objective.compute_metrics(run.sum_over_processes(sums).tolist())


@torch.no_grad()
def sample(run: Run) -> list[tuple[str, str]]:
    """(prompt, completion) pairs, from the main process alone unless the model is split.

    The random state of training is restored afterwards.
    """
    if not run.accelerator.is_main_process and not run.is_split:
        return []
    device = run.accelerator.device
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(forked), _eval_mode(run.bare_model) as model, eager():
        return run.objective.generate_samples(model)


def eager() -> AbstractContextManager[None]:
    """Do not compile for an evaluation: that takes longer than its few batches, and again for each new length."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
        parallel.free_gathered(model)
