"""Many short trainings at once, with different settings: parallel processes, JSON lines, a time limit."""

import json
import math
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from train.checkpoint.state import TrainState
from train.loop.evaluation import evaluate
from train.loop.outcome import judge
from train.loop.run import Run
from train.loop.train import train_step

Job = dict[str, Any]  # the settings of one training
EVAL_BATCH = 256  # examples per forward pass of an evaluation


def run_jobs(train: Callable[[Job], Run], jobs: Iterable[Job], results: Path, processes: int, seconds: float) -> None:
    """Train each job that `results` does not contain yet, the first ones first, and append a line for each.

    Args:
        train: builds the run of a job; called in another process.
        results: a file of JSON lines, {"job": settings, "evaluations": [{"step": ..., "eval_loss": ...}, ...], ...}.
        processes: trainings at the same time.
        seconds: jobs that are not finished by then are given up; the next call starts them again.
    """
    deadline = time.time() + seconds
    done = {json.dumps(line["job"], sort_keys=True) for line in read_results(results)}
    waiting = [job for job in jobs if json.dumps(job, sort_keys=True) not in done]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([train.__module__])
    running: set[Future[dict[str, Any] | None]] = set()
    with ProcessPoolExecutor(processes, mp_context=context) as pool, results.open("a", encoding="utf-8") as file:
        while running or (waiting and time.time() < deadline):
            while waiting and len(running) < processes and time.time() < deadline:
                running.add(pool.submit(finish_job, train, waiting.pop(0), deadline))
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for line in filter(None, (future.result() for future in finished)):
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(json.dumps(line["job"]), line.get("error") or f"{best(line)['eval_loss']:.4f}", flush=True)


def finish_job(train: Callable[[Job], Run], job: Job, deadline: float) -> dict[str, Any] | None:
    """The line of a finished training; None if the deadline came first."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            evaluations = evaluations_of(train(job | {"folder": folder}), deadline)
    except Exception as error:  # one bad job must not end the others
        return {"job": job, "evaluations": [], "error": repr(error), "traceback": traceback.format_exc()[-1500:]}
    seconds = round(time.perf_counter() - started, 1)
    return None if evaluations is None else {"job": job, "evaluations": evaluations, "seconds": seconds}


def evaluations_of(run: Run, deadline: float) -> list[dict[str, float]] | None:
    """Train to the end, or until too many updates are skipped; returns the step and metrics of each evaluation."""
    arguments = replace(run.arguments, global_batch_size=EVAL_BATCH, micro_batch_size=EVAL_BATCH)
    evaluation, state, found = replace(run, arguments=arguments), TrainState(), []
    last, every = run.arguments.max_steps, run.arguments.eval_steps
    while True:
        if state.step in (0, last) or (every and state.step % every == 0):
            metrics = {name: value for name, value in evaluate(evaluation).items() if isinstance(value, float)}
            found.append({"step": state.step} | metrics)
        if state.step == last or state.skipped_in_a_row >= run.arguments.max_skipped:
            return found
        if time.time() > deadline:
            return None
        judge(run, state, train_step(run, state))
        state.step += 1


def read_results(results: Path) -> list[dict[str, Any]]:
    """The lines written so far."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def best(line: dict[str, Any]) -> dict[str, float]:
    """The evaluation with the lowest validation loss after the first step."""
    found = [one for one in line["evaluations"] if one["step"] > 0 and math.isfinite(one["eval_loss"])]
    return min(found, key=lambda one: one["eval_loss"], default={"step": 0, "eval_loss": math.inf})


def compared(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """A table row per line, the best first: the settings `names`, the steps, the loss, its distance to the best."""
    ordered = sorted((line for line in lines if line["evaluations"]), key=lambda line: best(line)["eval_loss"])
    lowest = best(ordered[0])["eval_loss"] if ordered else math.inf
    rows = []
    for line in ordered:
        values = (line["job"].get(name, "") for name in names)
        settings = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        loss = best(line)["eval_loss"]
        rows.append([*settings, str(line["evaluations"][-1]["step"]), f"{loss:.4f}", f"{loss / lowest - 1:+.1%}"])
    return rows
