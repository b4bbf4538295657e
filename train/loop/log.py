"""The logs of a run: metrics.jsonl, samples.jsonl, trackers and the terminal."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator

from ..checkpoint.state import TrainState
from ..settings.durable import replaced
from ..settings.run_folder import METRICS_FILE, SAMPLES_FILE
from .display import MAX_SAMPLES, Pace, TrainingDisplay


class JsonLines:
    """A file of one JSON object per line, each with a `step`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record, which must have a `step`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All records."""
        return list(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read the records one by one; skips lines that are none, such as one that a kill has truncated."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    yield record

    def cut_back(self, step: int) -> None:
        """Remove records after `step`: the continued run writes them again."""
        with replaced(self.path) as file:
            for record in self:
                if record["step"] <= step:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def cut_back_logs(run: Path, step: int) -> None:
    """Remove everything after `step` from metrics.jsonl and samples.jsonl."""
    for name in (METRICS_FILE, SAMPLES_FILE):
        JsonLines(run / name).cut_back(step)


class RunLog:
    """Writes metrics and samples to the run folder, the trackers and the terminal.

    Args:
        peak_tokens_per_second: for the MFU.
        pace: with the intervals of evaluations and checkpoints, to estimate the time left.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        first_step: int,
        last_step: int,
        peak_tokens_per_second: float = math.inf,
        pace: Pace | None = None,
    ) -> None:
        self.accelerator, self.peak_tokens_per_second = accelerator, peak_tokens_per_second
        self.metrics, self.samples = JsonLines(folder / METRICS_FILE), JsonLines(folder / SAMPLES_FILE)
        self.last_step = last_step
        is_shown = accelerator.is_main_process
        best = best_eval_loss(self.metrics) if is_shown else None
        self.display = TrainingDisplay(first_step, pace or Pace(last_step), is_shown=is_shown, best=best)
        self.tokens, self.seconds = 0, 0.0  # since the last log line
        self.num_samplings = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.display.close()  # so that an error message begins on a new line

    def count(self, tokens: int, seconds: float) -> None:
        """Add a step's tokens and training time to the throughput of the next line."""
        self.tokens += tokens
        self.seconds += seconds
        self.display.count(tokens, seconds)

    def write_step(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Log loss, grad_norm and learning_rate of a step, and the throughput since the last line.

        `mfu` is the model FLOPs utilization (https://huggingface.co/papers/2204.02311, appendix B), relative to the
        measured speed of matrix products on this machine.
        """
        speed = self.tokens / max(self.seconds, 1e-9)
        self.tokens, self.seconds = 0, 0.0
        mfu = speed / self.peak_tokens_per_second
        utilization = {} if math.isinf(self.peak_tokens_per_second) else {"mfu": round(mfu, 4)}
        self._write(state, metrics | {"tokens_per_second": round(speed, 1)} | utilization)
        text = (
            f"loss {metrics['loss']:.4f} | grad_norm {metrics['grad_norm']:.2f} | lr {metrics['learning_rate']:.2e} | "
            f"{speed:,.0f} tokens/s"
        )
        self.display.show_step(metrics["loss"], text + (f" | MFU {mfu:.0%}" if utilization else ""))

    def write_skip(self, state: TrainState, reason: str) -> None:
        """Log that the update of a step was skipped, and why."""
        if self.accelerator.is_main_process:
            self.metrics.write({"step": state.step, "tokens_seen": state.tokens_seen, "skipped": reason})
        self.display.print(f"step {state.step}: update skipped: {reason}")

    def write_evaluation(self, state: TrainState, metrics: dict[str, Any], text: str) -> None:
        """Log the metrics of an evaluation and print `text`; trackers take numbers only."""
        self._write(state, metrics)
        self.display.show_evaluation(metrics.get("eval_loss"), text)

    def write_samples(self, step: int, samples: Iterable[tuple[str, str]]) -> None:
        """Log (prompt, completion) pairs; with a split model all processes have them, and the main one writes."""
        samples = list(samples) if self.accelerator.is_main_process else []
        for prompt, text in samples:
            self.samples.write({"step": step, "prompt": prompt, "text": text})
        self.display.show_samples(samples)
        self.num_samplings += 1
        if len(samples) > MAX_SAMPLES and self.num_samplings == 1:
            self.display.print(f"    {MAX_SAMPLES} of {len(samples)} samples; all are in {self.samples.path}")

    def close(self, step: int) -> None:
        """Say how to continue a run that was stopped early."""
        if step < self.last_step:
            self.display.print(f"stopped after step {step} and saved: run the same command again to continue")

    def _write(self, state: TrainState, metrics: dict[str, Any]) -> None:
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=state.step)
        if self.accelerator.is_main_process:
            record = {"step": state.step, "tokens_seen": state.tokens_seen}
            self.metrics.write(record | metrics)


def best_eval_loss(metrics: JsonLines) -> float | None:
    """The lowest validation loss that a log contains; None if it has none."""
    losses = (record["eval_loss"] for record in metrics if isinstance(record.get("eval_loss"), float))
    return min((loss for loss in losses if math.isfinite(loss)), default=None)
