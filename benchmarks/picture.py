"""The picture of docs/performance.md: `python -m benchmarks.picture`.

Draws the tables that `benchmarks.cpu` and `benchmarks.gpu` wrote, as multiples of a peer's time or memory.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.metrics.plots import TEXT_COLOUR, VALIDATION_COLOUR
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

RESULTS = Path(__file__).parent / "results"
BETTER, WORSE = "#2f6fad", VALIDATION_COLOUR
SPEED = "tokens/s"
TICKS = (0.1, 0.2, 0.5, 1, 2)


@dataclass
class PictureArguments:
    """Options of the benchmark."""

    cpu: str = option("Tables of benchmarks.cpu.", str(RESULTS / "cpu.jsonl"), is_path=True)
    gpu: str = option("Results of benchmarks.gpu.", str(RESULTS / "gpu.json"), is_path=True)
    output: str = option("File for the picture.", "docs/performance.png", is_path=True)


@dataclass(frozen=True)
class Comparison:
    """One bar: a row of a table against another.

    Args:
        label: for the picture.
        table: how the title of the table begins.
        column: how the header of the column begins that is compared; lower is better, except for tokens/s.
        ours: the name of our row, or how it begins.
        peer: that of the row that counts as 1.
        peer_name: for the picture.
    """

    label: str
    table: str
    column: str
    ours: str
    peer: str
    peer_name: str


def steps(label: str, table: str) -> list[Comparison]:
    """Our step with both optimizers against nanoGPT's."""
    return [
        Comparison(
            f"training step, {label}, {optimizer}",
            f"Training step, {table}",
            "milliseconds",
            f"ours, {optimizer}",
            "nanoGPT",
            "nanoGPT",
        )
        for optimizer in ("Muon", "AdamW")
    ]


def tokens(label: str, ours: str) -> Comparison:
    """Our generation of a token against that of transformers' GPT-2."""
    peer = "transformers' GPT-2"
    return Comparison(f"generated token, 124M, {label}", "gpt2, one sequence", SPEED, ours, peer, peer)


CPU = (
    Comparison("time to nanoGPT's loss, fast.yaml", "Tiny", "training seconds", "ours, fast", "nanoGPT", "nanoGPT"),
    *steps("128 wide", "12 x 64"),
    *steps("384 wide", "16 x 256"),
    Comparison("data preparation", "Preparing", "seconds", "prepare_data", "`datasets.map`", "datasets.map"),
    tokens("bf16", "ours, bfloat16"),
    tokens("int8", "ours, int8"),
    tokens("int8 compiled", "ours, int8, compiled"),
    Comparison(
        "memory of a step, 124M",
        "Memory of a training step",
        "peak (MB)",
        "ours, shape of GPT-2",
        "transformers GPT-2",
        "transformers' GPT-2",
    ),
)
GPU = (  # label, field, our row, row of the peer, its name
    ("training step, 124M, shape of GPT-2", "step_ms", "ours_gpt2", "nanogpt", "nanoGPT"),
    ("training step, 124M, shape of GPT-2", "step_ms", "ours_gpt2", "transformers_gpt2", "transformers' GPT-2"),
    ("training step, 124M, default", "step_ms", "ours_modern", "transformers_llama", "transformers' Llama"),
    ("memory of a step, shape of GPT-2", "peak_gib", "ours_gpt2", "transformers_gpt2", "transformers' GPT-2"),
    ("memory of a step, default", "peak_gib", "ours_modern", "transformers_llama", "transformers' Llama"),
)
Bars = list[tuple[str, str, float]]  # label, peer, ratio


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture."""
    (arguments,) = parse_recipe([PictureArguments], argv, description=__doc__ or "")
    tables = [json.loads(line) for line in Path(arguments.cpu).read_text(encoding="utf-8").splitlines()]
    results = json.loads(Path(arguments.gpu).read_text(encoding="utf-8"))
    panels = {"two CPU cores": list(cpu_bars(tables)), "one H200": list(gpu_bars(results["rows"]))}
    draw(panels, Path(arguments.output))


def cpu_bars(tables: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, float]]:
    """Each comparison whose table is there; of several tables, the last."""
    for one in CPU:
        found = [table for table in tables if table["title"].startswith(one.table)]
        if found:
            values = column_of(found[-1], one.column)
            ratio = value_of(values, one.ours) / value_of(values, one.peer)
            yield one.label, one.peer_name, 1 / ratio if one.column == SPEED else ratio


def column_of(table: dict[str, Any], beginning: str) -> dict[str, float]:
    """The numbers of a column by the names of their rows."""
    (index,) = [number for number, title in enumerate(table["header"]) if title.startswith(beginning)]
    return {row[0]: float(row[index].replace(",", "")) for row in table["rows"] if row[index]}


def value_of(values: dict[str, float], beginning: str) -> float:
    """The number of the row with this name, or of the first whose name begins with it."""
    if beginning in values:
        return values[beginning]
    return next(value for name, value in values.items() if name.startswith(beginning))


def gpu_bars(rows: dict[str, dict[str, float]]) -> Iterator[tuple[str, str, float]]:
    """Each comparison whose rows are there."""
    for label, key, ours, peer, peer_name in GPU:
        if {ours, peer} <= rows.keys():
            yield label, peer_name, rows[ours][key] / rows[peer][key]


def draw(panels: dict[str, Bars], path: Path) -> None:
    """Save a panel of bars per machine."""
    heights = [len(bars) for bars in panels.values()]
    figure = Figure(figsize=(9, 1.4 + 0.32 * sum(heights)), dpi=125, layout="constrained")
    both = figure.subplots(len(panels), height_ratios=heights, sharex=True)
    for axes, (machine, bars) in zip(both, panels.items(), strict=True):
        draw_panel(axes, machine, bars)
    figure.savefig(path)


def draw_panel(axes: Axes, machine: str, bars: Bars) -> None:
    """The bars of one machine; the line at 1 is the peer."""
    ratios = [ratio for _, _, ratio in bars]
    colors = [BETTER if ratio <= 1 else WORSE for ratio in ratios]
    axes.barh(range(len(bars)), [ratio - 1 for ratio in ratios], left=1, height=0.65, color=colors)
    for place, (_, peer, ratio) in enumerate(bars):
        factor, side = (0.97, "right") if ratio <= 1 else (1.03, "left")
        axes.text(ratio * factor, place, f"{ratio:.2f}", va="center", ha=side, fontsize=9, color=TEXT_COLOUR)
        # the name of the peer stands on the free side of the line
        factor, side = (1.03, "left") if ratio <= 1 else (0.97, "right")
        axes.text(factor, place, peer, va="center", ha=side, fontsize=8, color=TEXT_COLOUR)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=9, color=TEXT_COLOUR)
    axes.invert_yaxis()
    axes.set(xscale="log", xlim=(0.6 * TICKS[0], 1.4 * TICKS[-1]))
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="y", length=0)
    axes.axvline(1, color=TEXT_COLOUR, linewidth=0.8)
    axes.set_title(f"ours / peer on {machine} (below 1 is better)", loc="left", fontsize=10, color=TEXT_COLOUR)
    axes.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(run_command(main))
