"""Plots for model cards: the loss curve and the confusion matrix."""

import math
import statistics
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LONGEST_NAME, MOST_NAMES = 32, 50  # characters of a label; labels that are named in a confusion matrix
LARGEST_SIDE = 30.0  # inches
TRAIN_COLOUR, VALIDATION_COLOUR, TEXT_COLOUR = "#9bb8d3", "#c4502c", "#33373d"


def draw_loss_curve(
    records: list[dict[str, Any]], path: Path, *, title: str, num_choices: int, per: str = "token"
) -> None:
    """Plot training loss (light) and validation loss (points, the last one labelled) over the tokens seen.

    Args:
        records: the lines of metrics.jsonl: `tokens_seen` with `loss` or `eval_loss`.
        path: the PNG file to write.
        title: title of the plot.
        per: the unit that the loss is averaged over.
        num_choices: number of tokens or labels to choose from; a line shows the loss of guessing among them.
    """
    from matplotlib.figure import Figure  # not pyplot, which selects a window system

    last = max(r["tokens_seen"] for r in records if "loss" in r or "eval_loss" in r)
    unit, name = (1e6, "millions") if last >= 1e5 else (1e3, "thousands")
    training = [(r["tokens_seen"] / unit, r["loss"]) for r in records if "loss" in r]
    validation = [(r["tokens_seen"] / unit, r["eval_loss"]) for r in records if "eval_loss" in r]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    marker = "o" if len(training) == 1 else None  # a line of one point cannot be seen
    if training:
        axes.plot(*zip(*training, strict=True), color=TRAIN_COLOUR, linewidth=0.8, alpha=0.5)  # one batch each
        line = smoothed(training)
        axes.plot(*zip(*line, strict=True), color=TRAIN_COLOUR, linewidth=2, marker=marker, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color=VALIDATION_COLOUR, markersize=4, label="validation")
        axes.annotate(
            f"{validation[-1][1]:.3f}", validation[-1], xytext=(6, 0), textcoords="offset points",
            color=VALIDATION_COLOUR, va="center", fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    axes.axhline(math.log(num_choices), color=TEXT_COLOUR, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"guessing: ln({num_choices}) = {math.log(num_choices):.2f}", (last / unit, math.log(num_choices)),
        xytext=(0, -11), textcoords="offset points", ha="right", fontsize=8, color=TEXT_COLOUR,
    )  # fmt: skip
    axes.set_xlabel(f"tokens seen ({name})")
    axes.set_ylabel(f"loss (nats per {per})")
    draw_title(axes, title)
    axes.grid(axis="y", color="#e8e8e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))
    save(figure, path)


def smoothed(points: list[tuple[float, float]], reach: int = 4) -> list[tuple[float, float]]:
    """Replace each y by the mean over up to `reach` neighbours on each side, equally many on both sides.

    The last points of a long curve are left out: with hardly any neighbours they would be as noisy as single batches.
    """
    means = []
    end = len(points) - reach // 2 if len(points) > 4 * reach else len(points)
    for i, (x, _) in enumerate(points[:end]):
        width = min(reach, i, len(points) - 1 - i)
        means.append((x, statistics.fmean(y for _, y in points[i - width : i + width + 1])))
    return means


def draw_confusion_matrix(confusion: Sequence[Sequence[int]], names: Sequence[str], path: Path, title: str) -> None:
    """Plot a confusion matrix. Colours show fractions of a row, so errors on rare labels are as visible as others."""
    from matplotlib.figure import Figure  # not pyplot, which selects a window system

    counts = np.array(confusion)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(3.6, 0.5 * len(names) + 2), LARGEST_SIDE)
    shown = [printable(name, LONGEST_NAME) for name in names]
    step = math.ceil(len(names) / MOST_NAMES)  # of many labels, some are named, and no counts are written
    figure = Figure(figsize=(side + 0.8, side), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    is_tilted = len(names) > 3
    places = range(0, len(names), step)
    axes.set_xticks(
        places, shown[::step], rotation=45 if is_tilted else 0, ha="right" if is_tilted else "center", parse_math=False
    )
    axes.set_yticks(places, shown[::step], parse_math=False)
    for (row, column), count in np.ndenumerate(counts) if step == 1 else ():
        colour = "white" if fractions[row, column] > 0.6 else TEXT_COLOUR if count else "#b8bcc2"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    draw_title(axes, title)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    save(figure, path)


def draw_title(axes: Any, title: str) -> None:
    """Draw a title of any text above the axes."""
    axes.set_title(textwrap.fill(printable(title), 90), loc="left", fontsize=10, color=TEXT_COLOUR, parse_math=False)


def save(figure: Any, path: Path) -> None:
    """Write a picture. The font has no glyph for some scripts; their characters are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(path)


def printable(text: str, length: int = 1000) -> str:
    """At most `length` characters of a text, without control characters and lone surrogates."""
    drawn = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return drawn if len(drawn) <= length else drawn[: length - 3] + "..."
