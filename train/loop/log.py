"""The logs of a run: metrics.jsonl, samples.jsonl, trackers and the terminal."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from ..checkpoint.manifest import replaced
from ..checkpoint.state import TrainState
from ..settings.run_folder import METRICS_FILE, SAMPLES_FILE


class JsonLines:
    """A file of one JSON object per line, each with a `step`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record, which must have a `step`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All complete records; skips a line that a kill has truncated."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def cut_back(self, step: int) -> None:
        """Remove records after `step`: the continued run writes them again."""
        with replaced(self.path) as file:
            for record in self.read():
                if record["step"] <= step:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")


class TrainingDisplay:
    """The terminal output of a run: a progress bar, or one line per log when the output is not a terminal.

    Args:
        is_shown: False for all processes but the main one.
    """

    def __init__(self, first_step: int, last_step: int, *, is_shown: bool = True) -> None:
        self.is_shown = is_shown
        self.first_step, self.last_step = first_step, last_step
        self.started = time.monotonic()
        self.has_bar = is_shown and sys.stdout.isatty()
        self.bar = tqdm(
            total=last_step,
            initial=first_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not self.has_bar,
        )

    def print(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.has_bar:
            tqdm.write(text)
        elif self.is_shown:
            print(text, flush=True)

    def update(self, step: int, text: str) -> None:
        """Show progress; `text` has the metrics of the last step."""
        if self.has_bar:
            self.bar.set_postfix_str(text.replace(" | ", ", "), refresh=False)
            self.bar.update(step - self.bar.n)
            return
        seconds_per_step = (time.monotonic() - self.started) / max(1, step - self.first_step)
        left = timedelta(seconds=round((self.last_step - step) * seconds_per_step))
        width = len(str(self.last_step))
        self.print(f"step {step:>{width}}/{self.last_step} | {text} | {left} left")

    def close(self) -> None:
        """End the bar."""
        self.bar.close()


def cut_back_logs(run: Path, step: int) -> None:
    """Remove everything after `step` from metrics.jsonl and samples.jsonl."""
    for name in (METRICS_FILE, SAMPLES_FILE):
        JsonLines(run / name).cut_back(step)


class RunLog:
    """Writes metrics and samples to the run folder, the trackers and the terminal."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        first_step: int,
        last_step: int,
        peak_tokens_per_second: float = math.inf,
    ) -> None:
        self.accelerator, self.peak_tokens_per_second = accelerator, peak_tokens_per_second
        self.metrics, self.samples = JsonLines(folder / METRICS_FILE), JsonLines(folder / SAMPLES_FILE)
        self.last_step = last_step
        self.display = TrainingDisplay(first_step, last_step, is_shown=accelerator.is_main_process)
        self.tokens, self.seconds = 0, 0.0  # since the last log line

    def count(self, tokens: int, seconds: float) -> None:
        """Add a step's tokens and training time to the throughput of the next line."""
        self.tokens += tokens
        self.seconds += seconds

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
        self.display.update(state.step, text + (f" | MFU {mfu:.0%}" if utilization else ""))

    def write_skip(self, state: TrainState, reason: str) -> None:
        """Log that the update of a step was skipped, and why."""
        if self.accelerator.is_main_process:
            self.metrics.write({"step": state.step, "tokens_seen": state.tokens_seen, "skipped": reason})
        self.display.print(f"step {state.step}: update skipped: {reason}")

    def write_evaluation(self, state: TrainState, metrics: dict[str, Any], text: str) -> None:
        """Log the metrics of an evaluation and print `text`; trackers take numbers only."""
        self._write(state, metrics)
        self.display.print(f"step {state.step}: {text}")

    def write_samples(self, step: int, samples: Iterable[tuple[str, str]]) -> None:
        """Log (prompt, completion) pairs; with a split model all processes have them, and the main one writes."""
        for prompt, text in samples:
            if not self.accelerator.is_main_process:
                continue
            self.samples.write({"step": step, "prompt": prompt, "text": text})
            self.display.print(f"  {prompt!r} -> {text[:120]!r}")

    def close(self, step: int) -> None:
        """End the display; say how to continue a run that was stopped early."""
        self.display.close()
        if step < self.last_step:
            self.display.print(f"stopped after step {step} and saved: run the same command again to continue")

    def _write(self, state: TrainState, metrics: dict[str, Any]) -> None:
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=state.step)
        if self.accelerator.is_main_process:
            record = {"step": state.step, "tokens_seen": state.tokens_seen}
            self.metrics.write(record | metrics)
