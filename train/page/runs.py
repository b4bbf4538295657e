"""A run folder as the page shows it: curves and samples, also while the run goes on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..loop.log import JsonLines
from ..loop.status import read_status
from ..metrics.thinning import ShortenedLog, finite_or_nan
from ..settings.run_folder import METRICS_FILE, SAMPLES_FILE

Points = list[tuple[float, float]]  # step and value
# name in the log -> title
CURVES = {
    "loss": "training loss",
    "eval_loss": "validation loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}
LIMIT = 400  # points of a curve, at most four times as many


@dataclass(frozen=True)
class RunView:
    """What a run has written so far.

    Attributes:
        curves: the points of each of CURVES that the log has.
        samples: prompt and text of each sample, by their step.
        state: running, stopped, complete or failed; empty if it is not known.
    """

    curves: dict[str, Points]
    samples: dict[int, list[tuple[str, str]]]
    state: str
    step: int | None
    max_steps: int | None


def read_run(folder: Path) -> RunView:
    """Read the logs of a run. Lines that are being written are left out.

    Raises:
        ValueError: there is no log.
    """
    if not (folder / METRICS_FILE).exists():
        raise ValueError(f"{folder} has no {METRICS_FILE}: it is not the folder of a training run, or has just begun.")
    log = ShortenedLog(JsonLines(folder / METRICS_FILE), LIMIT, LIMIT)
    status = read_status(folder)
    curves = {name: points_of(log.metrics, name) for name in CURVES}
    return RunView(
        curves={name: points for name, points in curves.items() if points},
        samples=samples_of(folder),
        state=str(status.get("state", "")),
        step=status.get("step"),
        max_steps=status.get("max_steps"),
    )


def points_of(records: list[dict[str, Any]], name: str) -> Points:
    """The finite values of a metric, in order."""
    found = ((float(record["step"]), finite_or_nan(record.get(name))) for record in records)
    return sorted((step, value) for step, value in found if value == value)  # not nan


def samples_of(folder: Path) -> dict[int, list[tuple[str, str]]]:
    """The samples by their step, in order."""
    found: dict[int, list[tuple[str, str]]] = {}
    for record in JsonLines(folder / SAMPLES_FILE):
        if isinstance(record.get("prompt"), str) and isinstance(record.get("text"), str):
            found.setdefault(record["step"], []).append((record["prompt"], record["text"]))
    return dict(sorted(found.items()))


def fingerprint(folder: Path) -> tuple[int, ...]:
    """Changes when the logs do."""
    paths = [folder / name for name in (METRICS_FILE, SAMPLES_FILE)]
    return tuple(path.stat().st_size if path.exists() else 0 for path in paths)
