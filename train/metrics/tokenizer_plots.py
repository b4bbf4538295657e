"""The picture of a comparison of tokenizers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .plots import TEXT_COLOUR, TRAIN_COLOUR, draw_title, printable, save

PANELS = (
    ("bytes_per_token", "bytes per token", "{:.2f}"),
    ("never_used_percent", "tokens never used (%)", "{:.0f}"),
    ("embedding_percent", "parameters in the embedding (%)", "{:.0f}"),
    ("megabytes_per_second", "encoding (MB/s)", "{:.1f}"),
)


def draw_comparison(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Plot one bar per tokenizer and measure; below them, bits per byte by context if models were trained for several.

    Args:
        rows: per tokenizer `name`, the keys of PANELS, and `bits_per_byte`, a dictionary from bytes of context.
    """
    from matplotlib.figure import Figure  # not pyplot, which selects a window system

    contexts = {context for row in rows for context in row["bits_per_byte"]}
    panels = list(PANELS)
    if len(contexts) == 1:  # a curve of one point shows less than bars
        (context,) = contexts
        panels.append(("bits", f"bits per byte (context: {context:,})", "{:.2f}"))
        rows = [row | {"bits": row["bits_per_byte"].get(context, 0.0)} for row in rows]
    has_curves = len(contexts) > 1
    height = 1.6 + 0.34 * len(rows)
    figure = Figure(figsize=(2.75 * len(panels), height + 4.2 * has_curves), dpi=130, layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, 4.2]) if has_curves else [figure]
    parts[0].suptitle(printable(title), x=0.01, ha="left", fontsize=10, color=TEXT_COLOUR)
    axes = parts[0].subplots(1, len(panels), sharey=True)
    for place, (key, label, number) in zip(axes, panels, strict=True):
        _draw_bars(place, rows, key, label, number)
    if has_curves:
        _draw_curves(parts[1].subplots(), rows)
    save(figure, path)


def _draw_bars(axes: Any, rows: Sequence[dict[str, Any]], key: str, label: str, number: str) -> None:
    names = [printable(row["name"], 28) for row in rows]
    values = [row[key] for row in rows]
    bars = axes.barh(range(len(rows)), values, color=TRAIN_COLOUR, height=0.7)
    axes.bar_label(bars, [number.format(value) for value in values], padding=3, fontsize=8, color=TEXT_COLOUR)
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * max([*values, 1e-9]))
    axes.set_xlabel(label)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_curves(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import NullLocator

    contexts = sorted({context for row in rows for context in row["bits_per_byte"]})
    trained = [row for row in rows if row["bits_per_byte"]]
    for number, row in enumerate(trained):
        points = sorted(row["bits_per_byte"].items())
        colour = colormaps["tab10"](number % 10)
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=printable(row["name"], 28))
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("context (bytes)")
    axes.set_ylabel("validation bits per byte")
    axes.grid(axis="y", color="#e8e8e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    draw_title(axes, "bits per byte after equal compute (lower is better)")
