"""Compare runs on one page: curves, final results, settings that differ, and samples.

    scratch-gpt report --output_dir runs/a runs/b --report_file report.html

It only reads the run folders, so a run may still be training.
"""

import io
import itertools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .loop.log import JsonLines
from .loop.status import read_status
from .metrics.run_comparison import MISSING, LoggedRun, comparison_page
from .metrics.run_plots import draw_runs, line_style
from .metrics.thinning import ShortenedLog
from .settings.command import run_command
from .settings.recipe import option, parse_recipe, required_list
from .settings.recipe_file import read_entries
from .settings.run_folder import METRICS_FILE, RECIPE_FILE, REPORT_FILE, SAMPLES_FILE
from .settings.run_hints import check_run_folder


@dataclass
class ReportArguments:
    """The runs to compare, and the file to write."""

    output_dir: list[str] = required_list("Run folders to compare.", is_path=True)
    report_file: str | None = option(
        f"File to write; .html: the page; .png: only the curves (default: {REPORT_FILE} in the first run folder).",
        is_path=True,
    )
    by: Literal["tokens", "step"] = option("x axis of the curves: tokens seen, or steps.", "tokens")

    def __post_init__(self) -> None:
        if self.report_file is None:
            return
        if Path(self.report_file).suffix.lower() not in (".html", ".png"):
            raise ValueError(
                f"--report_file {self.report_file} must end in .html (the page) or .png (only the curves)."
            )
        if not (folder := Path(self.report_file).parent).is_dir():
            raise ValueError(f"--report_file {self.report_file}: the folder {folder} does not exist.")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, or only its picture."""
    (arguments,) = parse_recipe([ReportArguments], argv, description=__doc__ or "")
    runs = open_runs([Path(name) for name in arguments.output_dir])
    report = Path(arguments.report_file or Path(arguments.output_dir[0]) / REPORT_FILE)
    picture = io.BytesIO()
    draw_runs(runs, arguments.by).savefig(picture, format="png")
    if report.suffix.lower() == ".png":
        report.write_bytes(picture.getvalue())
    else:
        # file names and an edited log may contain lone surrogates
        report.write_text(comparison_page(runs, picture.getvalue()), encoding="utf-8", errors="replace")
    print(f"written: {report}")


def open_runs(folders: Sequence[Path]) -> list[LoggedRun]:
    """Read the run folders. Each run gets a distinct name and line style.

    Raises:
        ValueError: a folder is given twice or has no metrics, or its recipe is invalid.
    """
    runs = []
    for number, (folder, name) in enumerate(zip(folders, distinct_names(folders), strict=True)):
        log = read_metrics(folder)
        runs.append(
            LoggedRun(
                name,
                line_style(number),
                metrics=log.metrics,
                skipped=[dict(record) for record in log.skipped.records()],
                samples=last_samples_of(JsonLines(folder / SAMPLES_FILE)),
                recipe=read_entries(folder / RECIPE_FILE) if (folder / RECIPE_FILE).exists() else {},
                state=str(read_status(folder).get("state", MISSING)),
                num_skipped=log.skipped.count,
            )
        )
    return runs


def last_samples_of(samples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last sample of each prompt."""
    texts = (sample for sample in samples if isinstance(sample.get("prompt"), str) and "text" in sample)
    return list({sample["prompt"]: sample for sample in texts}.values())


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many parents as needed to distinguish it from the others.

    Raises:
        ValueError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for folder, own in zip(folders, parts, strict=True):
        if parts.count(own) > 1:
            raise ValueError(f"--output_dir gives {folder} more than once: give each run once.")

    def tails(depth: int) -> list[str]:
        return [Path(*own[-depth:]).as_posix() for own in parts]

    depths = [next(d for d in itertools.count(1) if tails(d).count(tails(d)[i]) == 1) for i in range(len(parts))]
    return [tails(depth)[i] for i, depth in enumerate(depths)]


def read_metrics(folder: Path) -> ShortenedLog:
    """The lines of metrics.jsonl; of a long log, the means of neighbouring lines.

    Raises:
        ValueError: not a run folder, or it contains no step yet.
    """
    check_run_folder(folder)
    log = ShortenedLog(JsonLines(folder / METRICS_FILE))
    if not any("loss" in record for record in log.steps.records()):
        raise ValueError(
            f"{folder / METRICS_FILE} has no line with a loss yet: wait for the first one, or remove this run."
        )
    return log


if __name__ == "__main__":
    sys.exit(run_command(main))
