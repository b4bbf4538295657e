"""The training loop, for pretraining and every kind of fine-tuning. Reading order: `train`, `train_step`, `backward`.

The step is the only clock. Learning rate, examples, dropout and everything that happens every N steps are pure
functions of (seed, step, micro-batch). So progress is one integer, and continuing a run takes only the weights, the
optimizer tensors and that integer. Two more files complete the picture: `data/sampler.py` (the examples of a step)
and `loop/language_modeling.py` (their loss). `checkpoint/state.py` lists what a run remembers, `loop/spikes.py` decides
which updates are skipped.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ..checkpoint.find import last_good_checkpoint
from ..checkpoint.state import TrainState
from ..distributed import parallel
from ..distributed.errors import run_on_main
from ..settings.seeds import seed_at
from .evaluation import evaluate_and_log, logged_evaluation
from .log import RunLog
from .run import Run
from .schedule import is_due, learning_rate_at
from .signals import stop_on_signals
from .spikes import reason_to_skip, record_outcome


@dataclass
class StepResult:
    """The outcome of one step, over all micro-batches and processes."""

    loss: float  # nats per target
    grad_norm: float  # before clipping
    num_tokens: int
    wants_stop: bool  # a process was asked to stop
    skip_reason: str = ""  # empty if the update was made
    seconds: float = 0.0


def train(run: Run, state: TrainState) -> bool:
    """Train from `state` to the last step, or until a signal asks to stop; save in both cases.

    Returns whether all steps are done.

    Raises:
        ValueError: too many updates in a row were skipped, or out of memory.
        OSError: a checkpoint or log cannot be written.
    """
    arguments, last = run.arguments, run.arguments.max_steps
    log = RunLog(run.folder, run.accelerator, state.step, last, run.peak_tokens_per_second)
    with stop_on_signals() as stop, explained_out_of_memory(run):
        if arguments.is_finetuning and state.step == 0:
            evaluate_and_log(run, state, log)  # what the base model can do
        while state.step < last:
            result = train_step(run, state, wants_stop=stop.is_set())
            state.step += 1
            state.tokens_seen += result.num_tokens
            log.count(result.num_tokens, result.seconds)
            if result.skip_reason:
                log.write_skip(state, result.skip_reason)
                check_diverged(run, state, result.skip_reason)
            elif is_due(arguments.logging_steps, state.step, last):
                rate = run.optimizers[0].param_groups[0]["lr"]  # AdamW's; Muon's follows the same schedule
                log.write_step(state, {"loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": rate})
            if is_due(arguments.eval_steps, state.step, last):
                evaluate_and_log(run, state, log)
            if is_due(arguments.save_steps, state.step, last) or result.wants_stop:
                run.checkpoints.save(state)
            if result.wants_stop:
                break
        is_last = state.step == last
        if is_last and run_on_main(run.accelerator, lambda: logged_evaluation(run.folder, last)) is None:
            evaluate_and_log(run, state, log)  # the log is damaged; the model card needs it
    run.checkpoints.finish()
    log.close(state.step)
    return state.step == last


def train_step(run: Run, state: TrainState, wants_stop: bool = False) -> StepResult:
    """Make the update of step `state.step + 1`, unless it is skipped; the caller counts the step.

    Loss = sum over the targets of all micro-batches and processes / their number. The model is in training mode.
    """
    started, step = time.perf_counter(), state.step
    if any(first <= step + 1 <= last for first, last in run.skip_windows):  # by scratch-gpt rollback
        (num_stops,) = run.sum_over_processes([float(wants_stop)])
        return StepResult(
            loss=math.nan, grad_norm=math.nan, num_tokens=0, wants_stop=bool(num_stops), skip_reason="on request"
        )
    set_learning_rate(run, step)
    batches = list(run.sampler.micro_batches(step))  # of this process
    own_denominator = own_tokens = 0.0
    for _, batch in batches:
        targets, tokens = run.objective.count_targets(batch)
        own_denominator, own_tokens = own_denominator + targets, own_tokens + tokens
    denominator, num_tokens, num_stops = run.sum_over_processes([own_denominator, own_tokens, float(wants_stop)])
    if denominator == 0:
        raise ValueError(f"step {step + 1} has nothing to predict: all its labels are masked.")
    loss = backward(run, step, batches, denominator)
    grad_norm = clip_gradients(run)
    loss, grad_norm = run.sum_over_processes([loss, run.from_main(grad_norm)])  # equal in all, so all decide alike
    is_scaled = run.accelerator.scaler is not None
    skip_reason = reason_to_skip(state, loss, grad_norm, run.arguments.spike_sigmas, is_scaled)
    record_outcome(state, loss, grad_norm, skip_reason)
    update(run, is_skipped=bool(skip_reason) or not math.isfinite(grad_norm))
    seconds = time.perf_counter() - started
    return StepResult(loss, grad_norm, int(num_tokens), bool(num_stops), skip_reason, seconds)


def set_learning_rate(run: Run, step: int) -> None:
    """Set the learning rate of each parameter group for a step, counted from 0."""
    arguments = run.arguments
    factor = learning_rate_at(
        step,
        max_steps=arguments.max_steps,
        warmup_steps=arguments.num_warmup_steps,
        schedule=arguments.lr_scheduler_type,
        decay_fraction=arguments.wsd_decay_fraction,
        final_ratio=arguments.min_lr_ratio,
    )
    for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
        group["lr"] = factor * group["peak_learning_rate"]  # set by build_optimizers


def backward(run: Run, step: int, batches: list[tuple[int, dict[str, Tensor]]], denominator: float) -> float:
    """Accumulate the gradients of all micro-batches of this process; returns its share of the loss."""
    accelerator, model = run.accelerator, run.model
    loss_sum = torch.zeros((), device=accelerator.device)
    for number, batch in batches:
        torch.manual_seed(seed_at(run.arguments.seed, step, number))  # for dropout
        batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        with gradient_sync(run, is_last=number == batches[-1][0]):
            with accelerator.autocast():
                loss = run.objective.loss(model, batch, denominator)
            # The loss is already divided by the targets of ALL processes, so gradients must be summed. DDP and FSDP2
            # average them over the processes that read different examples: undo that average.
            accelerator.backward(loss * run.grid.data_size)
        loss_sum += loss.detach()
    parallel.finish_gradients(model, run.grid)
    return float(loss_sum)


@contextmanager
def gradient_sync(run: Run, is_last: bool) -> Iterator[None]:
    """Let processes exchange gradients only after the last micro-batch of a step."""
    if isinstance(run.model, FSDPModule):
        run.model.set_requires_gradient_sync(is_last)
        yield
        return
    with nullcontext() if is_last else run.accelerator.no_sync(run.model):
        yield


def clip_gradients(run: Run) -> float:
    """Scale gradients down to `max_grad_norm`; returns their norm before."""
    max_norm = run.arguments.max_grad_norm or math.inf
    if run.is_split:
        return parallel.clip_gradients(run.model.parameters(), max_norm)
    return float(run.accelerator.clip_grad_norm_(run.model.parameters(), max_norm))


def update(run: Run, *, is_skipped: bool) -> None:
    """Let all optimizers make their step, or none of them, and free the gradients.

    Clipping has removed the scale of fp16 from the gradients, so the optimizers need no scaler. It is updated once per
    step: Accelerate's optimizers would do so once per optimizer, and never after a skipped update.
    """
    for optimizer in run.checkpoints.optimizers:  # without Accelerate's wrapper
        if not is_skipped:
            optimizer.step()
        optimizer.zero_grad()
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.update()


def check_diverged(run: Run, state: TrainState, reason: str) -> None:
    """End a run that does not recover.

    Raises:
        ValueError: `max_skipped` updates in a row were skipped.
    """
    if state.skipped_in_a_row < run.arguments.max_skipped:
        return
    good = last_good_checkpoint(run.folder)
    raise ValueError(
        f"training has diverged: {state.skipped_in_a_row} updates in a row were skipped, up to step {state.step} "
        f"({reason}). The last good checkpoint is {good or 'none'}. Start a new run with a lower --learning_rate or "
        "more --warmup_steps, or skip the steps before with scratch-gpt rollback."
    )


@contextmanager
def explained_out_of_memory(run: Run) -> Iterator[None]:
    """Add to an out-of-memory error of training or evaluation the settings that need less memory.

    Raises:
        ValueError: out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError, as is the CPU's
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        arguments, size = run.arguments, run.arguments.micro_batch_size
        remedies = [f"--micro_batch_size {size // 2}"] if size > 1 else []
        remedies += [] if arguments.gradient_checkpointing else ["--gradient_checkpointing true"]
        remedies += ["--dp_shard_size with more processes", "a smaller model"]
        raise ValueError(
            f"out of memory with a micro-batch of {size} sequences on {run.accelerator.device}. To run the same steps "
            f"of {arguments.global_batch_size} sequences with less memory: {', or '.join(remedies)} (to continue a "
            "started run, add --allow_change micro_batch_size)."
        ) from error
