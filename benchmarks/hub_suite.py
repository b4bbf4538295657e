"""Our local hub judged by tests that we did not write, those of huggingface_hub: `python -m benchmarks.hub_suite`.

The tests come with the source package of the installed version, which pip downloads into a temporary folder; nothing of
it stays. They need fixtures and accounts that are not part of it: the constants below stand in for them.
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
STAGING = "https://hub-ci.huggingface.co"  # where the tests expect their hub
USER, OTHER, ENTERPRISE, COMPANY = "__DUMMY_HUB_USER__", "DVUser", "EnterpriseAdmin", "EnterpriseOrgPrivate"
TOKENS = {"TOKEN": USER, "OTHER_TOKEN": OTHER, "ENTERPRISE_TOKEN": ENTERPRISE}  # constant of the tests -> whose it is
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
    """Stands in for the plugin pytest-mock."""
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
ON_PURPOSE = {  # part of a test's name -> what it is about
    "Collection": "collections, which the local hub does not have",
    "AccessRequest": "requests for access, which the local hub does not have",
    "Webhook": "webhooks, which the local hub does not have",
    "Space": "running Spaces, which the local hub does not have",
    "Inference|inference_endpoint": "inference, which the local hub does not have",
    "Bucket|bucket": "buckets, which the local hub does not have",
    "RelativePaths": "a backslash within a path, which the local hub refuses anywhere and the real one at the start",
}


@dataclass
class SuiteArguments:
    """What to run."""

    files: list[str] = option_list(f"Files of the tests; {' '.join(FILES)} if none is named.")
    xet: bool = option("Whether the client may use Xet.", True)
    minutes: int = option("The tests are ended after this time.", 15)


class Outcome(NamedTuple):
    """How one test ended: passed, failed, error or skipped, and the last line of its message."""

    file: str
    name: str
    result: str
    message: str


class Hub(NamedTuple):
    """A server that runs, and the tokens that write, by user."""

    url: str
    tokens: Mapping[str, str]


def main(argv: Sequence[str] | None = None) -> None:
    """Print how many tests pass, and why the others do not."""
    (arguments,) = parse_recipe([SuiteArguments], argv, description=__doc__ or "")
    files = arguments.files or list(FILES)
    with tempfile.TemporaryDirectory(prefix="hub_suite_") as name, serve(Path(name)) as hub:
        suite = download(Path(name))
        adapt(suite, hub)
        outcomes = run(suite, files, hub, arguments)
    results = ("passed", "failed", "error", "skipped")
    rows = [[file, *(count(outcomes, file, result) for result in results)] for file in files]
    rows.append(["all", *(sum(outcome.result == result for outcome in outcomes) for result in results)])
    print_table(f"The tests of {PACKAGE} {version(PACKAGE)} on the local hub", ["file", *results], rows)
    reasons = collections.Counter(map(reason, (outcome for outcome in outcomes if outcome.result in results[1:3])))
    print_table("Why tests fail", ["reason", "tests"], [[text, number] for text, number in reasons.most_common()])


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """The local hub with the accounts of the tests, until the end of the block."""
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
    """What the server prints when it is ready."""
    url, tokens = "", {}
    for line in process.stdout or ():
        if match := re.match("export HF_ENDPOINT=(.*)", line):
            url = match[1]
        elif match := re.match(r"# (\w+): (\S+) ", line):
            tokens[match[1]] = match[2]
        elif line.startswith("#"):
            return Hub(url, tokens)
    raise RuntimeError("The local hub has not started; see above.")


def download(folder: Path) -> Path:
    """The folder of the tests."""
    source = f"{PACKAGE}=={version(PACKAGE)}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", source]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (archive,) = folder.glob(f"{PACKAGE}-*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz") / "tests"


def adapt(suite: Path, hub: Hub) -> None:
    """Point the tests at the local hub, with its tokens."""
    for path in suite.glob("*.py"):
        path.write_text(path.read_text().replace(STAGING, hub.url))
    with (suite / "testing_constants.py").open("a") as file:
        file.writelines(f"{name} = {hub.tokens[user]!r}\n" for name, user in TOKENS.items())
    (suite / "__init__.py").touch()
    (suite / "conftest.py").write_text(CONFTEST)
    (suite.parent / "pytest.ini").write_text("[pytest]\nmarkers =\n" + "".join(f"    {name}\n" for name in MARKERS))


def run(suite: Path, files: Sequence[str], hub: Hub, arguments: SuiteArguments) -> list[Outcome]:
    """The outcomes of the tests that need neither the real hub nor recordings of it."""
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
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{file}" for file in files)]
    subprocess.run(command, cwd=suite.parent, env=environment, stdout=sys.stderr, timeout=60 * arguments.minutes)
    return [outcome(case) for case in ElementTree.parse(report).iter("testcase")]


def outcome(case: ElementTree.Element) -> Outcome:
    """One test of the report."""
    file, _, group = case.get("classname", "").removeprefix("tests.").partition(".")
    name = f"{group}.{case.get('name')}".lstrip(".")
    for tag, result in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        if (found := case.find(tag)) is not None:
            lines = [line for line in (found.get("message") or "").splitlines() if line.strip()]
            return Outcome(f"{file}.py", name, result, lines[0] if lines else "")
    return Outcome(f"{file}.py", name, "passed", "")


def count(outcomes: Sequence[Outcome], file: str, result: str) -> int:
    """Tests of a file that ended so."""
    return sum((outcome.file, outcome.result) == (file, result) for outcome in outcomes)


def reason(outcome: Outcome) -> str:
    """The service that is missing, or else the test and its message."""
    for pattern, service in ON_PURPOSE.items():
        if re.search(pattern, outcome.name):
            return service
    return f"`{outcome.name}`: {outcome.message[:160]}".replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(run_command(main))
