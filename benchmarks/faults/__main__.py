"""Inject a fault at every file-system call of a command, and run it again: `python -m benchmarks.faults`.

A C library (shim.c) counts the calls below the output folder. At each of them, in turn, the call fails (no space, I/O
error, no permission; once, or from there on), the process is killed (before, after or within it), or the power fails:
what was not flushed with fsync is then lost, in one of six ways. Afterwards the folder must contain no half result,
exit code and status.json must agree, and the same command must end with the same files.
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .shim import forget_shim, restart_with_shim

if __name__ == "__main__":
    restart_with_shim()  # before the long imports

from train.settings.command import run_command
from train.settings.recipe import option, option_list, parse_recipe

from ..report import print_table
from .campaign import CONTINUED, FAULT, REFUSED, Campaign
from .operations import OPERATIONS, Inputs, operation
from .trial import import_everything

FAULTS = ["error", "errors from there", "kill", "power loss"]
PARTS = ["checkpoint", "model", "run folder"]


@dataclass
class FaultArguments:
    """Where to inject which faults."""

    operations: list[str] = option_list("Commands (default: all): " + ", ".join(OPERATIONS))
    parts: list[str] = option_list("Parts of a training command (default: all): " + ", ".join(PARTS))
    faults: list[str] = option_list("Kinds of faults (default: all): " + ", ".join(FAULTS))
    every: int = option("Try only every N-th call.", 1)
    findings: str = option("JSON Lines file for each point after which the command did not continue.", "")

    def __post_init__(self) -> None:
        for name, allowed in (("operations", list(OPERATIONS)), ("faults", FAULTS), ("parts", PARTS)):
            if unknown := [word for word in getattr(self, name) if word not in allowed]:
                raise ValueError(f"--{name}: unknown {unknown[0]!r}; choose from {', '.join(allowed)}.")
        if self.every < 1:
            raise ValueError(f"--every is {self.every}: it must be at least 1.")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; returns 1 if there are faults."""
    (arguments,) = parse_recipe([FaultArguments], argv, description=__doc__ or "")
    rows, findings, failed = [], Counter[str](), False
    with tempfile.TemporaryDirectory(prefix="faults-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        import_everything()
        inputs = Inputs(Path(name) / "inputs")
        for chosen in arguments.operations or OPERATIONS:
            try:
                one = operation(chosen, Path(name), inputs)
                faults = arguments.faults or FAULTS
                campaign = Campaign(one, Path(name), faults, arguments.parts, arguments.every)
                findings += inject(campaign, arguments.findings)
                rows += table_rows(campaign)
            except ValueError as error:  # it fails without any fault
                findings[f"{chosen} | {error}"] += 1
                failed = True
    forget_shim()
    header = ["operation", "part", "calls", *FAULTS, "folders run again", CONTINUED, REFUSED, "faults"]
    print_table("A fault at every file-system call", header, rows)
    for text, count in findings.most_common():
        print(f"{count:6} x {text}")
    return int(failed or any(row[-1] for row in rows))


def inject(campaign: Campaign, findings: str) -> Counter[str]:
    """Run a campaign; returns how often each finding occurred."""
    campaign.record()
    name = campaign.operation.name
    print(f"{name}: {len(campaign.calls)} calls", flush=True)
    counts: Counter[str] = Counter()
    for number, (point, part, verdict) in enumerate(campaign.try_all(), start=1):
        if number % 200 == 0:
            print(f"{number} points, at call {point.call}", file=sys.stderr, flush=True)
        if verdict.kind == CONTINUED:
            continue
        call = campaign.calls[point.call]
        where = f"call {point.call} ({call.kind.name} {campaign.paths[point.call]})"
        key = f"{name} | {part} | {point.fault} | {verdict.kind} | {verdict.text}"
        if not counts[key]:
            print(f"{key} | first: {where}", flush=True)
        counts[key] += 1
        if findings:
            facts = {"operation": name, "part": part, "fault": point.fault, "call": point.call, "where": where}
            with Path(findings).open("a") as file:
                file.write(json.dumps(facts | {"verdict": verdict.kind, "text": verdict.text}) + "\n")
    return counts


def table_rows(campaign: Campaign) -> list[list[object]]:
    """One row for each part of the operation."""
    rows: list[list[object]] = []
    for part, counts in campaign.table.items():
        tried = [counts[fault] for fault in FAULTS]
        outcomes = [counts[kind] for kind in (CONTINUED, REFUSED, FAULT)]
        rows.append([campaign.operation.name, part, counts["calls"], *tried, counts["run again"], *outcomes])
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
