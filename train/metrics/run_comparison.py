"""Runs side by side: their final results, settings and samples as tables on an HTML page."""

import base64
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from .thinning import finite_or_nan

MISSING = "-"  # in a table
LAST_LINES = 10  # the final training loss is the mean of this many lines, as a single batch is noisy
MAX_SKIPS = 5  # number of skipped updates that are listed
EVALUATION_METRICS = {
    "loss": ("validation loss", ".4f"),
    "perplexity": ("perplexity (per token)", ",.2f"),
    "bits_per_byte": ("bits per byte", ".4f"),
    "accuracy": ("accuracy", ".2%"),
    "precision": ("mean precision of the labels", ".4f"),
    "recall": ("mean recall of the labels", ".4f"),
    "f1": ("mean F1 of the labels", ".4f"),
}
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class LoggedRun:
    """The contents of a run folder, and the style of its curves."""

    name: str
    style: dict[str, Any]  # colour and line style
    metrics: list[dict[str, Any]]  # steps and evaluations
    skipped: list[dict[str, Any]]  # skipped updates
    samples: list[dict[str, Any]]
    recipe: dict[str, Any]
    state: str  # running, stopped, complete or failed
    num_skipped: int | None = None  # of a long log, `skipped` has only some

    def values(self, name: str) -> list[float]:
        """All values of a metric in the order of the log; nan if not a finite number."""
        return [finite_or_nan(record[name]) for record in self.metrics if name in record]


def comparison_page(runs: Sequence[LoggedRun], picture: bytes) -> str:
    """The page as one HTML file that loads nothing else.

    Args:
        picture: the curves as a PNG file.
    """
    results = [results_of(run) for run in runs]
    return TEMPLATES.get_template("run_comparison.html.jinja").render(
        runs=runs,
        picture=base64.b64encode(picture).decode(),
        results=without_empty_rows({name: [own[name] for own in results] for name in results[0]}),
        settings=differing_settings(runs),
        samples=last_samples(runs),
    )


def without_empty_rows(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    """The rows without the metrics of another kind of model, such as the perplexity of classifiers."""
    optional = {f"last {title}" for name, (title, _) in EVALUATION_METRICS.items() if name != "loss"}
    return {name: cells for name, cells in rows.items() if name not in optional or {*cells} != {MISSING}}


def results_of(run: LoggedRun) -> dict[str, str]:
    """The final results of a run, with the units in their names."""
    evaluations = [record for record in run.metrics if not math.isnan(finite_or_nan(record.get("eval_loss")))]
    best = min(evaluations, key=lambda record: record["eval_loss"], default=None)
    final_loss = statistics.fmean(run.values("loss")[-LAST_LINES:])
    skips = [f"\nstep {record.get('step', MISSING)}: {record['skipped']}" for record in run.skipped]
    num_skips = len(skips) if run.num_skipped is None else run.num_skipped
    more = [f"\nand {num_skips - MAX_SKIPS:,} more"] if num_skips > MAX_SKIPS else []
    return {
        "state": run.state,
        "steps": format_last(sorted(run.values("step")), ",.0f"),
        "tokens seen": format_last(sorted(run.values("tokens_seen")), ",.0f"),
        f"training loss (mean of the last {LAST_LINES} lines)": f"{final_loss:.4f}",
        "best validation loss": f"{best['eval_loss']:.4f} at step {best.get('step', MISSING)}" if best else MISSING,
        **{
            f"last {title}": format_last(run.values(f"eval_{name}"), pattern)
            for name, (title, pattern) in EVALUATION_METRICS.items()
        },
        "tokens per second (median)": format_median(run.values("tokens_per_second"), ",.0f"),
        "MFU (median)": format_median(run.values("mfu"), ".1%"),
        "skipped updates": "".join([str(num_skips), *skips[:MAX_SKIPS], *more]),
    }


def format_last(values: Sequence[float], pattern: str) -> str:
    """The last value as text."""
    return format(values[-1], pattern) if values else MISSING


def format_median(values: Sequence[float], pattern: str) -> str:
    """The median of the finite values as text."""
    finite = [value for value in values if math.isfinite(value)]
    return format(statistics.median(finite), pattern) if finite else MISSING


def differing_settings(runs: Sequence[LoggedRun]) -> dict[str, list[str]]:
    """The settings that differ between the recipes, or all settings of a single run; one value per run."""
    names = dict.fromkeys(name for run in runs for name in run.recipe if name != "output_dir")
    values = {str(name): [run.recipe.get(name, MISSING) for run in runs] for name in names}
    rows = {name: [format_setting(value) for value in cells] for name, cells in values.items()}
    if len(runs) == 1:
        return rows
    has_recipe = [bool(run.recipe) for run in runs]  # a run without a recipe does not make a setting differ
    return {name: cells for name, cells in rows.items() if len({*itertools.compress(cells, has_recipe)}) > 1}


def format_setting(value: Any) -> str:
    """A value as it could be written in a recipe."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def last_samples(runs: Sequence[LoggedRun]) -> dict[str, list[str]]:
    """The last completion of each prompt with its step; one cell per run."""
    texts: list[dict[str, str]] = [{} for _ in runs]
    for own, run in zip(texts, runs, strict=True):
        for sample in run.samples:
            own[sample["prompt"]] = f"step {sample['step']}\n{sample['text']}"
    prompts = dict.fromkeys(prompt for own in texts for prompt in own)
    return {prompt: [own.get(prompt, MISSING) for own in texts] for prompt in prompts}
