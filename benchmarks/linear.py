"""Time and memory of every command that walks rows: `python -m benchmarks.linear`.

Each command reads a tenth of the rows, then all of them; both in a fresh process. What grows in proportion takes 10
times as long for 10 times as many rows, or less. Rows have four words. Times do not include imports.
"""

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.settings.command import run_command
from train.settings.recipe import option, option_list, parse_recipe

from .report import in_new_process, peak_memory, print_table

SHAPE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
TUNING = {
    "max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2, "max_eval_samples": 2, "precision": "fp32",
    "max_new_tokens": 2,
}  # fmt: skip
MARGIN = 1.3  # times the number of rows: what is more is not linear


@dataclass
class LinearArguments:
    """How many rows, and for which commands."""

    rows: int = option("Rows of the larger input.", 1_000_000)
    commands: list[str] = option_list("Commands to measure (default: all).")

    def __post_init__(self) -> None:
        for command in self.commands:
            if command not in COMMANDS:
                raise ValueError(f"--commands {command}: must be one of {', '.join(COMMANDS)}.")


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    megabytes: float  # peak memory above that of the process with its imports


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 if a command is not linear in its rows."""
    (arguments,) = parse_recipe([LinearArguments], argv, description=__doc__ or "")
    table, is_linear = [], True
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        in_new_process(prepare_base, base)
        for command in arguments.commands or COMMANDS:
            few, many = (measure(command, count, base) for count in (arguments.rows // 10, arguments.rows))
            ratio = many.seconds / few.seconds
            is_linear &= ratio < 10 * MARGIN
            memory = many.megabytes / max(few.megabytes, 1)
            row = [command, f"{few.seconds:.1f}", f"{many.seconds:.1f}", f"{ratio:.1f}"]
            row += [f"{few.megabytes:,.0f}", f"{many.megabytes:,.0f}", f"{memory:.1f}"]
            print(" | ".join(row), flush=True)
            table.append(row)
    few_rows, rows = f"{arguments.rows // 10:,}", f"{arguments.rows:,}"
    header = ["command", f"{few_rows} rows (s)", f"{rows} rows (s)", "ratio"]
    header += [f"{few_rows} rows (MB)", f"{rows} rows (MB)", "ratio"]
    print_table("Ten times as many rows", header, table)
    return int(not is_linear)


def measure(command: str, count: int, base: Path) -> Cost:
    """Write `count` rows and run a command on them in a fresh process."""
    with tempfile.TemporaryDirectory(dir=base.parent) as name:
        folder = Path(name)
        options = COMMANDS[command](folder, count, base)
        return in_new_process(cost_of, command, [f"--{key}={value}" for key, value in options.items()])


def cost_of(command: str, arguments: Sequence[str]) -> Cost:
    """Run a command in this process."""
    module = importlib.import_module(f"train.{command}")
    before, started = peak_memory(), time.perf_counter()
    with redirect_stdout(sys.stderr):
        code = module.main(list(arguments))
    if code:
        raise ValueError(f"{command} ended with exit code {code}")
    return Cost(time.perf_counter() - started, peak_memory() - before)


def prepare_base(base: Path) -> None:
    """A tiny model with its tokenizer and data, and a classifier."""
    base.mkdir()
    write_lines(base / "text.jsonl", ({"text": text_of(i)} for i in range(2000)))
    (base / "config.json").write_text(json.dumps(SHAPE))
    text = {"text": base / "text.jsonl"}
    run("train_tokenizer", output_dir=base / "tokenizer", vocab_size=400, **text)
    run("prepare_data", tokenizer=base / "tokenizer", output_dir=base / "blocks", block_size=32, **text)
    settings = {"config": base / "config.json", "data_dir": base / "blocks", "output_dir": base / "run"}
    run("pretrain", **TUNING | settings)
    (base / "classifier").mkdir()
    run("finetune_classifier", **classifier_options(base / "classifier", 100, base))


def run(command: str, **options: Any) -> None:
    """Run a command in this process."""
    importlib.import_module(f"train.{command}").main([f"--{name}={value}" for name, value in options.items()])


def text_of(number: int) -> str:
    """A row of four words."""
    return f"row number {number} {'even' if number % 2 == 0 else 'odd'}"


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


# The options of each command, with its rows written to a folder
def tokenizer_options(folder: Path, count: int, base: Path) -> dict[str, Any]:
    """The rows as documents."""
    return {"text": documents(folder, count), "vocab_size": 400, "output_dir": folder / "out"}


def data_options(folder: Path, count: int, base: Path) -> dict[str, Any]:
    """The rows as documents."""
    out = {"tokenizer": base / "tokenizer", "block_size": 32, "output_dir": folder / "out"}
    return {"text": documents(folder, count)} | out


def evaluate_options(folder: Path, count: int, base: Path) -> dict[str, Any]:
    """The rows as documents."""
    return {"model": base / "run" / "model", "text": documents(folder, count), "block_size": 64, "micro_batch_size": 64}


def finetune_options(folder: Path, count: int, base: Path) -> dict[str, Any]:
    """The rows as conversations."""
    rows = ({"prompt": text_of(i), "completion": f"It is {i}."} for i in range(count))
    files = {"train_file": write_lines(folder / "rows.jsonl", rows), "output_dir": folder / "out"}
    return TUNING | {"model": base / "run" / "model"} | files


def classifier_options(folder: Path, count: int, base: Path) -> dict[str, Any]:
    """The rows as labeled texts; few are for testing, as these are all classified."""
    rows = ({"text": text_of(i), "label": text_of(i).split()[-1]} for i in range(count))
    files = {"train_file": write_lines(folder / "rows.jsonl", rows), "output_dir": folder / "out"}
    test = {"test_file": write_lines(folder / "test.jsonl", ({"text": f"{i} {x}", "label": x} for i, x in LABELED))}
    return TUNING | {"model": base / "run" / "model"} | files | test


def classify_options(folder: Path, count: int, base: Path) -> dict[str, Any]:
    """The rows as texts."""
    labels = {"output_file": folder / "labels.csv", "micro_batch_size": 256}
    return {"model": base / "classifier" / "out" / "model", "file": documents(folder, count)} | labels


def report_options(folder: Path, count: int, base: Path) -> dict[str, Any]:
    """The rows as lines of a metrics log."""
    facts = {"grad_norm": 1.0, "learning_rate": 1e-3, "tokens_per_second": 5.0}
    rows = ({"step": i, "tokens_seen": 64 * i, "loss": 5 + 1 / i} | facts for i in range(1, count + 1))
    write_lines(folder / "metrics.jsonl", rows)
    return {"output_dir": folder, "report_file": folder / "report.html"}


def documents(folder: Path, count: int) -> Path:
    """A table of short documents."""
    return write_lines(folder / "text.jsonl", ({"text": text_of(i)} for i in range(count)))


LABELED = [(number, label) for number in range(10) for label in ("even", "odd")]
COMMANDS: dict[str, Callable[[Path, int, Path], dict[str, Any]]] = {
    "train_tokenizer": tokenizer_options,
    "prepare_data": data_options,
    "evaluate": evaluate_options,
    "finetune": finetune_options,
    "finetune_classifier": classifier_options,
    "classify": classify_options,
    "report": report_options,
}


if __name__ == "__main__":
    sys.exit(run_command(main))
