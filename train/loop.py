"""The training loop: what happens in a step, and in which order. It trains any causal language model.

The step is the only clock. Learning rate, examples, dropout and what is due are pure functions of
(seed, step, micro-batch), so progress is one integer, and to continue a run takes only the weights,
the optimizer tensors and that integer. Reading order: `train`, `train_step`, `evaluate`, `sample`,
then how a run is saved and continued.
"""

import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from . import checkpoint
from .arguments import TrainArguments
from .metrics import RunLog, bits_per_byte, perplexity
from .optimizer import load_optimizer_tensors, optimizer_tensors
from .schedule import is_due, learning_rate_at

IGNORED_LABEL = -100
SAMPLE_TEMPERATURE = 0.8
SAMPLE_TOP_K = 50


class Batches(Protocol):
    """The examples of every step, such as `train.data.StepSampler`."""

    def micro_batches(self, step: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """This process's share of a step: (number of the micro-batch in the step, tensors)."""


class Rows(Protocol):
    """Validation sequences, such as `train.data.TokenBlocks`."""

    def __len__(self) -> int: ...

    def rows(self, indices: Sequence[int]) -> Tensor:
        """(len(indices), block + 1) token ids."""


@dataclass
class TrainState:
    """Progress, saved with each checkpoint."""

    step: int = 0  # finished steps
    tokens_seen: int = 0  # predicted tokens, over all processes
    best_eval_loss: float | None = None


@dataclass
class Run:
    """The parts that a script has built; model and optimizers as `Accelerator.prepare` returns them.

    Args:
        token_bytes: bytes of text per token id, from `metrics.token_byte_lengths`.
        frozen: settings that must not change when the run continues, as JSON values.
        forward_kwargs: more keyword arguments for the model's forward when it computes a loss.
    """

    arguments: TrainArguments
    accelerator: Accelerator
    model: nn.Module
    optimizers: list[Optimizer]
    batches: Batches
    validation: Rows
    tokenizer: PreTrainedTokenizerBase
    token_bytes: Tensor
    frozen: dict[str, Any] = field(default_factory=dict)
    forward_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where everything that belongs to the run lies."""
        return Path(self.arguments.output_dir)

    @property
    def bare_model(self) -> Any:
        """The model without the wrapper that synchronises processes."""
        return self.accelerator.unwrap_model(self.model)


@dataclass
class StepResult:
    """What one step reports, over all micro-batches and processes."""

    loss: float  # nats per target token
    grad_norm: float  # before clipping
    num_tokens: int  # target tokens
    wants_stop: bool  # some process was asked to stop
    seconds: float


def train(run: Run, state: TrainState) -> TrainState:
    """Trains from `state` to the last step, or until a signal asks to stop; saves in both cases.

    Raises:
        ValueError: the loss is not finite.
        OSError: a checkpoint or log cannot be written.
    """
    arguments, last = run.arguments, run.arguments.max_steps
    log = RunLog(run.folder, run.accelerator, first_step=state.step, last_step=last)
    with stop_on_signals() as stop:
        while state.step < last:
            set_learning_rate(run, state.step)
            result = train_step(run, state.step, wants_stop=stop.is_set())
            state.step += 1
            state.tokens_seen += result.num_tokens
            log.add(result.num_tokens, result.seconds)
            if is_due(arguments.log_every, state.step, last):
                log.write_step(state, step_figures(run, result))
            if is_due(arguments.eval_every, state.step, last):
                figures = evaluate(run)
                state.best_eval_loss = min(figures["eval_loss"], state.best_eval_loss or math.inf)
                log.write_evaluation(state, figures)
                log.write_samples(state.step, sample(run))
            if is_due(arguments.save_every, state.step, last) or result.wants_stop:
                save(run, state)
            if result.wants_stop:
                break
    log.close(state.step)
    return state


def step_figures(run: Run, result: StepResult) -> dict[str, float]:
    """What is logged of a step."""
    rate = run.optimizers[0].param_groups[0]["lr"]
    return {"loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": rate}


def set_learning_rate(run: Run, step: int) -> None:
    """Gives each parameter group its share of the schedule; `step` counts from 0."""
    arguments = run.arguments
    factor = learning_rate_at(
        step,
        max_steps=arguments.max_steps,
        warmup_steps=arguments.warmup_steps,
        schedule=arguments.schedule,
        decay_fraction=arguments.wsd_decay_fraction,
        final_ratio=arguments.final_learning_rate_ratio,
    )
    for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
        group["lr"] = factor * group["peak_learning_rate"]


def train_step(run: Run, step: int, wants_stop: bool = False) -> StepResult:
    """One update: loss = sum over the target tokens of all micro-batches and processes / their number."""
    started = time.perf_counter()
    accelerator, model = run.accelerator, run.model
    batches = list(run.batches.micro_batches(step))
    own_tokens = sum(int((b["shift_labels"] != IGNORED_LABEL).sum()) for _, b in batches)
    num_tokens, num_stops = _sum_over_processes(accelerator, [own_tokens, int(wants_stop)])
    if num_tokens == 0:
        raise ValueError(f"step {step + 1} has no token to predict: all labels are {IGNORED_LABEL}.")
    loss_sum = torch.zeros((), device=accelerator.device)
    for number, batch in batches:
        torch.manual_seed(seed_at(run.arguments.seed, step, number))
        is_last = number == batches[-1][0]
        with nullcontext() if is_last else accelerator.no_sync(model):
            loss = forward_loss(run, model, batch, num_tokens)
            # wrappers average gradients over processes, but the loss is a sum over them
            accelerator.backward(loss * accelerator.num_processes)
        loss_sum += loss.detach()
    max_norm = run.arguments.max_grad_norm or math.inf
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
    (loss_value,) = _sum_over_processes(accelerator, [float(loss_sum)])
    result = StepResult(loss_value, float(grad_norm), int(num_tokens), bool(num_stops), 0.0)
    check_finite(run, step, result)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    result.seconds = time.perf_counter() - started
    return result


def forward_loss(run: Run, model: nn.Module, batch: dict[str, Tensor], num_tokens: int | float) -> Tensor:
    """Sum of the losses of a micro-batch divided by `num_tokens`, in nats."""
    device = run.accelerator.device
    input_ids = batch["input_ids"].to(device, non_blocking=True)  # (micro_batch, block)
    labels = batch["shift_labels"].to(device, non_blocking=True)  # (micro_batch, block)
    return model(
        input_ids=input_ids,
        labels=labels,  # asks for a loss; the labels used are those that are shifted already
        shift_labels=labels,
        num_items_in_batch=torch.tensor(float(num_tokens), device=device),
        use_cache=False,
        **run.forward_kwargs,
    ).loss


def check_finite(run: Run, step: int, result: StepResult) -> None:
    """Ends a diverged run before its weights are touched.

    Raises:
        ValueError: loss or gradient are infinite or not a number.
    """
    # in fp16 gradients overflow now and then: the scaler skips that update by itself
    is_finite = math.isfinite(result.grad_norm) or run.accelerator.scaler is not None
    if math.isfinite(result.loss) and is_finite:
        return
    saved = checkpoint.checkpoint_paths(run.folder)
    raise ValueError(
        f"loss is {result.loss} and the gradient norm {result.grad_norm} in step {step + 1}: "
        f"training has diverged. The last good checkpoint is {saved[-1] if saved else 'none'}. "
        "Start a new run with a lower --learning_rate or more --warmup_steps."
    )


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Loss in nats per token, perplexity and bits per byte of validation sequences spread evenly over the split."""
    blocks, size = run.validation, run.arguments.micro_batch_size
    num_rows = min(len(blocks), run.arguments.eval_sequences or len(blocks))
    nats, num_tokens, num_bytes = 0.0, 0.0, 0.0
    with _eval_mode(run.bare_model) as model:
        for number, start in enumerate(range(0, num_rows, size)):
            if number % run.accelerator.num_processes != run.accelerator.process_index:
                continue
            chosen = [i * len(blocks) // num_rows for i in range(start, min(start + size, num_rows))]
            rows = blocks.rows(chosen)  # (rows, block + 1)
            batch = {"input_ids": rows[:, :-1], "shift_labels": rows[:, 1:].contiguous()}
            nats += float(forward_loss(run, model, batch, num_tokens=1))
            num_tokens += batch["shift_labels"].numel()
            num_bytes += int(run.token_bytes[batch["shift_labels"]].sum())
    nats, num_tokens, num_bytes = _sum_over_processes(run.accelerator, [nats, num_tokens, num_bytes])
    loss = nats / num_tokens
    return {
        "eval_loss": loss,
        "eval_perplexity": perplexity(loss),
        "eval_bits_per_byte": bits_per_byte(nats, num_bytes),
    }


@torch.no_grad()
def sample(run: Run) -> list[tuple[str, str]]:
    """(prompt, completion) for each of the fixed prompts; empty on all processes but the first.

    The seed is fixed, so that samples of different steps compare; the random state of training is
    put back.
    """
    if not run.accelerator.is_main_process:
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


def save(run: Run, state: TrainState) -> None:
    """Writes a checkpoint; all processes return when it is whole."""
    if run.accelerator.is_main_process:
        model = run.bare_model
        scaler = run.accelerator.scaler  # only fp16 has one
        checkpoint.save(
            run.folder,
            state.step,
            model=model,
            optimizer_tensors=optimizer_tensors(model, _bare_optimizers(run)),
            progress=asdict(state) | {"scaler": scaler and scaler.state_dict()},
            frozen=run.frozen,
            keep=run.arguments.keep_checkpoints,
        )
    run.accelerator.wait_for_everyone()


def resume(run: Run) -> TrainState:
    """Loads the newest whole checkpoint of the run, and cuts its logs back to that step.

    Raises:
        ValueError: settings that must not change have changed; all of them are listed.
    """
    with run.accelerator.main_process_first():  # it sets damaged checkpoints aside
        found = checkpoint.newest(run.folder)
    state = TrainState()
    if found is not None:
        check_settings(run, found)
        found.load_model(run.bare_model)
        load_optimizer_tensors(run.bare_model, _bare_optimizers(run), found.optimizer_tensors())
        progress = dict(found.manifest["progress"])
        if (scaler := progress.pop("scaler")) is not None:
            run.accelerator.scaler.load_state_dict(scaler)
        state = TrainState(**progress)
    if run.accelerator.is_main_process:
        RunLog.cut_back(run.folder, state.step)
    return state


def check_settings(run: Run, found: checkpoint.Checkpoint) -> None:
    """Refuses to continue a run with settings that would have given another one.

    Raises:
        ValueError: the settings that differ, with old and new value.
    """
    changes = checkpoint.changed_settings(found.manifest["frozen"], run.frozen)
    if changes:
        raise ValueError(
            f"{run.folder} was started with other settings:\n  "
            + "\n  ".join(changes)
            + "\nContinue it with the old ones, or start a new run with another --output_dir."
        )


def seed_at(seed: int, *place: int | str) -> int:
    """The random seed at a place such as (step, micro-batch): independent of all others."""
    text = "/".join(str(part) for part in (seed, *place))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1  # torch takes 63 bits


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():  # signals reach only that one
        yield stop
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bare_optimizers(run: Run) -> list[Optimizer]:
    return [getattr(optimizer, "optimizer", optimizer) for optimizer in run.optimizers]


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)


def _sum_over_processes(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    if accelerator.num_processes == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    return accelerator.reduce(total, reduction="sum").tolist()
