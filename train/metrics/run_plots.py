"""The curves of several runs in one picture: loss, learning rate, gradient norm and throughput."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from .plots import TEXT_COLOUR, VALIDATION_COLOUR, smoothed
from .run_comparison import MISSING, LoggedRun, format_median
from .thinning import finite_or_nan

COLOURS = ("#2f6fad", VALIDATION_COLOUR, "#3c8d5a", "#8a5fb0", "#c2932a", "#35a0a5", "#8b5a3c", "#77808c")
LINE_STYLES = ("-", "--", ":")  # the next one when the colours are used up
X_AXES = {"tokens": ("tokens_seen", 1e6, "tokens seen (millions)"), "step": ("step", 1.0, "step")}  # field, unit, label
PANELS = {
    "learning_rate": ("learning rate", "{x:g}"),
    "grad_norm": ("gradient norm before clipping", "{x:g}"),
    "tokens_per_second": ("tokens per second", "{x:,.0f}"),
}
STEEP_START = 0.05  # fraction of a run that does not set the range of the loss axis
Points = list[tuple[float, float]]


def line_style(number: int) -> dict[str, Any]:
    """The style of run `number`, counted from 0."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)],
    }


def draw_runs(runs: Sequence[LoggedRun], by: str) -> Figure:
    """Losses in the upper panel; learning rate, gradient norm and throughput in the lower ones.

    Args:
        by: the x axis, a key of X_AXES.
    """
    figure = Figure(figsize=(12, 8), dpi=125, layout="constrained")
    panels = figure.subplot_mosaic([["loss"] * len(PANELS), list(PANELS)], height_ratios=[1.7, 1])
    draw_losses(panels["loss"], runs, by)
    for name, (title, tick_format) in PANELS.items():
        for run in runs:
            # smoothing would round off the corners of a schedule
            draw_curve(panels[name], run, points(run, name, by), is_smoothed=name != "learning_rate")
        panels[name].set_title(title, loc="left", fontsize=10, color=TEXT_COLOUR)
        panels[name].yaxis.set_major_formatter(tick_format)
    draw_utilization(panels["tokens_per_second"], runs)
    panels["tokens_per_second"].set_ylim(bottom=0)
    panels["grad_norm"].set_yscale("log")
    panels["grad_norm"].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels["grad_norm"].yaxis.set_major_formatter(PANELS["grad_norm"][1])
    panels["grad_norm"].yaxis.set_minor_formatter(NullFormatter())
    for axes in panels.values():
        axes.set_xlabel(X_AXES[by][2])
        axes.grid(axis="y", color="#e8e8e8")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(left=0)
    label_runs(figure, runs)
    return figure


def draw_losses(axes: Axes, runs: Sequence[LoggedRun], by: str) -> None:
    """Training loss as logged (light) and smoothed, validation loss (circles), skipped updates (crosses)."""
    field, unit, _ = X_AXES[by]
    heights: list[float] = []
    for row, run in enumerate(runs):
        colour, training, validation = run.style["color"], points(run, "loss", by), points(run, "eval_loss", by)
        draw_curve(axes, run, training)
        axes.plot(*columns(validation), "o", color=colour, markersize=5.5, markeredgecolor="white", zorder=3)
        skips = [(finite_or_nan(record.get(field)) / unit, 0.03 + 0.03 * row) for record in run.skipped]
        axes.plot(*columns(skips), "x", color=colour, markersize=5, transform=axes.get_xaxis_transform())
        heights += after_steep_start([*smoothed_between_gaps(training)]) + after_steep_start(validation)
    if heights and (extent := max(heights) - min(heights)):
        axes.set_ylim(min(heights) - 0.08 * extent, max(heights) + 0.08 * extent)
    axes.set_title(f"loss (nats per {unit_of_loss(runs)})", loc="left", fontsize=10, color=TEXT_COLOUR)
    kinds = {"training": "-", "validation": "o"} | ({"update skipped": "x"} if any(run.skipped for run in runs) else {})
    lines = [axes.plot([], [], kind, color=TEXT_COLOUR)[0] for kind in kinds.values()]
    axes.legend(lines, list(kinds), frameon=False, loc="upper right")


def unit_of_loss(runs: Sequence[LoggedRun]) -> str:
    """What the loss of the runs is averaged over: classifiers have one target per text, others one per token."""
    units = {"text" if run.values("eval_accuracy") else "token" for run in runs}
    return " or ".join(sorted(units, reverse=True)) or "token"


def draw_curve(axes: Axes, run: LoggedRun, curve: Points, *, is_smoothed: bool = True) -> None:
    """A metric as it was logged; or that in a light colour, with the smoothed curve on top."""
    marker = "." if len(curve) == 1 else ""  # a line through one point is invisible
    if is_smoothed:
        axes.plot(*columns(curve), color=run.style["color"], linewidth=0.7, alpha=0.3)
        curve = [*smoothed_between_gaps(curve)]
    axes.plot(*columns(curve), **run.style, linewidth=1.8, marker=marker)


def points(run: LoggedRun, name: str, by: str) -> Points:
    """(x, metric) of all records with the metric."""
    field, unit, _ = X_AXES[by]
    return [
        (finite_or_nan(record.get(field)) / unit, finite_or_nan(record[name]))
        for record in run.metrics
        if name in record
    ]


def columns(curve: Points) -> tuple[list[float], list[float]]:
    """All x and all y."""
    return [x for x, _ in curve], [y for _, y in curve]


def smoothed_between_gaps(curve: Points) -> Iterator[tuple[float, float]]:
    """The curve smoothed between its gaps, a long curve more than a short one."""
    reach = min(50, max(4, len(curve) // 50))
    for _, stretch in itertools.groupby(curve, key=lambda point: math.isnan(point[1])):
        yield from smoothed([*stretch], reach)


def after_steep_start(curve: Points) -> list[float]:
    """The losses after the steep start, which would hide the differences between runs."""
    finite = [(x, y) for x, y in curve if not math.isnan(x + y)]
    return [y for x, y in finite if x >= STEEP_START * finite[-1][0]]


def draw_utilization(axes: Axes, runs: Sequence[LoggedRun]) -> None:
    """The median model FLOPs utilization (MFU) of the runs that logged it, as text."""
    medians = [(run, text) for run in runs if (text := format_median(run.values("mfu"), ".1%")) != MISSING]
    if medians:
        lines, labels = [Line2D([], [], **run.style) for run, _ in medians], [f"MFU {text}" for _, text in medians]
        axes.legend(lines, labels, frameon=False, loc="lower right", fontsize=9)


def label_runs(figure: Figure, runs: Sequence[LoggedRun]) -> None:
    """The names of the runs above all panels, with as many per row as fit."""
    labels = [
        f"{run.name} (validation {losses[-1]:.4f})" if (losses := run.values("eval_loss")) else run.name for run in runs
    ]
    lines = [Line2D([], [], **run.style, linewidth=3) for run in runs]
    per_row = max(1, 160 // (max(map(len, labels)) + 8))
    legend = figure.legend(lines, labels, frameon=False, loc="outside upper left", ncols=per_row, fontsize=11)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in the name of a folder does not start a formula
