"""Run commands in forked processes: everything is imported once, so a trial takes a fraction of a second."""

import gc
import importlib
import math
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..forks import end_with, free_port, set_rank
from .shim import Injection, arm

COMMANDS = ("train_tokenizer", "prepare_data", "pretrain", "finetune", "finetune_classifier")
LIBRARIES = ("matplotlib.backends.backend_agg", "matplotlib.pyplot", "peft", "datasets", "jinja2", "yaml", "tqdm")
PATIENCE = 120.0  # seconds after which a trial counts as hung


@dataclass
class Trial:
    """A command line, and what happens to it.

    Args:
        watched: the folder whose calls are counted.
        log: for the calls that the shim sees.
    """

    command: str
    arguments: Sequence[str]
    output: Path
    watched: Path | None = None
    injection: Injection = field(default_factory=Injection)
    log: Path | None = None
    num_processes: int = 1


@dataclass(frozen=True)
class Ending:
    """How a trial ended: exit codes of its processes, minus the signal of a killed one, and all that they printed."""

    codes: list[int]
    text: str

    @property
    def code(self) -> int:
        """The exit code of the first process."""
        return self.codes[0]


def import_everything() -> None:
    """Import what the commands need, and skip their measurement of this machine."""
    import torch

    torch.set_num_threads(1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true"}
    device = importlib.import_module("train.distributed.device")
    device.matmul_rate = lambda *_: 1e12  # type: ignore[attr-defined]
    for name in (*LIBRARIES, *(f"train.{command}" for command in COMMANDS)):
        importlib.import_module(name)
    _write_pictures_at_once()
    gc.freeze()  # children neither scan nor copy it


def _write_pictures_at_once() -> None:
    """Drawing takes longer than the rest of a trial: write bytes of the usual size instead, in the same way."""
    from matplotlib.figure import Figure

    def savefig(self: Figure, path: str | os.PathLike[str], **settings: object) -> None:
        with open(path, "w+b") as file:
            file.write(b"picture" * 10_000)

    Figure.savefig = savefig  # type: ignore[assignment, method-assign]


def run(trial: Trial) -> Ending:
    """Start a trial and wait until it ends."""
    return finish(trial, start(trial))


def start(trial: Trial) -> list[int]:
    """Fork the processes of a trial; returns their ids."""
    trial.output.write_bytes(b"")
    port = free_port() if trial.num_processes > 1 else 0
    children = []
    for rank in range(trial.num_processes):
        if (child := os.fork()) == 0:
            set_rank(rank, trial.num_processes, port)
            end_with(partial(_call, trial), trial.output)
        children.append(child)
    return children


def _call(trial: Trial) -> int:
    from train.settings.command import run_command

    main = importlib.import_module(f"train.{trial.command}").main
    if trial.watched is not None:
        arm(trial.watched, trial.injection, trial.log)
    return run_command(main, list(trial.arguments))


def finish(trial: Trial, children: list[int]) -> Ending:
    """Wait for the processes of a trial. Those that still run after two minutes are killed."""
    deadline = time.monotonic() + PATIENCE
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(ended[1])
        if time.monotonic() > deadline:
            deadline = math.inf
            kill(child for child in children if child not in codes)
            with trial.output.open("a") as file:
                file.write(f"\nhung: killed after {PATIENCE:.0f} s\n")
        time.sleep(0.002)
    return Ending([codes[child] for child in children], trial.output.read_text(errors="replace"))


def kill(children: Iterable[int]) -> None:
    """Kill processes that may have ended already but were not waited for."""
    for child in children:
        os.kill(child, signal.SIGKILL)
