"""`pull` with a local Hub: downloads, verification, permissions, and messages about failures."""

import contextlib
import random
import re
import resource
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

from tests.support.local_hub import wire
from tests.support.local_hub.content import InMemory
from train import pull
from train.hub.client import HubName
from train.model.find import find_model
from train.settings.command import run_command

WEIGHTS = random.Random(0).randbytes(300_000)
FILES = {
    "config.json": b'{"model_type": "scratch_gpt"}',
    "model.safetensors": WEIGHTS,
    "modeling.py": b"raise SystemExit\n",
    "a/notes.txt": b"below\n",
    "pytorch_model.bin": b"\x80\x04pickle",
    "rng.pkl": b"\x80\x04pickle",
}
ARRIVING = {".gitattributes", "config.json", "model.safetensors", "modeling.py", "a/notes.txt"}
BOTH_CLIENTS = pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
BUSY = r"the Hub is busy or unavailable: HTTP 503 \(Fault on purpose, 503\)\. Try again later\."


@pytest.fixture
def commit(hub):
    """The commit of alice/tiny, uploaded by the client, so that its weights are in the Xet storage if that is on."""
    hub.create("alice/tiny")
    operations = [CommitOperationAdd(path, data) for path, data in FILES.items()]
    info = HfApi().create_commit("alice/tiny", operations, commit_message="All")
    hub.repo("alice/tiny").tags["v1"] = hub.repo("alice/tiny").commit_at()
    hub.requests.clear()
    return info.oid


@pytest.fixture
def script(capsys):
    """Runs `pull`; returns its exit code, and its output or its message of one line."""

    def script(*options):
        code = run_command(pull.main, ["--model", *map(str, options)])
        shown = capsys.readouterr()
        errors = shown.err.partition("\nnext:\n")[0]
        assert errors.count("\n") == (code != 0), shown.err
        return code, shown.out if code == 0 else shown.err.strip()

    return script


def folder_in(output):
    return Path(output.splitlines()[-1])


def files_in(folder):
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if not path.startswith(".cache/")}


def downloads(hub):
    """Paths of the files whose content was requested."""
    return [
        entry.path.partition("/resolve/")[2].partition("/")[2] or "model.safetensors"
        for entry in hub.requests.matching("GET", "/resolve/|^/lfs/|^/xorb/")
    ]


def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# Downloads


@BOTH_CLIENTS
def test_all_files_but_pickles_are_downloaded_and_verified(hub, commit, script):
    code, output = script("alice/tiny")
    folder = folder_in(output)
    assert code == 0
    assert output.startswith(f"alice/tiny at commit {commit}: all checksums match\n")
    assert "contains Python code, which runs only with trust_remote_code=True: modeling.py\n" in output
    assert f'load this version: from_pretrained("alice/tiny", revision="{commit}")\n' in output
    assert files_in(folder) == ARRIVING
    assert {name: (folder / name).read_bytes() for name in ARRIVING} == {
        name: data for name, data in hub.repo("alice/tiny").files().items() if name in ARRIVING
    }
    assert not [entry for entry in hub.requests if re.search(r"resolve.*(bin|pkl)$", entry.path)]
    assert not hub.requests.matching(path="^/lfs/" if constants.HF_HUB_DISABLE_XET is False else "^/xorb/")


def test_every_way_to_name_a_revision(hub, commit, script):
    main = hub.commit("alice/tiny", {"a/notes.txt": b"newer\n"}).id
    pull_request = HfApi().create_commit(
        "alice/tiny", [CommitOperationAdd("a/notes.txt", b"proposed\n")], commit_message="Proposal", create_pr=True
    )
    HfApi().create_branch("alice/tiny", branch="dev", revision=commit)
    expected = {
        "": (main, b"newer\n"),
        "@main": (main, b"newer\n"),
        "@v1": (commit, b"below\n"),
        "@dev": (commit, b"below\n"),
        f"@{commit}": (commit, b"below\n"),
        f"@{commit[:8]}": (commit, b"below\n"),
        "@refs/pr/1": (pull_request.oid, b"proposed\n"),
    }
    for revision, (sha, text) in expected.items():
        code, output = script(f"alice/tiny{revision}")
        assert (code, folder_in(output).name) == (0, sha), revision
        assert f"alice/tiny{revision} at commit {sha}: all checksums match" in output
        assert (folder_in(output) / "a/notes.txt").read_bytes() == text


def test_a_local_folder(commit, script, tmp_path):
    code, output = script("alice/tiny@v1", "--local_dir", tmp_path / "mine")
    assert (code, folder_in(output)) == (0, tmp_path / "mine")
    assert files_in(tmp_path / "mine") == ARRIVING
    assert not any(path.is_symlink() for path in (tmp_path / "mine").rglob("*"))
    assert not (Path(constants.HF_HUB_CACHE) / "models--alice--tiny").exists()


def test_a_second_call_downloads_nothing_and_works_offline(hub, commit, script, monkeypatch):
    _, output = script("alice/tiny@v1")
    hub.requests.clear()
    assert script("alice/tiny@v1") == (0, output)
    assert downloads(hub) == []
    hub.requests.clear()
    offline(monkeypatch)
    code, cached = script("alice/tiny@v1")
    assert (code, folder_in(cached)) == (0, folder_in(output))
    assert f"alice/tiny@v1 at commit {commit}: not verified" in cached
    assert list(hub.requests) == []


def test_offline_missing_models_are_named(hub, commit, script, monkeypatch, tmp_path):
    script("alice/tiny@v1")
    offline(monkeypatch)
    code, message = script("alice/tiny@main")
    assert code == 2
    assert re.search(r"alice/tiny@main is not in /.*/hub and cannot be downloaded while HF_HUB_OFFLINE is set", message)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/other.txt").write_text("of another model")
    code, message = script("alice/tiny@v1", "--local_dir", tmp_path / "mine")
    assert code == 2
    assert f"cannot use --local_dir {tmp_path / 'mine'} while HF_HUB_OFFLINE is set" in message


# Permissions


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("alice", None),
        ("bob", "alice/tiny does not exist on the Hub or is private and this token has no access to it."),
        (None, "or is private: log in with `hf auth login` or set HF_TOKEN."),
        ("nobody", "the Hub rejected the token (Invalid credentials in Authorization header): log in with"),
    ],
)  # fmt: skip
def test_a_private_model(user, message, hub, commit, script, monkeypatch):
    hub.repo("alice/tiny").private = True
    become(user, hub, monkeypatch)
    code, output = script("alice/tiny")
    assert code == (2 if message else 0)
    assert (message or "all checksums match") in output
    assert "Completed files" not in output


@pytest.mark.parametrize("user", ["bob", None])
def test_a_gated_model(user, hub, commit, script, monkeypatch):
    hub.repo("alice/tiny").gated = "auto"
    become(user, hub, monkeypatch)
    code, message = script("alice/tiny")
    assert code == 2
    assert f"error: alice/tiny is gated: request access at {hub.url}/alice/tiny, then log in with" in message
    hub.repo("alice/tiny").granted.add("bob")
    assert script("alice/tiny")[0] == (0 if user else 2)


def become(user, hub, monkeypatch):
    if user is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", "hub-nobody" if user == "nobody" else hub.token(user, "read"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alice/nothing", "alice/nothing does not exist on the Hub or is private"),
        ("tiny", "tiny does not exist on the Hub or is private"),
        ("alice/tiny@v9", "alice/tiny has no branch, tag or commit v9."),
        ("alice/tiny@" + "0" * 40, "alice/tiny has no branch, tag or commit " + "0" * 40),
        ("alice/tiny@../../v1", "alice/tiny has no branch, tag or commit ../../v1."),
        ("alice/tiny@", "alice/tiny@ has no revision after the @: give a branch, tag or commit."),
        ("a/b/c", "a/b/c is not a name on the Hub: Repo id must be in the form"),
        ("alice/ti ny", "alice/ti ny is not a name on the Hub: Repo id must use alphanumeric chars"),
        ("../tiny", "../tiny is not a name on the Hub"),
        ("alice/..", "alice/.. is not a name on the Hub"),
        ("", "is not a name on the Hub"),
    ],
)
def test_names_that_do_not_exist(name, message, commit, script):
    code, shown = script(name)
    assert code == 2
    assert message in shown


# Damage


@BOTH_CLIENTS
def test_a_corrupted_transfer_is_named_and_repaired(hub, commit, script):
    hub.corrupt(path="^/lfs/|^/xorb/", port="storage")
    code, message = script("alice/tiny@v1")
    assert code == 2
    assert re.search(
        r"error: files of alice/tiny@v1 in \S+ do not match the checksums on the Hub: model\.safetensors\.", message
    )
    command = message.partition("scratch-gpt pull --model ")[2]
    assert script(*command.split())[0] == 0
    assert script("alice/tiny@v1")[0] == 0


def test_damaged_files_in_the_cache_are_named(hub, commit, script):
    folder = folder_in(script("alice/tiny")[1])
    for name in ("a/notes.txt", "model.safetensors"):
        blob = (folder / name).resolve()
        blob.chmod(0o644)
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    hub.requests.clear()
    code, message = script("alice/tiny")
    assert (code, downloads(hub)) == (2, [])
    assert "files of alice/tiny in" in message
    assert ": a/notes.txt, model.safetensors. Download them again" in message


@BOTH_CLIENTS
@pytest.mark.parametrize("where", ["cache", "folder"])
def test_a_full_disk_is_one_line_and_loses_nothing(where, hub, commit, script, tmp_path):
    options = ["--local_dir", tmp_path / "mine"] if where == "folder" else []
    place = tmp_path / "mine" if where == "folder" else constants.HF_HUB_CACHE
    with largest_file(len(WEIGHTS) // 2):
        code, message = script("alice/tiny", *options)
    kept = f"Completed files are kept in {place}: run the same command again to download the rest."
    assert (code, message) == (2, f"error: File too large. {kept}")
    assert not list(tmp_path.rglob("*.incomplete"))
    hub.requests.clear()
    assert script("alice/tiny", *options)[0] == 0
    assert downloads(hub) == ["model.safetensors"]


@contextlib.contextmanager
def largest_file(size):
    """Limits the size of files, as if the disk was full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Broken connections


@BOTH_CLIENTS
def test_a_broken_connection_is_resumed(hub, commit, script):
    hub.cut_download(100_000, path="^/lfs/|^/xorb/", port="storage")
    assert script("alice/tiny")[0] == 0
    assert downloads(hub).count("model.safetensors") == 2


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_the_rest_of_a_large_file_is_requested_by_its_range(hub, commit, script, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 40_000)
    hub.cut_download(100_000, path="^/lfs/", port="storage")
    assert script("alice/tiny")[0] == 0
    first, second = hub.requests.matching("GET", "^/lfs/")
    assert (first.sent, second.headers["range"], second.status) == (100_000, "bytes=80000-", 206)


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_after_a_connection_reset_the_next_call_downloads_the_rest(hub, commit, script):
    hub.cut_download(100_000, path="^/lfs/", port="storage", reset=True)
    code, message = script("alice/tiny")
    assert code == 2
    assert f"error: the connection to {hub.url} failed (ReadError: " in message
    assert f"Completed files are kept in {constants.HF_HUB_CACHE}: run the same command again" in message
    hub.requests.clear()
    assert script("alice/tiny")[0] == 0
    assert downloads(hub) == ["model.safetensors"]


def test_missing_files_in_the_xet_storage_are_one_line(hub, commit, script):
    hub.fail(path="/reconstructions/", status=404, times=None)
    code, message = script("alice/tiny")
    assert code == 2
    assert re.match(
        rf"error: the connection to {hub.url} failed \(RuntimeError: .*404 Not Found.*\)\. Completed", message
    )


@BOTH_CLIENTS
def test_a_busy_hub_is_asked_again(hub, commit, script):
    hub.fail(path="/resolve/", method="HEAD", status=503, retry_after=0)
    hub.fail(path="/resolve/.*/config.json", method="GET", status=429, retry_after=0)
    assert script("alice/tiny")[0] == 0


@pytest.mark.parametrize("options", [[], ["--force_download", "true"]])
@pytest.mark.parametrize(("path", "method"), [("/resolve/", "HEAD"), ("/resolve/", "GET"), ("/api/", "GET")])
def test_a_hub_that_stays_busy(path, method, options, hub, commit, script):
    hub.fail(path=path, method=method, times=None, retry_after=0)
    code, message = script("alice/tiny", *options)
    assert code == 2
    assert re.match(f"error: {BUSY}", message)


@pytest.mark.parametrize("what", ["busy", "unreachable"])
def test_commands_warn_and_use_the_cache_if_the_hub_cannot_be_reached(what, hub, commit, monkeypatch, capsys):
    folder = find_model("--model", "alice/tiny@v1")
    assert capsys.readouterr().err == ""
    if what == "busy":
        hub.fail(times=None, retry_after=0)
    else:
        hub.cut_download(0, method="GET", times=None, reset=True)
    assert find_model("--model", "alice/tiny@v1") == folder
    warning = capsys.readouterr().err
    assert f"Using commit {commit} from the cache, not verified.\n" in warning
    assert (warning.startswith("warning: "), warning.count("\n")) == (True, 1)
    with pytest.raises(ConnectionError, match=BUSY if what == "busy" else "the connection to .* failed"):
        find_model("--model", "alice/tiny@main")


def test_without_access_the_cache_is_not_used(hub, commit, monkeypatch):
    find_model("--model", "alice/tiny")
    hub.repo("alice/tiny").private = True
    become("bob", hub, monkeypatch)
    with pytest.raises(
        ValueError, match="alice/tiny does not exist on the Hub or is private and this token has no access"
    ):
        find_model("--model", "alice/tiny")


# Malicious and broken servers


@pytest.mark.parametrize(
    "path", ["../../../../stray.txt", "/{tmp}/stray.txt", "..\\..\\stray.txt", "a/../../../../../stray.txt"]
)
@pytest.mark.parametrize("where", ["cache", "folder"])
def test_file_names_that_leave_the_folder_write_nothing(path, where, hub, commit, script, tmp_path):
    hub.commit("alice/tiny", {path.format(tmp=str(tmp_path)[1:]): b"bad"}, is_checked=False)
    options = ["--local_dir", tmp_path / "a/b/mine"] if where == "folder" else []
    code, message = script("alice/tiny", *options)
    assert code == 2
    assert message.startswith("error: Invalid filename '")
    assert not [found for base in (tmp_path, Path(constants.HF_HOME).parents[1]) for found in base.rglob("*stray*")]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/models/alice/tiny$", b"<html>Log in to this hotel</html>"),
        ("/api/models/alice/tiny$", b""),
        ("/api/models/alice/tiny$", b"\xff\xfe\x00"),
        ("/api/models/alice/tiny$", b"{}"),
        ("/api/models/alice/tiny$", b"[]"),
        ("/api/models/alice/tiny$", b"null"),
        ("/revision/main$", b"{}"),
        ("/tree/", b"<html>"),
        ("/tree/", b"[{}]"),
        ("/tree/", b'{"error": 1}'),
        ("/tree/", b"[1]"),
    ],
)
def test_malformed_responses(path, body, hub, commit, script, monkeypatch):
    dispatch = wire.dispatch

    def answer(request):
        return wire.Reply(200, InMemory(body)) if re.search(path, request.path) else dispatch(request)

    monkeypatch.setattr(wire, "dispatch", answer)
    code, message = script("alice/tiny")
    assert code == 2
    assert message.startswith(f"error: {hub.url} does not respond like a Hugging Face Hub (")


def test_names_are_parsed():
    assert HubName.parse("alice/tiny@a/b@c") == HubName("alice/tiny", "a/b@c")
    assert str(HubName.parse("alice/tiny")) == "alice/tiny"
