"""Shared by all benchmarks: interleaved timing, fresh processes, and a table with machine and date."""

import datetime
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

from train.distributed.device import has_bfloat16_hardware

T = TypeVar("T")
LIBRARIES = ("torch", "transformers", "tokenizers")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table with its title, machine and date; also append it to the file $BENCHMARK_JSON, if set."""
    if path := os.environ.get("BENCHMARK_JSON"):
        record = {
            "title": title,
            "machine": where_and_when(),
            "header": list(header),
            "rows": [list(row) for row in rows],
        }
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    print(f"\n**{title}**\n\n{where_and_when()}\n\n{table}\n", flush=True)


def where_and_when() -> str:
    """Machine, versions, date and load, without which a measurement cannot be judged."""
    device = default_device()
    bfloat16 = "with" if has_bfloat16_hardware(device) else "no"
    parts = [
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        *([torch.cuda.get_device_name()] if device.type == "cuda" else []),
        f"{bfloat16} bf16 hardware",
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in LIBRARIES),
        f"{datetime.date.today()}",
        f"load {os.getloadavg()[0]:.1f}",
    ]
    return "; ".join(parts)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def seconds_of(function: Callable[[], object]) -> float:
    """Duration of one call, including the work of the accelerator."""
    started = time.perf_counter()
    function()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def interleaved(candidates: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 0) -> dict[str, list[float]]:
    """The results of each candidate in `rounds` rounds, after `warmup` rounds that are not counted.

    Each round runs all candidates, starting with another one, so a change of the machine's load affects all alike.
    """
    names = list(candidates)
    results: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            value = candidates[name]()
            if number >= 0:
                results[name].append(value)
    return results


def median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median of `value / base` over the rounds."""
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def in_new_process(function: Callable[..., T], *arguments: object, **settings: object) -> T:
    """The result of `function` in a fresh interpreter, with its own memory, allocator settings and imports."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **settings).result()


def peak_memory() -> float:
    """Peak memory of this process, in MB.

    On Linux children inherit `ru_maxrss` of their parent, so read the high-water mark of the address space there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
