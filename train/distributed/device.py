"""Processes, number formats and memory of this machine."""

import ctypes
import math
import os
import platform
import time
import warnings
from collections.abc import Mapping
from datetime import timedelta

import psutil
import torch
from accelerate import Accelerator, PartialState

HUGE_PAGE = 2 << 20  # bytes
HEAP_SIZE = 1 << 30  # bytes that are kept in huge pages


def build_accelerator(
    precision: str, report_to: str | None = None, folder: str = "", timeout: float = 600.0
) -> Accelerator:
    """The Accelerator for this machine, with `precision` resolved.

    Args:
        timeout: seconds to wait for another process before it counts as hung.

    Raises:
        ValueError: `precision` does not work here, the tracker `report_to` is not installed, the launcher started more
            processes than take part, or it selects an engine that is a setting of the run.
    """
    check_engine(os.environ)
    cpu = not torch.accelerator.is_available()
    device = PartialState(cpu=cpu, timeout=timedelta(seconds=timeout)).device
    resolved = resolve_precision(precision, device, os.environ.get("ACCELERATE_MIXED_PRECISION"))
    with warnings.catch_warnings():  # the error below replaces it
        warnings.filterwarnings("ignore", message=".*no supported trackers")
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no" if resolved == "fp32" else resolved,
            log_with=report_to,
            project_dir=folder or None,
        )
    if report_to and not accelerator.log_with:
        raise ValueError(f"--report_to {report_to} is not installed: pip install {report_to}, or remove the option.")
    check_world_size(accelerator.num_processes, os.environ.get("WORLD_SIZE"))
    return accelerator


def launched_processes() -> int:
    """The number of processes that a launcher has started, also before they know each other."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def resolve_precision(precision: str, device: torch.device, launched: str | None = None) -> str:
    """Resolve "auto" to "fp32", "bf16" or "fp16".

    Args:
        launched: precision set by `accelerate launch`; with "no" and None the hardware decides.

    Raises:
        ValueError: fp16 without a GPU, or a precision of the launcher that is not supported.
    """
    if precision == "auto" and launched not in (None, "", "no"):
        precision = launched
    if precision == "auto":
        return "bf16" if has_bfloat16_hardware(device) else "fp32"
    if precision not in ("fp32", "bf16", "fp16", "no"):
        raise ValueError(
            f"the launcher sets the precision {precision} (ACCELERATE_MIXED_PRECISION): use no, bf16 or fp16."
        )
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("--precision fp16 needs a GPU: use bf16 or fp32 on this machine.")
    return {"no": "fp32"}.get(precision, precision)


def has_bfloat16_hardware(device: torch.device) -> bool:
    """Whether matrix products are faster in bfloat16 than in float32 on `device`.

    A CPU without bfloat16 units still computes in bfloat16, at a third of its float32 speed.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # private functions of torch 2.11 to 2.13; without them, float32 is the safe choice
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def check_engine(environment: Mapping[str, str]) -> None:
    """Refuse what the launcher would change in a run, or silently ignore, such as engines on CPUs.

    Raises:
        ValueError: the launcher's variable, and the setting to use instead.
    """
    for name, remedy in {
        "ACCELERATE_USE_FSDP": "use --dp_shard_size instead",
        "ACCELERATE_USE_DEEPSPEED": "use --dp_shard_size instead (FSDP2, equivalent to ZeRO-3)",
        "ACCELERATE_USE_MEGATRON_LM": "use --tp_size instead",
        "ACCELERATE_USE_PARALLELISM_CONFIG": "use --dp_shard_size and --tp_size instead",
    }.items():
        if environment.get(name, "false").lower() in ("1", "true", "yes"):
            raise ValueError(f"the launcher sets {name}, but splitting a model is a setting of the run: {remedy}.")
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("", "1"):
        raise ValueError(
            f"the launcher sets ACCELERATE_GRADIENT_ACCUMULATION_STEPS to {steps}, which would divide all gradients by "
            "it: remove it. A step accumulates --global_batch_size / --micro_batch_size micro-batches by itself."
        )
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("", "no"):
        raise ValueError(
            f"the launcher sets ACCELERATE_DYNAMO_BACKEND to {backend}, but compiling is a setting of the run: "
            "use --torch_compile true instead."
        )


def check_world_size(num_processes: int, world_size: str | None) -> None:
    """Refuse a launch whose processes do not see each other and would all write the same run.

    Raises:
        ValueError: the number of processes that the launcher started, and that of those that take part.
    """
    if world_size is not None and int(world_size) != num_processes:
        raise ValueError(
            f"the launcher started {world_size} processes (WORLD_SIZE), but only {num_processes} takes part in "
            "training: on CPUs set ACCELERATE_USE_CPU=true; on GPUs check that each process has one."
        )


def matmul_rate(device: torch.device, precision: str) -> float:
    """Measured floating-point operations per second of matrix products on `device`: an upper bound for training."""
    size, repeats = (4096, 20) if device.type == "cuda" else (1024, 5)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    fastest = math.inf
    for _ in range(3):
        wait_for(device)
        started = time.perf_counter()
        for _ in range(repeats):
            matrix @ matrix
        wait_for(device)
        fastest = min(fastest, time.perf_counter() - started)
    return repeats * 2 * size**3 / fastest


def wait_for(device: torch.device) -> None:
    """Wait until the device has done everything that was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def free_memory_of(device: torch.device) -> float:
    """Bytes of memory that programs can still get."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the CPU had no memory left."""
    # torch.OutOfMemoryError is a RuntimeError, and so is the CPU's, which has no class of its own
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def set_seed(device: torch.device, seed: int) -> None:
    """Seed the random numbers of the CPU and of `device`, and of no other: `torch.manual_seed` looks for all kinds."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def wide_dtype(device: torch.device) -> torch.dtype:
    """The number format for sums of many values: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, and use huge pages for it.

    By default, large activations (above 32 MB, or less) are mapped and unmapped in every step, and the system fills
    their pages with zeros each time. With pages of 2 MB instead of 4 kB, the processor finds their addresses faster.
    Has an effect on Linux with glibc only.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max, use_huge_pages = -1, -4, 14  # from malloc.h and mman.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, (1 << 31) - 1)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if block := libc.malloc(HEAP_SIZE):  # addresses only: memory is used when it is written to
        start = -(-block // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(start, (block + HEAP_SIZE - start) // HUGE_PAGE * HUGE_PAGE, use_huge_pages)
        libc.free(block)
