"""The progress of a run, saved with each checkpoint."""

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """Everything a run remembers besides its tensors. Saved as JSON."""

    step: int = 0  # finished steps
    tokens_seen: int = 0  # over all processes
    eval_loss: float | None = None  # of the last evaluation
    eval_step: int = 0  # step of the last evaluation
    skipped_in_a_row: int = 0  # most recent consecutive skipped steps
    skipped_steps: list[int] = field(default_factory=list)  # all steps whose update was skipped, counted from 1
    recent: list[list[float]] = field(default_factory=list)  # [loss, gradient norm] of recent updates, for spikes.py
