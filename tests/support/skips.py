"""One line at the end of a test run that gives the reasons of all skipped tests. `conftest.py` imports the hook."""

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter):
    """Without this, a suite that skips what it cannot run looks like one that passes; `-rs` shows more."""
    reports = terminalreporter.stats.get("skipped", [])
    if reports:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in Counter(map(reason_of, reports)).most_common())
        terminalreporter.write_line(f"skipped: {len(reports)} ({reasons})")


def reason_of(report):
    reason = report.longrepr[2].removeprefix("Skipped: ")
    return f"all of {report.nodeid}, {reason}" if isinstance(report, pytest.CollectReport) else reason
