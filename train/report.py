"""Compare runs on one page: curves, final results, settings that differ, and samples.

    scratch-gpt report --output_dir runs/a runs/b --report_file report.html

It only reads the run folders, so a run may still be training.
"""

import io
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from .loop.log import JsonLines
from .loop.status import read_status
from .metrics.run_comparison import MISSING, LoggedRun, comparison_page
from .metrics.run_plots import draw_runs, line_style
from .settings.command import run_command
from .settings.recipe import option, option_list, parse_recipe
from .settings.run_folder import METRICS_FILE, RECIPE_FILE, REPORT_FILE, SAMPLES_FILE


@dataclass
class ReportArguments:
    """The runs to compare, and the file to write."""

    output_dir: list[str] = option_list("Run folders to compare.", is_path=True)
    report_file: str | None = option(
        f"File to write; .html: the page; .png: only the curves (default: {REPORT_FILE} in the first run folder).",
        is_path=True,
    )
    by: Literal["tokens", "step"] = option("x axis of the curves: tokens seen, or steps.", "tokens")

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError(
                "--output_dir is required: the run folders to compare, such as --output_dir runs/a runs/b."
            )
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
        records = read_metrics(folder)
        runs.append(
            LoggedRun(
                name,
                line_style(number),
                metrics=[record for record in records if not record.get("skipped")],
                skipped=[record for record in records if record.get("skipped")],
                samples=JsonLines(folder / SAMPLES_FILE).read(),
                recipe=read_recipe(folder / RECIPE_FILE),
                state=str(read_status(folder).get("state", MISSING)),
            )
        )
    return runs


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


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.

    Raises:
        ValueError: the file does not exist, or contains no step yet.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        inside = sorted(str(found.parent) for found in folder.glob(f"*/{path.name}"))
        hint = f"did you mean {' '.join(inside)}?" if inside else "give the --output_dir of a training run."
        raise ValueError(f"--output_dir: {path} does not exist; {hint}")
    records = JsonLines(path).read()
    if not any("loss" in record and not record.get("skipped") for record in records):
        raise ValueError(f"{path} has no line with a loss yet: wait for the first one, or remove this run.")
    return records


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a run; empty if the file does not exist.

    Raises:
        ValueError: it is not YAML with lines of name: value.
    """
    try:
        entries = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"recipe {path} must consist of lines 'name: value', not {entries!r:.80}")
    return entries


if __name__ == "__main__":
    sys.exit(run_command(main))
