"""What a run records of each step: its progress, log lines, and whether it has diverged."""

import time

from ..checkpoint.find import last_good_checkpoint
from ..checkpoint.state import TrainState
from .first_loss import warn_if_worse_than_guessing
from .log import RunLog
from .outcome import StepResult, judge
from .run import Run
from .schedule import is_due


class Recorder:
    """Records the result of each step as soon as that costs no time: at once, or while a GPU works on the next step."""

    def __init__(self, run: Run, state: TrainState, log: RunLog) -> None:
        self.run, self.state, self.log = run, state, log
        self.wants_stop = False  # in all processes
        self._newest: StepResult | None = None  # not recorded yet
        self._recorded_at = 0.0  # in seconds of time.perf_counter

    def add(self, result: StepResult) -> None:
        """Take the result of step `state.step`."""
        self._newest = result
        if not self.run.reads_late:
            self.record()

    def record(self) -> None:
        """Record the newest result, if that has not happened yet; waits until it is known.

        Raises:
            ValueError: the training has diverged.
        """
        result, self._newest = self._newest, None
        if result is None:
            return
        run, state, log = self.run, self.state, self.log
        judge(run, state, result)
        state.tokens_seen += result.num_tokens
        self.wants_stop = result.wants_stop
        now = time.perf_counter()
        log.count(result.num_tokens, now - max(result.started, self._recorded_at))
        self._recorded_at = now
        if state.step == 1 and not run.arguments.is_finetuning:
            warn_if_worse_than_guessing(run, result.loss)
        if result.skip_reason:
            log.write_skip(state, result.skip_reason)
            check_diverged(run, state, result.skip_reason)
        elif is_due(run.arguments.logging_steps, state.step, run.arguments.max_steps):
            metrics = {"loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": result.learning_rate}
            log.write_step(state, metrics)


def check_diverged(run: Run, state: TrainState, reason: str) -> None:
    """End a run that does not recover.

    Raises:
        ValueError: `max_skipped` updates in a row were skipped.
    """
    if state.skipped_in_a_row < run.arguments.max_skipped:
        return
    good = last_good_checkpoint(run.folder)
    raise ValueError(
        f"training has diverged: {state.skipped_in_a_row} updates in a row were skipped, up to step {state.step} "
        f"({reason}). The last good checkpoint is {good or 'none'}. Start a new run with a lower --learning_rate or "
        "more --warmup_steps, or skip the steps before with scratch-gpt rollback."
    )
