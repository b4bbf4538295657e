"""Watch and kill training processes that a `Launcher` has started."""

import os
import signal
import time

from tests.support.tiny_run import records


def kill(processes):
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:  # it has ended already
            continue


def wait_for_step(run, step):
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + 60
    while max([0, *(line["step"] for line in complete_records(run))]) < step:
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.02)


def complete_records(run):
    """The records of metrics.jsonl; none while one is being written, or before the first."""
    try:
        return records(run)
    except (FileNotFoundError, ValueError):
        return []
