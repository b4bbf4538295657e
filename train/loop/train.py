"""The training loop, for pretraining and every kind of fine-tuning. Reading order: `train`, `train_step`, `backward`.

The step is the only clock. Learning rate, examples, dropout and everything that happens every N steps are pure
functions of (seed, step, micro-batch). So progress is one integer, and continuing a run takes only the weights, the
optimizer tensors and that integer. Two more files complete the picture: `data/sampler.py` (the examples of a step)
and `loop/language_modeling.py` (their loss). `checkpoint/state.py` lists what a run remembers, `loop/spikes.py` decides
which updates are skipped.

Nothing in a step waits for a GPU: it only queues work. What the host wants to know of a step, it reads while the GPU
works on the next one (`loop/outcome.py`), or before an evaluation or a save.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ..checkpoint.state import TrainState
from ..distributed import parallel
from ..distributed.device import is_out_of_memory, set_seed
from ..distributed.errors import run_on_main
from ..settings.seeds import seed_at
from .batches import Batches, read_ahead, take_batches
from .display import Pace
from .evaluation import evaluate_and_log, logged_evaluation
from .first_loss import warn_if_worse_than_guessing
from .log import RunLog
from .outcome import HostCopy, StepResult, is_harmful, judge, skipped_on_request
from .recorder import Recorder
from .run import Run
from .schedule import is_due, learning_rate_at
from .signals import stop_on_signals


def train(run: Run, state: TrainState) -> bool:
    """Train from `state` to the last step, or until a signal asks to stop; save in both cases.

    Returns whether all steps are done.

    Raises:
        ValueError: too many updates in a row were skipped, or out of memory.
        OSError: a checkpoint or log cannot be written.
    """
    arguments, last = run.arguments, run.arguments.max_steps
    pace = Pace(last, arguments.eval_steps, arguments.save_steps)
    log = RunLog(run.folder, run.accelerator, state.step, last, run.peak_tokens_per_second, pace)
    recorder = Recorder(run, state, log)
    with log, stop_on_signals() as stop, explained_out_of_memory(run):
        if arguments.is_finetuning and state.step == 0:
            evaluate_and_log(run, state, log)  # what the base model can do
            warn_if_worse_than_guessing(run, state.eval_loss or 0.0)
        while state.step < last and not recorder.wants_stop:
            result = train_step(run, state, wants_stop=stop.is_set(), record_previous=recorder.record)
            state.step += 1
            recorder.add(result)
            is_eval_due = is_due(arguments.eval_steps, state.step, last)
            is_save_due = is_due(arguments.save_steps, state.step, last) or recorder.wants_stop
            if is_eval_due or is_save_due:
                recorder.record()
            if is_eval_due:
                evaluate_and_log(run, state, log)
            if is_save_due:
                run.checkpoints.save(state)
        is_last = state.step == last
        if is_last and run_on_main(run.accelerator, lambda: logged_evaluation(run.folder, last)) is None:
            evaluate_and_log(run, state, log)  # the log is damaged; the model card needs it
    run.checkpoints.finish()
    log.close(state.step)
    return state.step == last


def train_step(
    run: Run, state: TrainState, wants_stop: bool = False, record_previous: Callable[[], None] | None = None
) -> StepResult:
    """Make the update of step `state.step + 1`, unless it is skipped; the caller counts the step.

    Loss = sum over the targets of all micro-batches and processes / their number. The model is in training mode.

    Args:
        record_previous: called when the work of this step is queued, and before the decision about its update: it must
            bring `state` up to date with the step before.
    """
    started, step = time.perf_counter(), state.step
    record_previous = record_previous or (lambda: None)
    if any(first <= step + 1 <= last for first, last in run.skip_windows):  # by scratch-gpt rollback
        record_previous()
        return skipped_on_request(step + 1, HostCopy(run.sum_over_processes([1.0, 0.0, float(wants_stop)])))
    rate, batches = set_learning_rate(run, step), take_batches(run, step)
    counts = run.sum_over_processes([batches.denominator, batches.num_tokens, float(wants_stop)])
    loss = backward(run, step, batches, denominator=counts[0])
    read_ahead(run, step + 1)
    grad_norm = run.from_main(clip_gradients(run))
    losses = run.sum_over_processes(torch.stack([loss, grad_norm]))  # equal in all, so all decide alike
    result = StepResult(step + 1, HostCopy(losses), HostCopy(counts), rate, started=started)
    record_previous()
    if run.reads_late:
        update(run, is_harmful(losses, state, run.arguments.spike_sigmas))
    else:
        update(run, judge(run, state, result))
    return result


def set_learning_rate(run: Run, step: int) -> float:
    """Set the learning rate of each parameter group for a step, counted from 0; returns that of AdamW."""
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
    rate: float = run.optimizers[0].param_groups[0]["lr"]
    return rate


def backward(run: Run, step: int, batches: Batches, denominator: Tensor) -> Tensor:
    """Accumulate the gradients of all micro-batches of this process; returns its share of the loss, ()."""
    accelerator, model, data_size = run.accelerator, run.model, run.grid.data_size
    denominator = denominator.float().to(accelerator.device, non_blocking=True)
    loss_sum = torch.zeros((), device=accelerator.device)
    for number, batch in batches.micro_batches:
        set_seed(accelerator.device, seed_at(run.arguments.seed, step, number))  # for dropout
        with gradient_sync(run, is_last=number == batches.micro_batches[-1][0]):
            with accelerator.autocast():
                loss = run.objective.loss(model, batch, denominator)
            # The loss is already divided by the targets of ALL processes, so gradients must be summed. DDP and FSDP2
            # average them over the processes that read different examples: undo that average.
            accelerator.backward(loss if data_size == 1 else loss * data_size)
        loss_sum += loss.detach()
    parallel.finish_gradients(model, run.grid)
    return loss_sum


@contextmanager
def gradient_sync(run: Run, is_last: bool) -> Iterator[None]:
    """Let processes exchange gradients only after the last micro-batch of a step."""
    if isinstance(run.model, FSDPModule):
        run.model.set_requires_gradient_sync(is_last)
        yield
        return
    with nullcontext() if is_last else run.accelerator.no_sync(run.model):
        yield


def clip_gradients(run: Run) -> Tensor:
    """Scale gradients down to `max_grad_norm`; returns their norm before, ()."""
    max_norm = run.arguments.max_grad_norm or math.inf
    if run.is_split:
        return parallel.clip_gradients(run.parameters, max_norm)
    norm: Tensor = run.accelerator.clip_grad_norm_(run.parameters, max_norm)
    return norm


def update(run: Run, is_skipped: bool | Tensor) -> None:
    """Let all optimizers make their step, or none of them, and free the gradients.

    A tensor, 1.0 or 0.0, leaves the decision to the device: the optimizers then compute their step, but change neither
    weights nor state if it is 1.0. Clipping has removed the scale of fp16 from the gradients, so the optimizers need no
    scaler. It is updated once per step: Accelerate's optimizers would do so once per optimizer, and never after a
    skipped update.

    Args:
        is_skipped: whether to make no step.
    """
    for optimizer in run.checkpoints.optimizers:  # without Accelerate's wrapper
        if is_skipped is not True:
            # where torch's fused optimizers look for it
            optimizer.found_inf = is_skipped if isinstance(is_skipped, Tensor) else None  # type: ignore[attr-defined]
            optimizer.step()
        optimizer.zero_grad()
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.update()


@contextmanager
def explained_out_of_memory(run: Run) -> Iterator[None]:
    """Add to an out-of-memory error of training or evaluation the settings that need less memory.

    Raises:
        ValueError: out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        arguments, size = run.arguments, run.arguments.micro_batch_size
        remedies = [f"--micro_batch_size {size // 2}"] if size > 1 else []
        checkpointing = {"false": "selective or true", "selective": "true"}.get(arguments.gradient_checkpointing)
        remedies += [f"--gradient_checkpointing {checkpointing}"] if checkpointing else []
        remedies += ["--dp_shard_size with more processes", "a smaller model"]
        raise ValueError(
            f"out of memory with a micro-batch of {size} sequences on {run.accelerator.device}. To run the same steps "
            f"of {arguments.global_batch_size} sequences with less memory: {', or '.join(remedies)} (to continue a "
            "started run, add --allow_change micro_batch_size)."
        ) from error
