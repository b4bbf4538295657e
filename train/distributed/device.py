"""What this machine offers: processes, number formats, memory."""

import ctypes
import math
import os
import platform
import time
import warnings
from collections.abc import Mapping
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState


def build_accelerator(
    precision: str, report_to: str | None = None, folder: str = "", timeout: float = 600.0
) -> Accelerator:
    """The Accelerator for this machine, with `precision` resolved.

    Args:
        timeout: seconds after which a process that others wait for counts as hung.

    Raises:
        ValueError: `precision` is not possible here, the tracker `report_to` is not installed, the launcher started
            more processes than take part, or it asks for an engine that is a setting of the run.
    """
    check_engine(os.environ)
    cpu = not torch.accelerator.is_available()
    device = PartialState(cpu=cpu, timeout=timedelta(seconds=timeout)).device
    resolved = resolve_precision(precision, device, os.environ.get("ACCELERATE_MIXED_PRECISION"))
    with warnings.catch_warnings():  # an error below says it
        warnings.filterwarnings("ignore", message=".*no supported trackers")
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no" if resolved == "fp32" else resolved,
            log_with=report_to,
            project_dir=folder or None,
        )
    if report_to and not accelerator.log_with:
        raise ValueError(f"--report_to {report_to} is not installed: pip install {report_to}, or leave it out.")
    check_world_size(accelerator.num_processes, os.environ.get("WORLD_SIZE"))
    return accelerator


def resolve_precision(precision: str, device: torch.device, launched: str | None = None) -> str:
    """ "fp32", "bf16" or "fp16": what `precision` means on `device`.

    Args:
        launched: what `accelerate launch` has set; "no" and None leave the choice to the hardware.

    Raises:
        ValueError: fp16 without a GPU, whose loss scaling it needs.
    """
    if precision == "auto" and launched not in (None, "", "no"):
        precision = launched
    if precision == "auto":
        return "bf16" if has_bfloat16_hardware(device) else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("--precision fp16 needs a GPU: use bf16 or fp32 on this machine.")
    return {"no": "fp32"}.get(precision, precision)


def has_bfloat16_hardware(device: torch.device) -> bool:
    """Whether matrices multiply faster in bfloat16 than in float32 on `device`.

    Without such units a CPU still computes in bfloat16, at a third of its float32 speed.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # private, and named alike in torch 2.11 and 2.13; elsewhere float32 is the safe answer
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def check_engine(environment: Mapping[str, str]) -> None:
    """Refuses engines that Accelerate would wrap around the model, or leave out without a word, as it does on CPUs.

    Raises:
        ValueError: which of the launcher's switches is on, and which setting stands for it.
    """
    for name, remedy in {
        "ACCELERATE_USE_FSDP": "give --dp_shard_size to the run instead",
        "ACCELERATE_USE_DEEPSPEED": "FSDP2 does the same as ZeRO-3: give --dp_shard_size to the run instead",
        "ACCELERATE_USE_MEGATRON_LM": "give --tp_size to the run instead",
        "ACCELERATE_USE_PARALLELISM_CONFIG": "give --dp_shard_size and --tp_size to the run instead",
    }.items():
        if environment.get(name, "false").lower() in ("1", "true", "yes"):
            raise ValueError(f"the launcher has set {name}, but how a model is split belongs to the run: {remedy}.")


def check_world_size(num_processes: int, world_size: str | None) -> None:
    """Refuses a launch whose processes do not see each other and would all write the same run.

    Raises:
        ValueError: the launcher announces another number of processes than take part.
    """
    if world_size is not None and int(world_size) != num_processes:
        raise ValueError(
            f"the launcher started {world_size} processes (WORLD_SIZE), but {num_processes} takes "
            "part in training: on CPUs set ACCELERATE_USE_CPU=true, on GPUs check that each "
            "process has one."
        )


def matmul_rate(device: torch.device, precision: str) -> float:
    """Operations per second that matrix products reach on `device`, measured: what training could reach at best."""
    size, repeats = (4096, 20) if device.type == "cuda" else (1024, 5)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    fastest = math.inf
    for _ in range(3):
        _wait_for(device)
        started = time.perf_counter()
        for _ in range(repeats):
            matrix @ matrix
        _wait_for(device)
        fastest = min(fastest, time.perf_counter() - started)
    return repeats * 2 * size**3 / fastest


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def keep_freed_memory() -> None:
    """Lets glibc keep freed blocks for the next step instead of giving them back to the system.

    By default each activation above 32 MB at most is mapped and unmapped anew in every step, and
    the system fills its pages with zeros each time. No effect elsewhere than on Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    # parameter numbers from malloc.h
    trim_threshold, mmap_threshold = -1, -3
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
