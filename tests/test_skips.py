"""The line about skipped tests at the end of a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MISSING = """
import pytest

pytest.importorskip("a_package_that_is_not_installed")
"""
TESTS = """
import pytest


@pytest.fixture
def root():
    pytest.skip("needs root")


@pytest.mark.parametrize("number", range(3))
def test_with_root(root, number):
    pass


@pytest.mark.skipif(True, reason="needs glibc")
def test_with_glibc():
    pass


@pytest.mark.xfail
def test_fails():
    raise ValueError


def test_passes():
    pass
"""


def run(folder, *options):
    (folder / "conftest.py").write_text("from tests.support.skips import pytest_terminal_summary")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith("skipped:")]


@pytest.mark.parametrize("options", [[], ["-n", "2"], ["-q"]], ids=" ".join)
def test_one_line_groups_skipped_tests_by_reason(options, tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_missing.py").write_text(MISSING)
    (line,) = run(tmp_path, *options)
    assert line.startswith("skipped: 5 (needs root: 3; ")
    assert "needs glibc: 1" in line
    assert "all of test_missing.py, could not import 'a_package_that_is_not_installed'" in line


def test_no_line_if_nothing_is_skipped(tmp_path):
    (tmp_path / "test_some.py").write_text("def test_passes():\n    pass\n")
    assert run(tmp_path) == []
