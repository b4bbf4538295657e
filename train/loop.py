"""The training loop: what happens in a step, and in which order. It trains any causal language model.

The step is the only clock. Learning rate, examples, dropout and what is due are pure functions of
(seed, step, micro-batch), so progress is one integer, and to continue a run takes only the weights,
the optimizer tensors and that integer. Reading order: `train`, `train_step`, `evaluate`, `sample`; how
a run is saved and continued stands in `train.resume`.
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
from .metrics import RunLog, bits_per_byte, perplexity
from .resume import finish_saving, save
from .run import Run, TrainState
from .schedule import is_due, learning_rate_at, seed_at

IGNORED_LABEL = -100
SAMPLE_TEMPERATURE = 0.8
SAMPLE_TOP_K = 50
STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
]  # Windows has no SIGUSR1


@dataclass
class StepResult:
    """What one step reports, over all micro-batches and processes."""

    loss: float  # nats per target token
    grad_norm: float  # before clipping
    num_tokens: int  # target tokens
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
                figures = evaluate(run)
                state.eval_loss, state.eval_step = figures["eval_loss"], state.step
                log.write_evaluation(state, figures)
                log.write_samples(state.step, sample(run))
            if is_due(arguments.save_every, state.step, last) or result.wants_stop:
                save(run, state)
            if result.wants_stop:
                break
    finish_saving(run)
    log.close(state.step)
    return state


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
    """One update: loss = sum over the target tokens of all micro-batches and processes / their number.

    Whether the update is good enough to be made is decided by `train.stability`, which `state` keeps the memory of.
    """
    started, step = time.perf_counter(), state.step
    if any(first <= step + 1 <= last for first, last in run.left_out):
        (stops,) = run.sum_over_processes([float(wants_stop)])
        return StepResult(math.nan, math.nan, 0, bool(stops), "on request")
    batches = list(run.batches.micro_batches(step))
    own_tokens = sum(int((b["shift_labels"] != IGNORED_LABEL).sum()) for _, b in batches)
    num_tokens, num_stops = run.sum_over_processes([own_tokens, float(wants_stop)])
    if num_tokens == 0:
        raise ValueError(f"step {step + 1} has no token to predict: all labels are {IGNORED_LABEL}.")
    with explained_shortage_of_memory(run):
        loss_sum = backward(run, step, batches, num_tokens)
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


def backward(run: Run, step: int, batches: list[tuple[int, dict[str, Tensor]]], num_tokens: float) -> float:
    """Adds the gradients of all micro-batches of this process; returns its share of the loss."""
    accelerator, model = run.accelerator, run.model
    loss_sum = torch.zeros((), device=accelerator.device)
    for number, batch in batches:
        torch.manual_seed(seed_at(run.arguments.seed, step, number))
        with synchronised_only_if(number == batches[-1][0], run):
            loss = forward_loss(run, model, batch, num_tokens)
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


def forward_loss(run: Run, model: nn.Module, batch: dict[str, Tensor], num_tokens: int | float) -> Tensor:
    """Sum of the losses of a micro-batch divided by `num_tokens`, in nats."""
    device = run.accelerator.device
    input_ids = batch["input_ids"].to(device, non_blocking=True)  # (micro_batch, block)
    labels = batch["shift_labels"].to(device, non_blocking=True)  # (micro_batch, block)
    with run.accelerator.autocast():
        return model(
            input_ids=input_ids,
            labels=labels,  # asks for a loss; the labels used are those that are shifted already
            shift_labels=labels,
            num_items_in_batch=torch.tensor(float(num_tokens), device=device),
            use_cache=False,
            **run.forward_kwargs,
        ).loss


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
def evaluate(run: Run) -> dict[str, float]:
    """Loss in nats per token, perplexity and bits per byte of validation sequences spread evenly over the split."""
    blocks, size = run.validation, run.arguments.micro_batch_size
    num_rows = min(len(blocks), run.arguments.eval_sequences or len(blocks))
    starts, shares = range(0, num_rows, size), run.grid.data_size
    nats, num_tokens, num_bytes = 0.0, 0.0, 0.0
    with _eval_mode(run.bare_model) as model:
        # where the model is split, all processes call it equally often, the last ones with nothing to count
        for number in range(run.grid.data_index, math.ceil(len(starts) / shares) * shares, shares):
            start = starts[min(number, len(starts) - 1)]
            chosen = [i * len(blocks) // num_rows for i in range(start, min(start + size, num_rows))]
            rows = blocks.rows(chosen)  # (rows, block + 1)
            batch = {"input_ids": rows[:, :-1], "shift_labels": rows[:, 1:].contiguous()}
            loss = float(forward_loss(run, model, batch, num_tokens=1))
            if number < len(starts):
                nats += loss
                num_tokens += batch["shift_labels"].numel()
                num_bytes += int(run.token_bytes[batch["shift_labels"]].sum())
    nats, num_tokens, num_bytes = run.sum_over_processes([nats, num_tokens, num_bytes])
    loss = nats / num_tokens
    return {
        "eval_loss": loss,
        "eval_perplexity": perplexity(loss),
        "eval_bits_per_byte": bits_per_byte(nats, num_bytes),
    }


@torch.no_grad()
def sample(run: Run) -> list[tuple[str, str]]:
    """(prompt, completion) for each of the fixed prompts; the first process alone writes, unless the model is split.

    The seed is fixed, so that samples of different steps compare; the random state of training is
    put back.
    """
    if not run.accelerator.is_main_process and not run.is_split:
        return []
    device = run.accelerator.device
    forked = [device] if device.type == "cuda" else []
    eager = torch.compiler.set_stance("force_eager")  # each length would be compiled anew
    with torch.random.fork_rng(forked), _eval_mode(run.bare_model) as model, eager:
        return [
            (prompt, _completion(run, model, prompt, number))
            for number, prompt in enumerate(run.arguments.sample_prompts)
        ]


def _completion(run: Run, model: Any, prompt: str, number: int) -> str:
    torch.manual_seed(seed_at(run.arguments.seed, "sample", number))
    ids = run.tokenizer(prompt)["input_ids"] or [run.tokenizer.bos_token_id]
    input_ids = torch.tensor([ids], device=run.accelerator.device)  # (1, prompt)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=run.arguments.sample_tokens,
        do_sample=True,
        temperature=SAMPLE_TEMPERATURE,
        top_k=SAMPLE_TOP_K,
        pad_token_id=run.tokenizer.pad_token_id,
    )  # (1, prompt + completion)
    completion: Any = run.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
    return str(completion)


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
