"""The progress of a run, saved with each checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class TrainState:
    """Everything a run remembers besides its tensors. Saved as JSON."""

    step: int = 0  # finished steps
    tokens_seen: int = 0  # over all processes
    eval_loss: float | None = None  # of the last evaluation
    eval_step: int = 0  # step of the last evaluation
    skipped_in_a_row: int = 0  # most recent consecutive skipped steps
    recent: list[list[float]] = field(default_factory=list)  # [loss, gradient norm] of recent updates, for spikes.py

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "TrainState":
        """The state in the manifest of a checkpoint; ignores what only earlier versions have saved."""
        return cls(**{entry.name: saved[entry.name] for entry in fields(cls) if entry.name in saved})
