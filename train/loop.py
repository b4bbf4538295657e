"""The training loop: what happens in a step, and in which order. Pretraining and every kind of fine-tuning use it.

The step is the only clock. Learning rate, examples, dropout and what is due are pure functions of
(seed, step, micro-batch), so progress is one integer, and to continue a run takes only the weights,
the optimizer tensors and that integer. What a loss is, and what an evaluation tells, is the run's
objective. Reading order: `train`, `train_step`, `evaluate`, `sample`; how a run is saved and continued
stands in `train.resume`.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from . import checkpoint, parallel, stability
from .metrics import RunLog
from .resume import finish_saving, save
from .run import Examples, Run, TrainState
from .schedule import is_due, learning_rate_at, seed_at

STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
]  # Windows has no SIGUSR1


@dataclass
class StepResult:
    """What one step reports, over all micro-batches and processes."""

    loss: float  # nats per target
    grad_norm: float  # before clipping
    num_tokens: int
    wants_stop: bool  # some process was asked to stop
    skipped: str = ""  # why the update was left out
    seconds: float = 0.0


def train(run: Run, state: TrainState) -> TrainState:
    """Trains from `state` to the last step, or until a signal asks to stop; saves in both cases.

    Raises:
        ValueError: too many updates in a row had to be left out, or memory was not enough.
        OSError: a checkpoint or log cannot be written.
    """
    arguments, last = run.arguments, run.arguments.max_steps
    log = RunLog(
        run.folder, run.accelerator, first_step=state.step, last_step=last, peak_speed=run.peak_tokens_per_second
    )
    with stop_on_signals() as stop:
        if run.is_tuning and state.step == 0:
            report_evaluation(run, state, log)
        while state.step < last:
            set_learning_rate(run, state.step)
            result = train_step(run, state, wants_stop=stop.is_set())
            state.step += 1
            state.tokens_seen += result.num_tokens
            log.add(result.num_tokens, result.seconds)
            if result.skipped:
                log.write_skip(state, result.skipped)
                check_skipped(run, state, result.skipped)
            elif is_due(arguments.log_every, state.step, last):
                log.write_step(state, step_figures(run, result))
            if is_due(arguments.eval_every, state.step, last):
                report_evaluation(run, state, log)
            if is_due(arguments.save_every, state.step, last) or result.wants_stop:
                save(run, state)
            if result.wants_stop:
                break
    finish_saving(run)
    log.close(state.step)
    return state


def report_evaluation(run: Run, state: TrainState, log: RunLog) -> None:
    """Evaluates, and writes down what that tells."""
    figures = evaluate(run)
    state.eval_loss, state.eval_step = figures["eval_loss"], state.step
    log.write_evaluation(state, figures, run.objective.in_words(figures))
    if run.accelerator.is_main_process:
        run.objective.illustrate(figures, run.folder, state.step)
    log.write_samples(state.step, sample(run))


def step_figures(run: Run, result: StepResult) -> dict[str, float]:
    """What is logged of a step."""
    rate = run.optimizers[0].param_groups[0]["lr"]
    return {"loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": rate}


def check_skipped(run: Run, state: TrainState, reason: str) -> None:
    """Ends a run that does not recover.

    Raises:
        ValueError: `max_skipped` updates in a row were left out.
    """
    if state.skipped_in_a_row < run.arguments.max_skipped:
        return
    good = checkpoint.last_good_checkpoint(run.folder)
    raise ValueError(
        f"{state.skipped_in_a_row} updates in a row were left out, up to step {state.step} ({reason}): training has "
        f"diverged. The last good checkpoint is {good or 'none'}. Start a new run with a lower "
        "--learning_rate or more --warmup_steps, or leave out the steps before with train.rollback."
    )


def set_learning_rate(run: Run, step: int) -> None:
    """Gives each parameter group its share of the schedule; `step` counts from 0."""
    arguments = run.arguments
    factor = learning_rate_at(
        step,
        max_steps=arguments.max_steps,
        warmup_steps=arguments.num_warmup_steps,
        schedule=arguments.schedule,
        decay_fraction=arguments.wsd_decay_fraction,
        final_ratio=arguments.final_learning_rate_ratio,
    )
    for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
        group["lr"] = factor * group["peak_learning_rate"]


def train_step(run: Run, state: TrainState, wants_stop: bool = False) -> StepResult:
    """One update: loss = sum over the targets of all micro-batches and processes / their number.

    Whether the update is good enough to be made is decided by `train.stability`, which `state` keeps the memory of.
    """
    started, step = time.perf_counter(), state.step
    if any(first <= step + 1 <= last for first, last in run.left_out):
        (stops,) = run.sum_over_processes([float(wants_stop)])
        return StepResult(math.nan, math.nan, 0, bool(stops), "on request")
    batches = list(run.batches.micro_batches(step))
    sizes = [run.objective.sizes(batch) for _, batch in batches]
    own_total, own_tokens = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
    total, num_tokens, num_stops = run.sum_over_processes([own_total, own_tokens, float(wants_stop)])
    if total == 0:
        raise ValueError(f"step {step + 1} has nothing to predict: all its labels are left out.")
    with explained_shortage_of_memory(run):
        loss_sum = backward(run, step, batches, total)
    grad_norm = clip_gradients(run)
    (loss,) = run.sum_over_processes([loss_sum])
    is_scaled = run.accelerator.scaler is not None
    skipped = stability.reason_to_skip(state, loss, grad_norm, run.arguments.spike_sigmas, is_scaled)
    if skipped:
        state.skipped_in_a_row += 1
        state.skipped_steps.append(step + 1)
    else:
        stability.remember(state, loss, grad_norm)
    for optimizer in run.optimizers:
        if not skipped:
            optimizer.step()
        optimizer.zero_grad()
    return StepResult(loss, grad_norm, int(num_tokens), bool(num_stops), skipped, time.perf_counter() - started)


def backward(run: Run, step: int, batches: list[tuple[int, dict[str, Tensor]]], total: float) -> float:
    """Adds the gradients of all micro-batches of this process; returns its share of the loss."""
    accelerator, model = run.accelerator, run.model
    loss_sum = torch.zeros((), device=accelerator.device)
    for number, batch in batches:
        torch.manual_seed(seed_at(run.arguments.seed, step, number))
        with synchronised_only_if(number == batches[-1][0], run):
            with accelerator.autocast():
                loss = run.objective.loss(model, on_device(run, batch), total)
            # engines average gradients over the shares of the examples, but the loss is a sum over them
            accelerator.backward(loss * run.grid.data_size)
        loss_sum += loss.detach()
    parallel.finish_gradients(model, run.grid)
    return float(loss_sum)


@contextmanager
def synchronised_only_if(is_last: bool, run: Run) -> Iterator[None]:
    """Lets processes exchange gradients after the last micro-batch of a step only."""
    if isinstance(run.model, FSDPModule):
        run.model.set_requires_gradient_sync(is_last)
    waits = not is_last and not isinstance(run.model, FSDPModule)
    with run.accelerator.no_sync(run.model) if waits else nullcontext():
        yield


def clip_gradients(run: Run) -> float:
    """Scales gradients down to `max_grad_norm`; returns their norm before."""
    max_norm = run.arguments.max_grad_norm or math.inf
    if run.is_split:
        return parallel.clip_gradients(run.model.parameters(), max_norm)
    return float(run.accelerator.clip_grad_norm_(run.model.parameters(), max_norm))


def on_device(run: Run, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a batch where the model is."""
    device = run.accelerator.device
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


@contextmanager
def explained_shortage_of_memory(run: Run) -> Iterator[None]:
    """Says which settings need less memory and train the same."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError, so is the CPU's
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        arguments, size = run.arguments, run.arguments.micro_batch_size
        remedies = [f"--micro_batch_size {size // 2}"] if size > 1 else []
        remedies += [] if arguments.gradient_checkpointing else ["--gradient_checkpointing true"]
        remedies += ["--fsdp_size with more processes", "a smaller model"]
        raise ValueError(
            f"memory is not enough for a micro-batch of {size} sequences on {run.accelerator.device}. The same steps "
            f"of {arguments.batch_size} sequences with less memory: {', or '.join(remedies)} (a run that has "
            "started takes --allow_change micro_batch_size)."
        ) from error


@torch.no_grad()
def evaluate(run: Run, examples: Examples | None = None) -> dict[str, Any]:
    """The objective's figures for validation examples spread evenly over the split, or for all of `examples`."""
    size, shares = run.arguments.micro_batch_size, run.grid.data_size
    limit = run.arguments.eval_sequences if examples is None else 0
    examples = run.validation if examples is None else examples
    num_examples = min(len(examples), limit or len(examples))
    starts = range(0, num_examples, size)
    sums: list[float] = []
    with _eval_mode(run.bare_model) as model:
        # where the model is split, all processes call it equally often, the last ones with nothing to count
        for number in range(run.grid.data_index, math.ceil(len(starts) / shares) * shares, shares):
            start = starts[min(number, len(starts) - 1)]
            chosen = range(start, min(start + size, num_examples))
            batch = examples.batch([i * len(examples) // num_examples for i in chosen])
            with run.accelerator.autocast():
                counted = run.objective.measure(model, on_device(run, batch))
            counted = counted if number < len(starts) else [0.0] * len(counted)
            sums = [a + b for a, b in zip(sums, counted, strict=True)] if sums else counted
    return run.objective.figures(run.sum_over_processes(sums))


@torch.no_grad()
def sample(run: Run) -> list[tuple[str, str]]:
    """(prompt, completion) pairs; the first process alone writes, unless the model is split.

    The random state of training is put back.
    """
    if not run.accelerator.is_main_process and not run.is_split:
        return []
    device = run.accelerator.device
    forked = [device] if device.type == "cuda" else []
    eager = torch.compiler.set_stance("force_eager")  # each length would be compiled anew
    with torch.random.fork_rng(forked), _eval_mode(run.bare_model) as model, eager:
        return run.objective.samples(model)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGUSR1 or Ctrl-C sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():  # signals reach only that one
        yield stop
        return
    before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
        parallel.free_gathered(model)
