"""What a run shows in the terminal: a progress bar, or plain lines where the output is not a terminal."""

import sys
import time
from collections import deque
from collections.abc import Sequence

from tqdm import tqdm

from .schedule import is_due

MIN_BAR_WIDTH = 4  # columns; a shorter bar is left out
RECENT_STEPS, RECENT_PAUSES = 64, 4  # averaged for the speed and the time left
MAX_SAMPLES = 2  # shown per evaluation
MAX_LINES, MAX_WIDTH = 6, 100  # of a sample


class Pace:
    """The speed of a run, and the time that it still needs, including its evaluations and checkpoints.

    Args:
        eval_steps: steps between evaluations; 0: only after the last step.
        save_steps: the same for checkpoints.
    """

    def __init__(self, last_step: int, eval_steps: int = 0, save_steps: int = 0) -> None:
        self.last_step = last_step
        self.every = {"evaluating": eval_steps, "saving": save_steps}
        self.first: tuple[int, float] | None = None  # compiles and allocates: only used while it is the only one
        self.recent: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)  # (tokens, seconds) of a step
        self.pauses = {name: deque[float](maxlen=RECENT_PAUSES) for name in self.every}  # seconds

    def count(self, tokens: int, seconds: float) -> None:
        """Add a step."""
        if self.first is None:
            self.first = (tokens, seconds)
        else:
            self.recent.append((tokens, seconds))

    @property
    def tokens_per_second(self) -> float:
        """While training; 0 before the first step."""
        tokens, seconds = self._sums()
        return tokens / max(seconds, 1e-9)

    def due_at(self, step: int) -> list[str]:
        """What is done after a step besides training: evaluating, saving."""
        return [name for name, every in self.every.items() if is_due(every, step, self.last_step)]

    def seconds_left(self, step: int) -> float | None:
        """Seconds from `step` to the end; None before the first step."""
        num_steps = len(self.recent) or (1 if self.first else 0)
        if not num_steps:
            return None
        left = (self.last_step - step) * self._sums()[1] / num_steps
        for name, seconds in self.pauses.items():
            if seconds:
                left += sum(seconds) / len(seconds) * self._num_due(self.every[name], step)
        return left

    def _sums(self) -> tuple[int, float]:
        steps = self.recent or ([self.first] if self.first else [])
        return sum(tokens for tokens, _ in steps), sum(seconds for _, seconds in steps)

    def _num_due(self, every: int, step: int) -> int:
        """How often something that happens every `every` steps, and after the last one, still happens."""
        last = self.last_step
        in_between = (last - 1) // every - step // every if every else 0
        return max(0, in_between) + (1 if step < last else 0)


class TrainingDisplay:
    """Shows step, loss, validation loss, speed and time left: as a bar, or as one line per log.

    Args:
        is_shown: False for all processes but the main one.
        pace: of the run.
        best: the lowest validation loss so far.
    """

    def __init__(self, first_step: int, pace: Pace, *, is_shown: bool = True, best: float | None = None) -> None:
        self.is_shown, self.pace, self.step = is_shown, pace, first_step
        self.loss: float | None = None
        self.validation: float | None = None
        self.best = best
        self.activity = ""  # shown instead of the time left
        self.started = self.marked = time.monotonic()  # marked: the end of the last step or pause
        self.has_bar = is_shown and sys.stdout.isatty()
        self.drawn = 0.0  # when the bar was last drawn
        self.bar = tqdm(
            total=pace.last_step,
            initial=first_step,
            dynamic_ncols=True,
            bar_format=f"step {first_step}/{pace.last_step}",
            disable=not self.has_bar,
            file=sys.stdout,
        )

    def print(self, text: str) -> None:
        """Print lines, above the bar if there is one."""
        if self.has_bar:
            self.bar.write(text, file=sys.stdout)
        elif self.is_shown:
            print(text, flush=True)

    def count(self, tokens: int, seconds: float) -> None:
        """Advance by a step that took `seconds`; what passed besides was spent on saving the step before."""
        now = time.monotonic()
        if "saving" in self.pace.due_at(self.step):
            self.pace.pauses["saving"].append(max(0.0, now - self.marked - seconds))
        self.pace.count(tokens, seconds)
        self.marked, self.step = now, self.step + 1
        self.bar.n = self.step
        due = self.pace.due_at(self.step)
        self.activity = f"{due[0]} ..." if due else ""
        self._refresh(force=bool(due))

    def show_step(self, loss: float, text: str) -> None:
        """Show the loss of the last step; `text` has all its metrics, for a plain line."""
        self.loss = loss
        if self.has_bar:
            self._refresh()
            return
        width, last = len(str(self.pace.last_step)), self.pace.last_step
        self.print(f"step {self.step:>{width}}/{last} | {text}{self._time_left(' | {} left')}")

    def show_evaluation(self, loss: float | None, text: str) -> None:
        """Print the metrics of an evaluation; the best one is marked."""
        is_best = loss is not None and (self.best is None or loss < self.best)
        self.validation, self.best = loss, loss if is_best else self.best
        mark = " (best)" if is_best else "" if self.best is None else f" (best {self.best:.4f})"
        first, *others = f"step {self.step}: {text}".split(" | ")
        self.print(wrapped([first + mark, *others], self._width() if self.has_bar else None))

    def show_samples(self, samples: Sequence[tuple[str, str]]) -> None:
        """Print the first (prompt, completion) pairs as text, which ends an evaluation."""
        width = min(MAX_WIDTH, self._width()) if self.has_bar else MAX_WIDTH
        for prompt, completion in samples[:MAX_SAMPLES]:
            self.print(indented(prompt, "    > ", width) + "\n" + indented(completion.strip(), "    | ", width))
        now = time.monotonic()
        self.pace.pauses["evaluating"].append(now - self.marked)
        self.marked = now
        self.activity = "saving ..." if "saving" in self.pace.due_at(self.step) else ""
        self._refresh(force=True)

    def close(self) -> None:
        """End the bar."""
        self.activity = f"took {tqdm.format_interval(round(time.monotonic() - self.started))}"
        self._refresh(force=True)
        self.bar.close()

    def _refresh(self, *, force: bool = False) -> None:
        """Draw the bar again, at most ten times per second unless forced."""
        now = time.monotonic()
        if not self.has_bar or not (force or now - self.drawn >= self.bar.mininterval):
            return
        self.bar.bar_format = fitted(f"step {self.step}/{self.pace.last_step}", self._fields(), self._width())
        self.drawn = now
        self.bar.refresh()

    def _width(self) -> int:
        return self.bar.format_dict["ncols"] or 80

    def _fields(self) -> list[str]:
        """The parts of the bar, the most important first."""
        speed = self.pace.tokens_per_second
        validation = f"{self.validation:.3f}" if self.validation is not None else ""
        best = "" if self.best is None else " (best)" if self.validation == self.best else f" (best {self.best:.3f})"
        return [
            self.activity or self._time_left("{} left"),
            "" if self.loss is None else f"loss {self.loss:.3f}",
            validation and f"val {validation}{best}",
            f"{tqdm.format_sizeof(speed)} tok/s" if speed else "",
        ]

    def _time_left(self, pattern: str) -> str:
        seconds = self.pace.seconds_left(self.step)
        return "" if seconds is None else pattern.format(tqdm.format_interval(round(seconds)))


def wrapped(fields: Sequence[str], width: int | None) -> str:
    """The fields joined by " | ", in as many lines of `width` columns as needed; None: in one line."""
    lines = [fields[0]]
    for field in fields[1:]:
        longer = f"{lines[-1]} | {field}"
        if width is None or len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(f"    {field}")
    return "\n".join(lines)


def fitted(title: str, fields: Sequence[str], width: int) -> str:
    """A format of tqdm's bar that fits into `width` columns: unimportant fields are left out first, then the bar.

    Args:
        fields: the most important one first; it is shown last.
    """
    shown = [field for field in fields if field]
    while len(shown) > 1 and len("  ".join([title, *shown])) > width:
        shown.pop()
    line = "  ".join([*shown[1:], *shown[:1]]).replace("{", "{{").replace("}", "}}")
    room = width - len(title) - len(line) - 4
    return f"{title}  {{bar}}  {line}" if room >= MIN_BAR_WIDTH else f"{title}  {line}"


def indented(text: str, prefix: str, width: int = MAX_WIDTH) -> str:
    """The first lines of a text, each after `prefix`. Control characters are escaped, as they could move the cursor."""
    lines = text.strip("\n").split("\n")
    shown = ["".join(map(_printable, line[:width].expandtabs(4))) for line in lines[:MAX_LINES]]
    room = width - len(prefix)
    shown = [line if len(line) <= room else f"{line[: room - 4]} ..." for line in shown]
    return "\n".join(prefix + line for line in [*shown, *(["..."] if len(lines) > MAX_LINES else [])])


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
