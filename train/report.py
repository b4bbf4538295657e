"""Compares runs on one page: curves, final figures, the settings that differ, and what each run writes.

    scratch-gpt report --output_dir runs/a runs/b --report_file report.html

It only reads the run folders, so it can look at a run that is still training.
"""

import base64
import io
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Literal

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from .loop.log import JsonLines
from .loop.status import read_status
from .metrics.plots import INK, VALIDATION_COLOUR, smoothed
from .settings.command import run_command
from .settings.recipe import option, option_list, parse_recipe
from .settings.run_folder import METRICS_FILE, RECIPE_FILE, SAMPLES_FILE

DEFAULT_OUTPUT = "report.html"
COLOURS = ("#2f6fad", VALIDATION_COLOUR, "#3c8d5a", "#8a5fb0", "#c2932a", "#35a0a5", "#8b5a3c", "#77808c")
LINE_STYLES = ("-", "--", ":")  # for runs beyond the colours
X_AXES = {"tokens": ("tokens_seen", 1e6, "tokens seen (millions)"), "step": ("step", 1.0, "step")}
PANELS = {
    "learning_rate": ("learning rate", "{x:g}"),
    "grad_norm": ("gradient norm before clipping", "{x:g}"),
    "tokens_per_second": ("tokens per second", "{x:,.0f}"),
}
NOTHING = "-"  # in a table
START_LEFT_OUT = 0.05  # share of a run whose steep fall does not decide the range of the loss axis
LAST_LINES = 10  # whose mean is the final training loss: a single batch says little
SHOWN_SKIPS = 5
OF_EVALUATIONS = [("loss", "validation loss", ".4f"), ("perplexity", "perplexity (per token)", ",.2f")]
OF_EVALUATIONS += [("bits_per_byte", "bits per byte", ".4f"), ("accuracy", "accuracy", ".2%"), ("f1", "mean F1", ".4f")]
Points = list[tuple[float, float]]


@dataclass
class ReportArguments:
    """Settings of train.report."""

    output_dir: list[str] = option_list("Run folders to compare.", is_path=True)
    report_file: str | None = option(
        ".html: the page; .png: the picture alone. Without it report.html in the first run folder."
    )
    by: Literal["tokens", "step"] = option("What the curves are drawn over: tokens seen, or steps.", "tokens")

    def __post_init__(self) -> None:
        """Refuse no runs, and an output that cannot be written."""
        if not self.output_dir:
            raise ValueError(
                "--output_dir is required: the run folders to compare, such as --output_dir runs/a runs/b."
            )
        if self.report_file is None:
            return
        if Path(self.report_file).suffix.lower() not in (".html", ".png"):
            raise ValueError(
                f"--report_file {self.report_file} must end in .html (the page) or .png (the picture alone)."
            )
        if not (folder := Path(self.report_file).parent).is_dir():
            raise ValueError(
                f"--report_file {self.report_file}: there is no folder {folder}; make it or name another one."
            )


@dataclass(frozen=True)
class LoggedRun:
    """What lies in a run folder, and how it is drawn."""

    name: str
    style: dict[str, Any]  # colour and kind of line
    metrics: list[dict[str, Any]]  # steps and evaluations
    skipped: list[dict[str, Any]]  # steps whose update was left out
    samples: list[dict[str, Any]]
    recipe: dict[str, Any]
    state: str  # running, stopped, complete or failed

    def values(self, name: str) -> list[float]:
        """A figure in the order it was logged; nan where it is no finite number."""
        return [number(record[name]) for record in self.metrics if name in record]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page or the picture."""
    (arguments,) = parse_recipe([ReportArguments], argv, description=__doc__ or "")
    runs = open_runs([Path(name) for name in arguments.output_dir])
    output = Path(arguments.report_file or Path(arguments.output_dir[0]) / DEFAULT_OUTPUT)
    picture = io.BytesIO()
    draw_runs(runs, arguments.by).savefig(picture, format="png")
    if output.suffix.lower() == ".png":
        output.write_bytes(picture.getvalue())
    else:
        # names of files and a log edited by hand may hold what is no character
        output.write_text(page(runs, picture.getvalue()), encoding="utf-8", errors="replace")
    print(f"written: {output}")


def open_runs(folders: Sequence[Path]) -> list[LoggedRun]:
    """Read the run folders, each with a name, a colour and a kind of line of its own.

    Raises:
        ValueError: a folder is named twice, holds no metrics or a recipe that is none.
    """
    runs = []
    for i, (folder, name) in enumerate(zip(folders, distinct_names(folders), strict=True)):
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINE_STYLES[i // len(COLOURS) % len(LINE_STYLES)]}
        records, samples = read_metrics(folder), JsonLines(folder / SAMPLES_FILE).read()
        skipped = [record for record in records if record.get("skipped")]
        metrics = [record for record in records if not record.get("skipped")]
        state = str(read_status(folder).get("state", NOTHING))
        runs.append(LoggedRun(name, style, metrics, skipped, samples, read_recipe(folder / RECIPE_FILE), state))
    return runs


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many of its parents as it takes to tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    for folder, own in zip(folders, parts, strict=True):
        if parts.count(own) > 1:
            raise ValueError(f"--output_dir names {folder} more than once: give each run once.")

    def tails(depth: int) -> list[str]:
        return [Path(*own[-depth:]).as_posix() for own in parts]

    depths = [next(d for d in itertools.count(1) if tails(d).count(tails(d)[i]) == 1) for i in range(len(parts))]
    return [tails(depth)[i] for i, depth in enumerate(depths)]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.

    Raises:
        ValueError: it is not there or holds no step yet.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        inside = sorted(str(found.parent) for found in folder.glob(f"*/{path.name}"))
        hint = f"did you mean {' '.join(inside)}?" if inside else "name the --output_dir of a train.pretrain run."
        raise ValueError(f"--output_dir: there is no {path}; {hint}")
    records = JsonLines(path).read()
    if not any("loss" in record and not record.get("skipped") for record in records):
        raise ValueError(f"{path} holds no line with a loss yet: wait for the first one, or leave this run out.")
    return records


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a run; none where there is no file.

    Raises:
        ValueError: it is no YAML with lines of name: value.
    """
    try:
        entries = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"recipe {path} must hold lines of 'name: value', not {entries!r:.80}")
    return entries


def number(value: Any) -> float:
    """A finite number as it is, anything else as nan, which leaves a gap in a curve."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def draw_runs(runs: Sequence[LoggedRun], by: str) -> Figure:
    """The picture: losses above; learning rate, gradient norm and throughput below."""
    figure = Figure(figsize=(12, 8), dpi=125, layout="constrained")
    panels = figure.subplot_mosaic([["loss"] * len(PANELS), list(PANELS)], height_ratios=[1.7, 1])
    draw_losses(panels["loss"], runs, by)
    for name, (title, tick_format) in PANELS.items():
        for run in runs:
            # neighbours would round off the corners of a schedule
            draw_curve(panels[name], run, points(run, name, by), is_smoothed=name != "learning_rate")
        panels[name].set_title(title, loc="left", fontsize=10, color=INK)
        panels[name].yaxis.set_major_formatter(tick_format)
    draw_utilisation(panels["tokens_per_second"], runs)
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
    key, scale, _ = X_AXES[by]
    heights: list[float] = []
    for row, run in enumerate(runs):
        colour, training, validation = run.style["color"], points(run, "loss", by), points(run, "eval_loss", by)
        draw_curve(axes, run, training)
        axes.plot(*columns(validation), "o", color=colour, markersize=5.5, markeredgecolor="white", zorder=3)
        skips = [(number(record.get(key)) / scale, 0.03 + 0.03 * row) for record in run.skipped]
        axes.plot(*columns(skips), "x", color=colour, markersize=5, transform=axes.get_xaxis_transform())
        heights += after_the_start([*smoothed_stretches(training)]) + after_the_start(validation)
    if heights and (extent := max(heights) - min(heights)):
        axes.set_ylim(min(heights) - 0.08 * extent, max(heights) + 0.08 * extent)
    axes.set_title("loss (nats per token)", loc="left", fontsize=10, color=INK)
    kinds = {"training": "-", "validation": "o"} | ({"update skipped": "x"} if any(run.skipped for run in runs) else {})
    lines = [axes.plot([], [], kind, color=INK)[0] for kind in kinds.values()]
    axes.legend(lines, list(kinds), frameon=False, loc="upper right")


def draw_curve(axes: Axes, run: LoggedRun, curve: Points, *, is_smoothed: bool = True) -> None:
    """A figure of a run as it was logged, or that in light and its smoothed course on top."""
    marker = "." if len(curve) == 1 else ""  # a line of one point is none
    if is_smoothed:
        axes.plot(*columns(curve), color=run.style["color"], linewidth=0.7, alpha=0.3)
        curve = [*smoothed_stretches(curve)]
    axes.plot(*columns(curve), **run.style, linewidth=1.8, marker=marker)


def points(run: LoggedRun, name: str, by: str) -> Points:
    """(x, figure) of all records that hold the figure."""
    key, scale, _ = X_AXES[by]
    return [(number(record.get(key)) / scale, number(record[name])) for record in run.metrics if name in record]


def columns(curve: Points) -> tuple[list[float], list[float]]:
    """All x and all y."""
    return [x for x, _ in curve], [y for _, y in curve]


def smoothed_stretches(curve: Points) -> Iterator[tuple[float, float]]:
    """The curve smoothed between its gaps, a long one more than a short one."""
    reach = min(50, max(4, len(curve) // 50))
    for _, stretch in itertools.groupby(curve, key=lambda point: math.isnan(point[1])):
        line = [*stretch]
        # the last points have hardly a neighbour behind them, and would show the last batches only
        yield from smoothed(line, reach)[: -3 if len(line) > 4 * reach else None]


def after_the_start(curve: Points) -> list[float]:
    """What the range of the loss axis must hold of a curve: without the first losses differences can be seen."""
    finite = [(x, y) for x, y in curve if not math.isnan(x + y)]
    return [y for x, y in finite if x >= START_LEFT_OUT * finite[-1][0]]


def draw_utilisation(axes: Axes, runs: Sequence[LoggedRun]) -> None:
    """The median share of the hardware's peak (MFU) of the runs that have logged it, as text."""
    shares = [(run, share) for run in runs if (share := median(run.values("mfu"), ".1%")) != NOTHING]
    if shares:
        lines, labels = [Line2D([], [], **run.style) for run, _ in shares], [f"MFU {share}" for _, share in shares]
        axes.legend(lines, labels, frameon=False, loc="lower right", fontsize=9)


def label_runs(figure: Figure, runs: Sequence[LoggedRun]) -> None:
    """The names of the runs above all panels, as many in a row as fit."""
    labels = [
        f"{run.name} (validation {losses[-1]:.4f})" if (losses := run.values("eval_loss")) else run.name for run in runs
    ]
    lines = [Line2D([], [], **run.style, linewidth=3) for run in runs]
    per_row = max(1, 160 // (max(map(len, labels)) + 8))
    legend = figure.legend(lines, labels, frameon=False, loc="outside upper left", ncols=per_row, fontsize=11)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in the name of a folder is no formula


def figures(run: LoggedRun) -> dict[str, str]:
    """The final figures of a run, each with its unit in the name."""
    evaluations = [record for record in run.metrics if not math.isnan(number(record.get("eval_loss")))]
    best = min(evaluations, key=lambda record: record["eval_loss"], default=None)
    final = statistics.fmean(run.values("loss")[-LAST_LINES:])
    skips = [f"\nstep {record.get('step', NOTHING)}: {record['skipped']}" for record in run.skipped]
    hidden = [f"\nand {len(skips) - SHOWN_SKIPS} more"] if len(skips) > SHOWN_SKIPS else []
    return {
        "state": run.state,
        "steps": last(run.values("step"), ",.0f"),
        "tokens seen": last(run.values("tokens_seen"), ",.0f"),
        f"training loss (mean of the last {LAST_LINES} lines)": f"{final:.4f}",
        "best validation loss": f"{best['eval_loss']:.4f} at step {best.get('step', NOTHING)}" if best else NOTHING,
        **{f"last {title}": last(run.values(f"eval_{name}"), pattern) for name, title, pattern in OF_EVALUATIONS},
        "tokens per second (median)": median(run.values("tokens_per_second"), ",.0f"),
        "MFU (median)": median(run.values("mfu"), ".1%"),
        "skipped updates": "".join([str(len(skips)), *skips[:SHOWN_SKIPS], *hidden]),
    }


def last(values: Sequence[float], pattern: str) -> str:
    """The last of the values as text."""
    return format(values[-1], pattern) if values else NOTHING


def median(values: Sequence[float], pattern: str) -> str:
    """The median of the finite values as text."""
    finite = [value for value in values if math.isfinite(value)]
    return format(statistics.median(finite), pattern) if finite else NOTHING


def settings(runs: Sequence[LoggedRun]) -> dict[str, list[str]]:
    """The settings that differ between the recipes, or all of a single run; one value per run."""
    names = dict.fromkeys(name for run in runs for name in run.recipe if name != "output_dir")
    values = {str(name): [run.recipe.get(name, NOTHING) for run in runs] for name in names}
    rows = {name: [as_yaml(value) for value in cells] for name, cells in values.items()}
    if len(runs) == 1:
        return rows
    known = [bool(run.recipe) for run in runs]  # a run without a recipe differs in nothing
    return {name: cells for name, cells in rows.items() if len({*itertools.compress(cells, known)}) > 1}


def as_yaml(value: Any) -> str:
    """A value as one would write it in a recipe."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def last_samples(runs: Sequence[LoggedRun]) -> dict[str, list[str]]:
    """What each run has written last after each prompt, under the step at which it did."""
    texts: list[dict[str, str]] = [{} for _ in runs]
    for own, run in zip(texts, runs, strict=True):
        for sample in run.samples:
            own[sample["prompt"]] = f"step {sample['step']}\n{sample['text']}"
    prompts = dict.fromkeys(prompt for own in texts for prompt in own)
    return {prompt: [own.get(prompt, NOTHING) for own in texts] for prompt in prompts}


def page(runs: Sequence[LoggedRun], picture: bytes) -> str:
    """The page as one HTML file that needs nothing else."""
    of_runs = [figures(run) for run in runs]
    results = {name: [own[name] for own in of_runs] for name in of_runs[0]}
    return PAGE.substitute(
        title=escape(", ".join(run.name for run in runs)),
        picture=base64.b64encode(picture).decode(),
        figures=table(runs, results, "figures"),
        settings_title="Settings" if len(runs) == 1 else "Settings that differ",
        settings=table(runs, settings(runs), "settings"),
        samples=table(runs, last_samples(runs), "samples"),
    )


def table(runs: Sequence[LoggedRun], rows: Mapping[str, Sequence[str]], kind: str) -> str:
    """An HTML table with a column per run; names and cells may hold any text."""
    if not rows:
        return "<p>None.</p>"
    heads = "".join(f'<th><i style="background:{run.style["color"]}"></i>{escape(run.name)}</th>' for run in runs)
    lines = "\n".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows.items()
    )
    return f'<div><table class="{kind}">\n<tr><td></td>{heads}</tr>\n{lines}\n</table></div>'


PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Training report: $title</title>
<style>
body { max-width: 1200px; margin: 2rem auto; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: #33373d; }
img { width: 100%; } figure { margin: 0; }
figcaption, p, tr > th:first-child { color: #6b7280; }
div { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .35rem 1.5rem .35rem 0; border-bottom: 1px solid #e8e8e8; text-align: left; vertical-align: top; }
tr > th:first-child { font-weight: 400; }
td { white-space: pre-wrap; font-variant-numeric: tabular-nums; }
i { display: inline-block; width: .7em; height: .7em; margin-right: .45em; border-radius: 50%; }
.samples td, .samples th:first-child { font: 13px/1.45 ui-monospace, monospace; white-space: pre-wrap; }
.samples td { min-width: 16rem; overflow-wrap: anywhere; }
.samples td::first-line { color: #9aa1ab; }
</style>
</head>
<body>
<h1>Training report</h1>
<figure>
<img alt="Losses, learning rate, gradient norm and throughput of the runs" src="data:image/png;base64,$picture">
<figcaption>Light: as logged; heavy: mean of neighbours. The loss axis leaves out the steep start.</figcaption>
</figure>
<h2>Results</h2>
$figures
<p>Losses compare between runs with the same tokenizer and validation text; bits per byte also between tokenizers.</p>
<h2>$settings_title</h2>
$settings
<h2>Last samples</h2>
$samples
</body>
</html>
""")
if __name__ == "__main__":
    sys.exit(run_command(main))
