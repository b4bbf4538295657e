"""Run commands in forked processes: everything is imported once, so a trial takes a fraction of a second."""

import gc
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .shim import Disturbance, arm

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
    disturbance: Disturbance = field(default_factory=Disturbance)
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
    port = _free_port() if trial.num_processes > 1 else 0
    children = []
    for rank in range(trial.num_processes):
        if (child := os.fork()) == 0:
            _child(trial, rank, port)
        children.append(child)
    return children


def finish(trial: Trial, children: list[int], while_waiting: Callable[[], None] = lambda: None) -> Ending:
    """Wait for the processes of a trial. Those that still run after two minutes are killed."""
    deadline = time.monotonic() + PATIENCE
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(ended[1])
        while_waiting()
        if time.monotonic() > deadline:
            kill(child for child in children if child not in codes)
            with trial.output.open("a") as file:
                file.write(f"\nhung: killed after {PATIENCE:.0f} s\n")
        time.sleep(0.002)
    return Ending([codes[child] for child in children], trial.output.read_text(errors="replace"))


def kill(children: Iterable[int]) -> None:
    """Kill processes that may have ended already but were not waited for."""
    for child in children:
        os.kill(child, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _child(trial: Trial, rank: int, port: int) -> None:
    """Run the command and end this process."""
    from train.settings.command import run_command

    output = os.open(trial.output, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if trial.num_processes > 1:
        world = str(trial.num_processes)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    code = 1
    try:
        main = importlib.import_module(f"train.{trial.command}").main
        if trial.watched is not None:
            arm(trial.watched, trial.disturbance, trial.log)
        code = run_command(main, list(trial.arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
