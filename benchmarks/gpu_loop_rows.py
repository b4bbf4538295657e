"""Rows of `benchmarks.gpu` that run the training loop of the product."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from train.checkpoint.state import TrainState
from train.distributed import parallel
from train.distributed.device import build_accelerator, resolve_precision
from train.loop.language_modeling import LanguageModeling
from train.loop.optimizers import build_optimizers
from train.loop.outcome import judge
from train.loop.run import Run, build_run
from train.loop.train import train_step
from train.settings.training import TrainArguments

from .gpu_rows import LOOP, TINY, Shape, ours, peak_memory, speed_of, timed
from .report import default_device


class RandomBlocks:
    """Blocks of random tokens in memory."""

    def __init__(self, shape: Shape, count: int = 512) -> None:
        generator = np.random.default_rng(0)
        self.ids = torch.from_numpy(generator.integers(shape.vocab_size, size=(count, shape.context + 1)))
        self.mean_length = float(shape.context)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Any) -> dict[str, Tensor]:
        """Inputs and shifted labels."""
        rows = self.ids[torch.as_tensor(np.asarray(indices))]
        return {"input_ids": rows[:, :-1].contiguous(), "shift_labels": rows[:, 1:].contiguous()}


def make_run(shape: Shape, folder: str, model: Any, **settings: Any) -> Run:
    """A run of `pretrain` on random blocks, two micro-batches per step."""
    values: dict[str, Any] = {
        "global_batch_size": 2 * shape.micro_batch,
        "micro_batch_size": shape.micro_batch,
        "max_steps": 10_000,
        "torch_compile": "false",
    }
    arguments = TrainArguments(folder, **values | settings)
    data, objective = RandomBlocks(shape), LanguageModeling(None, torch.ones(shape.vocab_size))  # type: ignore[arg-type]
    objective.forward_kwargs = {"skip_logits": True}
    return build_run(arguments, build_accelerator(arguments.precision), model, objective, data, data, {})


def loop_row(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """`pretrain` with its defaults, compiled, against the same network and optimizers in a plain loop."""
    shape = TINY if is_tiny else LOOP
    with tempfile.TemporaryDirectory() as folder:
        run, state = make_run(shape, folder, ours(shape)), TrainState()
        run.bare_model.compile(backend="aot_eager" if is_tiny else "inductor")
        previous: list[Any] = []

        def product() -> None:
            def record() -> None:
                if previous:
                    judge(run, state, previous.pop())

            previous.append(train_step(run, state, record_previous=record))
            state.step += 1

        product()  # compiles
        plain = plain_step(run, shape)
        plain()
        pairs = [(timed(plain, 1, shape.steps), timed(product, 1, shape.steps)) for _ in range(3)]
    ratio = statistics.median(alone / whole for alone, whole in pairs)
    best = min(whole for _, whole in pairs)
    batch = 2 * shape.micro_batch
    return speed_of(run.bare_model, shape, batch, best) | {"share_of_plain_loop": round(ratio, 3)} | peak_memory()


def plain_step(run: Run, shape: Shape) -> Callable[[], None]:
    """A step of the run's own model and optimizers, as one would write it by hand."""
    device = run.accelerator.device
    ids = torch.randint(shape.vocab_size, (2, shape.micro_batch, shape.context), device=device)
    count = torch.full((), float(ids.numel()), device=device)
    model, optimizers = run.bare_model, run.checkpoints.optimizers

    def step() -> None:
        for one in ids:
            with run.accelerator.autocast():
                labels = {"labels": one, "shift_labels": one, "num_items_in_batch": count}
                loss = model(input_ids=one, **labels, use_cache=False, skip_logits=True).loss
            loss.backward()
        nn.utils.clip_grad_norm_(run.parameters, 1.0)
        for optimizer in optimizers:
            optimizer.found_inf = None  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad()

    return step


# What must hold on a GPU too


def decisions_row(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """Updates with a loss that is not finite leave weights and optimizer state bit for bit as they are."""
    with tempfile.TemporaryDirectory() as folder:
        run, state = make_run(TINY, folder, ours(TINY), precision="fp32"), TrainState()
        judge(run, state, train_step(run, state))
        before = snapshot(run)
        with torch.no_grad():
            scale, objective = torch.full((), float("nan"), device=run.accelerator.device), run.objective
        real_loss = objective.loss
        objective.loss = lambda *arguments: real_loss(*arguments) * scale  # type: ignore[method-assign]
        state.step = 1
        is_skipped = judge(run, state, train_step(run, state))
        after = snapshot(run)
    same = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    return {"skipped": is_skipped, "unchanged": same, "tiny": is_tiny}


def snapshot(run: Run) -> list[Tensor]:
    """Copies of all weights and of the whole optimizer state."""
    states = [
        value for optimizer in run.checkpoints.optimizers for one in optimizer.state.values() for value in one.values()
    ]
    return [tensor.detach().clone() for tensor in [*run.parameters, *states]]


def kills_row(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """A run that is killed twice ends with the weights of one that is not."""
    with tempfile.TemporaryDirectory() as folder:
        prepare_text(Path(folder))
        pretrain(folder, "whole")
        for after in (3, 8):
            process = start_pretrain(folder, "killed")
            wait_for_steps(Path(folder) / "killed" / "metrics.jsonl", after, process)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        pretrain(folder, "killed")
        whole, killed = (load_file(f"{folder}/{name}/model/model.safetensors") for name in ("whole", "killed"))
    return {"same_bits": all(torch.equal(whole[name], killed[name]) for name in whole), "tiny": is_tiny}


def fp16_row(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """Training with the loss scaler (float32 on a CPU, which has no fp16)."""
    with tempfile.TemporaryDirectory() as folder:
        precision = "fp16" if torch.cuda.is_available() else "fp32"
        run, state = make_run(TINY, folder, ours(TINY), precision=precision, learning_rate=1e-2), TrainState()
        losses = []
        while state.step < 30:
            result = train_step(run, state)
            judge(run, state, result)
            state.step += 1
            losses.append(round(result.loss, 3))
    return {"precision": precision, "first_loss": losses[0], "last_loss": losses[-1], "tiny": is_tiny}


def fsdp_row(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """FSDP2 with NCCL (gloo on a CPU) on one process: the losses of the same model that is not split."""
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29571",
    }
    device = default_device()
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    mesh = torch.distributed.device_mesh.init_device_mesh(
        device.type, (1, 1, 1), mesh_dim_names=("replicate", "shard", "tensor")
    )
    losses = []
    for grid in (parallel.Grid(), parallel.Grid(mesh, data_size=2)):  # data_size 2: split, into one part
        torch.manual_seed(0)
        model = ours(TINY).to(device)
        parallel.split_model(model, grid)  # type: ignore[arg-type]
        losses.append(split_losses(model, device))
    torch.distributed.destroy_process_group()
    difference = max(abs(one - other) for one, other in zip(*losses, strict=True))
    return {"largest_difference_of_losses": difference, "last_loss": round(losses[0][-1], 4), "tiny": is_tiny}


def split_losses(model: Any, device: torch.device) -> list[float]:
    """The losses of ten steps with clipping and Muon."""
    optimizers = build_optimizers(model, optimizer="muon", learning_rate=1e-2)
    ids = torch.randint(TINY.vocab_size, (4, 32), generator=torch.Generator().manual_seed(0)).to(device)
    losses = []
    for _ in range(10):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        parallel.clip_gradients(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def decoding_row(is_tiny: bool, _: str | None) -> dict[str, Any]:
    """The table of `benchmarks.decoding` for 1B, with a static cache and a compiled step."""
    options = ["--presets", "tiny" if is_tiny else "llama3-1b", "--new_tokens", "2" if is_tiny else "64"]
    options += ["--rounds", "1" if is_tiny else "2", "--torch_compile", str(not is_tiny)]
    command = [sys.executable, "-m", "benchmarks.decoding", *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    return {name: values for name, *values in rows if name.strip("- ")}


def prepare_text(folder: Path) -> None:
    """A tokenizer and blocks of made-up text."""
    text = "".join(f"def function_{i}(x):\n    return x + {i}\n\n" for i in range(3000))
    (folder / "text.txt").write_text(text)
    data, tokenizer = str(folder / "text.txt"), str(folder / "tokenizer")
    run_module("train_tokenizer", "--text", data, "--output_dir", tokenizer, "--vocab_size", "300")
    run_module("prepare_data", "--text", data, "--tokenizer", tokenizer, "--output_dir", f"{folder}/data",
               "--block_size", "32")  # fmt: skip


def run_module(command: str, *options: str) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, "-m", f"train.{command}", *options], check=True, stdout=subprocess.DEVNULL)


def pretrain_options(folder: str, name: str) -> list[str]:
    """A run of twelve steps with dropout, that saves every second one."""
    options: dict[str, Any] = {
        "config": "tiny", "config_overrides": "residual_dropout=0.1", "data_dir": f"{folder}/data",
        "output_dir": f"{folder}/{name}", "max_steps": 12, "save_steps": 2, "eval_steps": 4, "logging_steps": 1,
        "precision": resolve_precision("auto", default_device()),
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in options.items()]


def pretrain(folder: str, name: str) -> None:
    """Train to the end."""
    run_module("pretrain", *pretrain_options(folder, name))


def start_pretrain(folder: str, name: str) -> "subprocess.Popen[bytes]":
    """Start the run in a process group of its own."""
    command = [sys.executable, "-m", "train.pretrain", *pretrain_options(folder, name)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def wait_for_steps(metrics: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a step is in the log, or the run has ended."""
    while process.poll() is None and not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        time.sleep(0.01)
