"""Run huggingface_hub's own tests against the local Hub of our tests: `python -m benchmarks.hub_suite`.

pip downloads the source package of the installed version, which contains the tests, into a temporary folder. The
constants below replace the fixtures and accounts that the package does not contain.
"""

import collections
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import yaml

from train.settings.command import run_command
from train.settings.recipe import option, option_list, parse_recipe

from .report import print_table

REPOSITORY = Path(__file__).parents[1]
FILES = (
    *("test_hf_api.py", "test_snapshot_download.py", "test_commit_api.py", "test_file_download.py"),
    *("test_hf_file_system.py", "test_upload_pipeline.py", "test_xet_upload.py", "test_commit_scheduler.py"),
    *("test_lfs.py", "test_tree_cache.py", "test_verification.py"),
)
PACKAGE = "huggingface_hub"
STAGING = "https://hub-ci.huggingface.co"  # the address in the tests
USER, OTHER, ENTERPRISE, COMPANY = "__DUMMY_HUB_USER__", "DVUser", "EnterpriseAdmin", "EnterpriseOrgPrivate"
TOKENS = {"TOKEN": USER, "OTHER_TOKEN": OTHER, "ENTERPRISE_TOKEN": ENTERPRISE}  # constant in the tests -> user
ACCOUNTS = {
    "users": {USER: "Dummy User", OTHER: OTHER, ENTERPRISE: ENTERPRISE},
    "organizations": {
        "valid_org_hub": {"fullname": "Dummy Hub Org", "members": {USER: "write"}},
        COMPANY: {"members": {ENTERPRISE: "admin"}, "private_by_default": True},
    },
}
CONFTEST = '''
from contextlib import ExitStack
from functools import partial
from unittest import mock

import pytest
from huggingface_hub import HfApi

from .testing_constants import ENDPOINT_STAGING, TOKEN
from .testing_utils import repo_name

RepoFactory = object


@pytest.fixture(scope="session")
def api():
    return HfApi(endpoint=ENDPOINT_STAGING, token=TOKEN)


@pytest.fixture
def repo_factory(api):
    made = []

    def repo_factory(repo_type="model", *, repo_id=None, token=TOKEN, **options):
        if repo_type == "space":
            options.setdefault("space_sdk", "static")
        url = api.create_repo(repo_id or repo_name(), repo_type=repo_type, token=token, **options)
        made.append((url, token))
        return url

    yield repo_factory
    for url, token in made:
        api.delete_repo(url.repo_id, repo_type=url.repo_type, token=token, missing_ok=True)


@pytest.fixture
def mocker():
    """A replacement for the plugin pytest-mock."""
    with ExitStack() as patches:
        def patch(enter, *arguments, **options):
            return patches.enter_context(enter(*arguments, **options))

        fixture = mock.Mock(spec_set=["patch", "Mock", "MagicMock"])
        fixture.Mock, fixture.MagicMock = mock.Mock, mock.MagicMock
        fixture.patch = partial(patch, mock.patch)
        fixture.patch.object = partial(patch, mock.patch.object)
        fixture.patch.dict = partial(patch, mock.patch.dict)
        yield fixture
'''
MARKERS = ("api", "deprecated", "git_lfs", "inference", "no_xet", "production", "transfer", "vcr", "xet")
UNSUPPORTED = {  # pattern of a test's name -> reason to fail
    "Collection": "collections (unsupported)",
    "AccessRequest": "access requests (unsupported)",
    "Webhook": "webhooks (unsupported)",
    "Space": "running Spaces (unsupported)",
    "Inference|inference_endpoint": "inference (unsupported)",
    "Bucket|bucket": "buckets (unsupported)",
    "RelativePaths": "a backslash in a path: the local Hub refuses it anywhere, the real one only at the start",
}


@dataclass
class SuiteArguments:
    """Options of the benchmark."""

    files: list[str] = option_list(f"Test files (default: {' '.join(FILES)}).")
    xet: bool = option("Let the client use Xet.", True)
    minutes: int = option("Stop the tests after this many minutes.", 15)


class Outcome(NamedTuple):
    """The result of one test: passed, failed, error or skipped, and the first line of its message."""

    file: str
    name: str
    result: str
    message: str


class Hub(NamedTuple):
    """A running server, and the write token of each user."""

    url: str
    tokens: Mapping[str, str]


def main(argv: Sequence[str] | None = None) -> None:
    """Print how many tests pass, and why the others fail."""
    (arguments,) = parse_recipe([SuiteArguments], argv, description=__doc__ or "")
    files = arguments.files or list(FILES)
    with tempfile.TemporaryDirectory(prefix="hub_suite_") as name, serve(Path(name)) as hub:
        suite = download(Path(name))
        adapt(suite, hub)
        outcomes = run(suite, files, hub, arguments)
    results = ("passed", "failed", "error", "skipped")
    rows = [[file, *(count(outcomes, file, result) for result in results)] for file in files]
    rows.append(["all", *(sum(outcome.result == result for outcome in outcomes) for result in results)])
    print_table(f"The tests of {PACKAGE} {version(PACKAGE)} on the local Hub", ["file", *results], rows)
    reasons = collections.Counter(map(reason, (outcome for outcome in outcomes if outcome.result in results[1:3])))
    print_table("Why tests fail", ["reason", "tests"], [[text, number] for text, number in reasons.most_common()])


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Run the local Hub with the accounts of the tests, until the end of the block."""
    accounts = folder / "accounts.yaml"
    accounts.write_text(yaml.safe_dump(ACCOUNTS))
    command = [sys.executable, "-m", "tests.support.local_hub", "--accounts", str(accounts)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        yield _hub(process)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def _hub(process: "subprocess.Popen[str]") -> Hub:
    """Read address and tokens, which the server prints when it is ready."""
    url, tokens = "", {}
    for line in process.stdout or ():
        if match := re.match("export HF_ENDPOINT=(.*)", line):
            url = match[1]
        elif match := re.match(r"# (\w+): (\S+) ", line):
            tokens[match[1]] = match[2]
        elif line.startswith("#"):
            return Hub(url, tokens)
    raise RuntimeError("the local Hub did not start; see above.")


def download(folder: Path) -> Path:
    """Download the tests; returns their folder."""
    source = f"{PACKAGE}=={version(PACKAGE)}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", source]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (archive,) = folder.glob(f"{PACKAGE}-*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz") / "tests"


def adapt(suite: Path, hub: Hub) -> None:
    """Point the tests at the local Hub, with its tokens."""
    for path in suite.glob("*.py"):
        path.write_text(path.read_text().replace(STAGING, hub.url))
    with (suite / "testing_constants.py").open("a") as file:
        file.writelines(f"{name} = {hub.tokens[user]!r}\n" for name, user in TOKENS.items())
    (suite / "__init__.py").touch()
    (suite / "conftest.py").write_text(CONFTEST)
    (suite.parent / "pytest.ini").write_text("[pytest]\nmarkers =\n" + "".join(f"    {name}\n" for name in MARKERS))


def run(suite: Path, files: Sequence[str], hub: Hub, arguments: SuiteArguments) -> list[Outcome]:
    """Run the tests that need neither the real Hub nor recordings of it."""
    report = suite.parent / "report.xml"
    is_wanted = f"not production and not vcr and not git_lfs and not {'no_xet' if arguments.xet else 'xet'}"
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--timeout=120"]
    options += [f"--junitxml={report}", "-m", is_wanted]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(suite.parent / "home"),
        "HF_HUB_DISABLE_XET": "0" if arguments.xet else "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{file}" for file in files)]
    subprocess.run(command, cwd=suite.parent, env=environment, stdout=sys.stderr, timeout=60 * arguments.minutes)
    return [outcome(case) for case in ElementTree.parse(report).iter("testcase")]


def outcome(case: ElementTree.Element) -> Outcome:
    """The result of one test in the report."""
    file, _, group = case.get("classname", "").removeprefix("tests.").partition(".")
    name = f"{group}.{case.get('name')}".lstrip(".")
    for tag, result in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        if (found := case.find(tag)) is not None:
            lines = [line for line in (found.get("message") or "").splitlines() if line.strip()]
            return Outcome(f"{file}.py", name, result, lines[0] if lines else "")
    return Outcome(f"{file}.py", name, "passed", "")


def count(outcomes: Sequence[Outcome], file: str, result: str) -> int:
    """The number of tests of a file with this result."""
    return sum((outcome.file, outcome.result) == (file, result) for outcome in outcomes)


def reason(outcome: Outcome) -> str:
    """The unsupported service, or the test and its message."""
    for pattern, service in UNSUPPORTED.items():
        if re.search(pattern, outcome.name):
            return service
    return f"`{outcome.name}`: {outcome.message[:160]}".replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(run_command(main))
