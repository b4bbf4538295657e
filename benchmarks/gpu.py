"""Everything that only a GPU can tell, within eight minutes of one card: `python -m benchmarks.gpu`.

Each row runs in its own process with its own time limit, and its result is written as soon as it is there: a run that
is cut off keeps what it has, and the next one measures only what is missing. Training steps are compiled, in bf16, with
fused AdamW in a plain loop, without dropout; MFU = tokens/s x (6 N + 12 x layers x context x width) / peak, where N
counts matrices and head.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train.settings.command import run_command
from train.settings.durable import replace_text
from train.settings.recipe import option, option_list, parse_recipe

from . import gpu_loop_rows, gpu_rows
from .report import print_table, where_and_when

ROWS = {  # the most important ones first
    "ours_gpt2": gpu_rows.Row(gpu_rows.ours_gpt2, 110),
    "loop": gpu_rows.Row(gpu_loop_rows.loop_row, 110),
    "nanogpt": gpu_rows.Row(gpu_rows.nanogpt, 80),
    "transformers_gpt2": gpu_rows.Row(gpu_rows.gpt2, 80),
    "decisions": gpu_rows.Row(gpu_loop_rows.decisions_row, 40),
    "kills": gpu_rows.Row(gpu_loop_rows.kills_row, 150),
    "ours_1b": gpu_rows.Row(gpu_rows.ours_1b, 110),
    "ours_modern": gpu_rows.Row(gpu_rows.ours_modern, 110),
    "transformers_llama": gpu_rows.Row(gpu_rows.llama, 80),
    "fp16": gpu_rows.Row(gpu_loop_rows.fp16_row, 40),
    "fsdp": gpu_rows.Row(gpu_loop_rows.fsdp_row, 40),
    "decoding": gpu_rows.Row(gpu_loop_rows.decoding_row, 110),
}


@dataclass
class GpuArguments:
    """Options of the benchmark."""

    rows: list[str] = option_list("Rows to measure (default: all that are missing).")
    output: str = option("File for the results, as JSON.", "runs/gpu.json", is_path=True)
    nanogpt: str | None = option("A clone of https://github.com/karpathy/nanoGPT, measured too.", is_path=True)
    minutes: float = option("Time for everything; rows that no longer fit are left for the next run.", 8.0)
    tiny: bool = option("Test the benchmark itself: tiny models, any device.", False)
    row: str | None = option("Used by the benchmark for its own processes: measure this row.")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the missing rows, print the table; returns how many rows failed."""
    (arguments,) = parse_recipe([GpuArguments], argv, description=__doc__ or "")
    if arguments.row:
        result = ROWS[arguments.row].measure(arguments.tiny, arguments.nanogpt)
        Path(arguments.output).write_text(json.dumps(result), encoding="utf-8")
        return 0
    if unknown := set(arguments.rows) - ROWS.keys():
        raise ValueError(f"--rows {' '.join(sorted(unknown))}: unknown. Known: {', '.join(ROWS)}.")
    if not torch.cuda.is_available() and not arguments.tiny:
        raise ValueError("this benchmark needs a CUDA GPU: add --tiny true to test it without one.")
    results = measure_all(arguments)
    print_table("One GPU", ["row", "result"], [[name, shown(result)] for name, result in results["rows"].items()])
    return sum("error" in result for result in results["rows"].values())


def measure_all(arguments: GpuArguments) -> dict[str, Any]:
    """Measure each row that has no result yet, and write the file after each."""
    path, deadline = Path(arguments.output), time.monotonic() + 60 * arguments.minutes
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}
    results["machine"] = where_and_when()
    for name in arguments.rows or list(ROWS):
        is_done = name in results["rows"] and "error" not in results["rows"][name]
        if (is_done and not arguments.rows) or (name == "nanogpt" and not arguments.nanogpt):
            continue
        left = deadline - time.monotonic()
        if left < 5:
            results["rows"][name] = {"error": "not run: no time left"}
        else:
            results["rows"][name] = measured(name, arguments, left if arguments.tiny else min(left, ROWS[name].seconds))
        replace_text(path, json.dumps(results, indent=2) + "\n")
        print(f"{name}: {shown(results['rows'][name])}", flush=True)
    return results


def measured(name: str, arguments: GpuArguments, limit: float) -> dict[str, Any]:
    """The result of a row, or why there is none. Its compiler starts with an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "result.json"
        command = [sys.executable, "-m", "benchmarks.gpu", f"--row={name}", f"--output={output}"]
        command += [f"--tiny={arguments.tiny}"] + ([f"--nanogpt={arguments.nanogpt}"] if arguments.nanogpt else [])
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor", "TMPDIR": scratch}
        started = time.monotonic()
        code, said = run_limited(command, environment, limit)
        if code is None:
            return {"error": f"stopped after {limit:.0f} seconds"}
        if code or not output.exists():
            return {"error": said[-400:]}
        result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return result | {"seconds_in_all": round(time.monotonic() - started, 1)}


def run_limited(command: Sequence[str], environment: dict[str, str], limit: float) -> tuple[int | None, str]:
    """Exit code and output of a command; None if it had to be stopped, with all that it has started."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        log.seek(0)
        return code, log.read()


def shown(result: dict[str, Any]) -> str:
    """A result in one line."""
    return "; ".join(f"{name} {value}" for name, value in result.items())


if __name__ == "__main__":
    sys.exit(run_command(main))
