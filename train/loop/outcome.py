"""The outcome of a step: computed on the device, and read by the host when it is needed.

Reading a value of a GPU waits until the GPU has computed it. In the middle of a step, everything queued before would
have to finish first, and the GPU would idle until the host has queued more. So a GPU decides by itself whether the
update is harmful (`is_harmful`), and the host reads the values of a step while the GPU works on the next one. Only
limits that the host knows by then go into the decision, as exact numbers: it is the one that `judge` finds later.
"""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checkpoint.state import TrainState
from .run import Run
from .spikes import limits, reason_to_skip, record_outcome

ON_REQUEST = "on request"  # of scratch-gpt rollback


class HostCopy:
    """A small tensor on its way to the host. Reading it waits for what was queued before it, not for what came after.

    Args:
        tensor: (values,).
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.to("cpu", non_blocking=tensor.is_cuda)  # of CUDA: to pinned memory
        self.arrival: torch.Event | None = None
        if tensor.is_cuda:
            self.arrival = torch.cuda.Event()
            self.arrival.record()

    def read(self) -> list[float]:
        """The values."""
        if self.arrival is not None:
            self.arrival.synchronize()
        values: list[float] = self.tensor.tolist()
        return values


@dataclass
class StepResult:
    """The outcome of one step, over all micro-batches and processes. Asking for a value waits until it is known.

    Args:
        step: counted from 1.
        losses: loss in nats per target, and gradient norm before clipping.
        counts: denominator of the loss, tokens, and the number of processes that were asked to stop.
        learning_rate: of AdamW; Muon's follows the same schedule.
        skip_reason: why the update was skipped; empty if it was made, None: not known yet.
        started: in seconds of `time.perf_counter`.
    """

    step: int
    losses: HostCopy
    counts: HostCopy
    learning_rate: float = math.nan
    skip_reason: str | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def loss(self) -> float:
        """In nats per target."""
        return self.losses.read()[0]

    @property
    def grad_norm(self) -> float:
        """Before clipping."""
        return self.losses.read()[1]

    @property
    def num_tokens(self) -> int:
        """Tokens that were trained on."""
        return int(self.counts.read()[1])

    @property
    def wants_stop(self) -> bool:
        """Whether a process was asked to stop."""
        return self.counts.read()[2] > 0

    @property
    def seconds(self) -> float:
        """From the start of the step until its values are known, or until now if that is later."""
        self.losses.read()
        return time.perf_counter() - self.started


def skipped_on_request(step: int, counts: HostCopy) -> StepResult:
    """The result of a step that `rollback` has excluded."""
    return StepResult(step, HostCopy(torch.full((2,), math.nan)), counts, skip_reason=ON_REQUEST)


def is_harmful(losses: Tensor, state: TrainState, sigmas: float) -> Tensor:
    """1.0 if the update must be skipped, else 0.0: the decision of `judge`, on the device.

    Args:
        losses: (loss, gradient norm), over all processes.
        state: with the outcomes of all steps before.
    """
    loss_limit, norm_limit = limits(state, sigmas)
    is_good = losses.isfinite().all() & (losses[0] <= loss_limit) & (losses[1] <= norm_limit)
    return (~is_good).float()


def judge(run: Run, state: TrainState, result: StepResult) -> bool:
    """Find out whether the update of a step is skipped, and record it in `state`; waits for its values.

    A second call for the same result changes nothing.

    Args:
        state: with the outcomes of all steps before.

    Raises:
        ValueError: the step has no targets.
    """
    loss, grad_norm = result.losses.read()
    if result.skip_reason is None:
        if result.counts.read()[0] == 0:
            raise ValueError(f"step {result.step} has nothing to predict: all its labels are masked.")
        is_scaled = run.accelerator.scaler is not None
        result.skip_reason = reason_to_skip(state, loss, grad_norm, run.arguments.spike_sigmas, is_scaled)
        record_outcome(state, loss, grad_norm, result.skip_reason)
    return bool(result.skip_reason) or not math.isfinite(grad_norm)
