"""Faults of the local Hub with the real client, and the Hub as a separate process."""

import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from tests.support.local_hub.raw import call, commit, put
from tests.support.local_hub.refusals import Refusal

REPOSITORY = Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
PLAIN = pytest.mark.parametrize("hub", ["lfs"], indirect=True)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The client waits for seconds between attempts."""
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def model(hub):
    """A repository with a file of 900 kB, which the client downloads in pieces of 100 kB."""
    data = os.urandom(900_000)
    hub.create("alice/m")
    hub.commit("alice/m", {"model.bin": data, "config.json": b"{}"})
    return data


def test_a_temporary_failure(hub, model):
    hub.fail(path="/preupload/", status=503, retry_after=0, times=2)
    upload = functools.partial(HfApi().upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="alice/m")
    upload()
    assert [entry.status for entry in hub.requests.matching("POST", "/preupload/")] == [503, 503, 200]
    hub.fail(path="/commit/", method="POST", status=500, message="Out of order")
    with pytest.raises(HfHubHTTPError, match="Out of order"):
        upload(path_or_fileobj=b"y")
    assert hub.repo("alice/m").read("x") == b"x"
    hub.fail(path="/commit/", method="GET", times=None)  # does not match
    upload(path_or_fileobj=b"y")
    assert hub.repo("alice/m").read("x") == b"y"
    with pytest.raises(ValueError, match="method must be"):
        hub.fail(method="FETCH")


@PLAIN
def test_a_download_resumes_where_it_was_cut(hub, model, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    hub.cut_download(450_000, path="model.bin", port="storage")
    assert Path(hf_hub_download("alice/m", "model.bin")).read_bytes() == model
    first, second = hub.requests.matching("GET", "model.bin", port="storage")
    assert (first.sent, second.headers["range"], second.status) == (450_000, "bytes=400000-", 206)


@PLAIN
def test_a_download_that_is_reset_fails(hub, model):
    hub.cut_download(450_000, path="model.bin", reset=True)
    with pytest.raises(HTTPError, match="reset by peer"):
        hf_hub_download("alice/m", "model.bin")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert Path(hf_hub_download("alice/m", "model.bin")).read_bytes() == model


def test_a_download_by_xet_resumes_too(hub, tmp_path, monkeypatch):
    data = os.urandom(900_000)
    HfApi().create_repo("m")
    HfApi().upload_file(path_or_fileobj=data, path_in_repo="model.bin", repo_id="alice/m")
    hub.cut_download(450_000, path="^/xorb/")
    assert Path(hf_hub_download("alice/m", "model.bin")).read_bytes() == data
    assert len(hub.requests.matching("GET", "^/xorb/")) == 2


def test_a_second_file_shares_what_it_can(hub):
    data = os.urandom(3_000_000)
    HfApi().create_repo("m")
    HfApi().upload_file(path_or_fileobj=data, path_in_repo="a.bin", repo_id="alice/m")
    hub.requests.clear()
    shorter = data[:1_000_000] + data[2_000_000:]
    HfApi().upload_file(path_or_fileobj=shorter, path_in_repo="b.bin", repo_id="alice/m")
    assert sum(entry.received for entry in hub.requests.matching("POST", "/xorbs/")) < 500_000
    assert Path(hf_hub_download("alice/m", "b.bin")).read_bytes() == shorter
    (file,) = HfApi().get_paths_info("alice/m", "b.bin")
    token = call(hub, "GET", "/api/models/alice/m/xet-read-token/main", hub.token()).json()["accessToken"]
    for version, part in ((1, "fetch_info"), (2, "xorbs")):
        path = f"{hub.storage_url}/v{version}/reconstructions/{file.xet_hash}"
        found = call(hub, "GET", path, token).json()
        assert len(found[part]) == 2
        assert call(hub, "GET", path).status_code == 401
        assert call(hub, "GET", path, token, headers={"Range": "bytes=2000000-"}).status_code == 416
    address = next(iter(found["xorbs"].values()))[0]["url"]
    xorb = call(hub, "GET", address).content
    parts = call(hub, "GET", address, headers={"Range": "bytes=0-9,30-39"})
    assert parts.headers["Content-Type"].startswith("multipart/byteranges")
    assert [xorb[:10], xorb[30:40]] == re.findall(rb"bytes \d+-\d+/\d+\r\n\r\n(.{10})\r\n", parts.content, re.DOTALL)


@PLAIN
@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_upload_is_repeated(hub, reset):
    data = os.urandom(900_000)
    hub.create("alice/m")
    hub.cut_upload(450_000, path="^/upload/", reset=reset)
    HfApi().upload_file(path_or_fileobj=data, path_in_repo="model.bin", repo_id="alice/m")
    first, second = hub.requests.matching("PUT")
    assert (first.received, first.status, second.received, second.status) == (450_000, None, 900_000, 200)
    assert hub.repo("alice/m").read("model.bin") == data


@PLAIN
def test_wrong_bytes_are_found_by_their_checksum(hub, model):
    hub.corrupt(path="model.bin")
    folder = Path(snapshot_download("alice/m"))
    assert (folder / "model.bin").read_bytes()[:-1] == model[:-1]
    assert [entry["path"] for entry in checked("alice/m")] == ["model.bin"]
    snapshot_download("alice/m", force_download=True)
    assert not checked("alice/m")


def checked(name):
    return HfApi().verify_repo_checksums(name).mismatches


@BOTH
@pytest.mark.parametrize("name", ["../../evil", "a/../../../evil", "/tmp/evil", "..\\evil"])
def test_unsafe_names_from_a_malicious_hub(hub, tmp_path, name):
    hub.create("alice/m")
    hub.commit("alice/m", {"config.json": b"{}", name: b"evil"}, is_checked=False)
    assert name in HfApi().list_repo_files("alice/m")
    with pytest.raises(ValueError, match="Invalid filename"):
        snapshot_download("alice/m", local_dir=tmp_path / "a" / "b")
    assert not list(tmp_path.parent.rglob("evil"))
    with pytest.raises(Refusal, match="Invalid path"):
        hub.commit("alice/m", {name: b"evil"})


def test_any_card_can_be_refused(hub, model):
    hub.card_error = '"license" is not to our taste'
    upload = functools.partial(HfApi().upload_file, path_in_repo="README.md", repo_id="alice/m")
    with pytest.raises(ValueError, match="taste"):
        upload(path_or_fileobj=b"---\nlicense: mit\n---\n")
    assert "README.md" not in hub.repo("alice/m").files()
    hub.card_error = None
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        upload(path_or_fileobj=b"# No metadata\n")


def test_a_request_can_be_delayed(hub, model):
    with hub.hold(path="/commit/", method="POST") as gate:
        landing = HfApi().upload_file(
            path_or_fileobj=b"x", path_in_repo="x", repo_id="alice/m", run_as_future=True, commit_message="Late"
        )
        assert gate.reached.wait(30)
        assert "x" not in hub.repo("alice/m").files()
        assert not landing.done()
        gate.open()
        landing.result(30)
    assert hub.repo("alice/m").history()[0].title == "Late"


def test_large_bodies_are_refused_and_chunks_are_understood(hub, model):
    pieces = [
        b'{"key": "header", "value": {"summary": "A"}}\n',
        b'{"key": "deletedFile", "value": {"path": "config.json"}}',
    ]
    path = "/api/models/alice/m/commit/main"
    assert call(hub, "POST", path, hub.token(), content=iter(pieces)).status_code == 200
    assert "config.json" not in hub.repo("alice/m").files()
    hub.max_body = 50
    assert call(hub, "POST", path, hub.token(), content=iter(pieces)).status_code == 413
    assert commit(hub, put("x")).status_code == 413
    assert len(hub.repo("alice/m").history()) == 3


@BOTH
def test_a_token_is_in_no_stored_byte_unless_it_was_uploaded(hub, tmp_path):
    token = hub.token().encode()
    HfApi().create_repo("m")
    (tmp_path / "model.bin").write_bytes(b"\0" * 1000)
    (tmp_path / "config.json").write_text("{}")
    HfApi().upload_folder(folder_path=tmp_path, repo_id="alice/m")
    snapshot_download("alice/m")
    HfApi().create_discussion("alice/m", title="A question")
    stored = dict(hub.every_stored_byte())
    assert any(b"\0" * 1000 in data for data in stored.values())
    assert not [name for name, data in stored.items() if token in data]
    leaks = {"large.bin": b"\0" + token, "small.txt": token}
    for name, data in leaks.items():
        HfApi().upload_file(path_or_fileobj=data, path_in_repo=name, repo_id="alice/m")
    HfApi().create_discussion("alice/m", title=f"Mine is {hub.token()}")
    call(hub, "GET", f"/api/models/alice/m?token={hub.token()}")
    found = {re.match(r"\w+", name)[0] for name, data in hub.every_stored_byte() if token in data}
    large = "xet" if hub.requests.matching("GET", "xet-write-token") else "lfs"
    assert found == {"alice", "blob", "request", large}


def test_other_hosts_are_out_of_reach(hub):
    with pytest.raises(httpx2.ConnectError):
        httpx2.get("http://huggingface.invalid", verify=False)
    assert hub.errors == ["a client looked for huggingface.invalid"]
    hub.errors.clear()


def test_an_unimplemented_route_is_not_a_missing_repository(hub, model):
    reply = call(hub, "POST", "/api/models/alice/m/like", hub.token())
    assert (reply.status_code, "X-Error-Code" in reply.headers) == (501, False)
    assert call(hub, "GET", "/api/papers").headers["X-Error-Code"] == "RouteNotFound"
    assert call(hub, "GET", "/api/models/alice/n/like").headers["X-Error-Code"] == "RepoNotFound"


def test_without_the_fixture_everything_is_offline():
    assert constants.is_offline_mode()
    assert not os.environ.get("HF_TOKEN", "").startswith("local-")
    assert "hub_home" not in constants.HF_HUB_CACHE + os.environ.get("HF_HOME", "")


@PLAIN
def test_another_process_is_a_client_too(hub, tmp_path, model):
    program = "from huggingface_hub import hf_hub_download; print(hf_hub_download('alice/m', 'model.bin'))"
    environment = hub.environment(tmp_path, hub.token("bob", "read"))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "hf")
    assert Path(done.stdout.strip()).read_bytes() == model
    assert {entry.user for entry in hub.requests.matching("HEAD")} == {"bob"}


def test_a_hub_in_a_shell(tmp_path):
    (tmp_path / "accounts.yaml").write_text(
        "users: {carol: Carol C.}\norganizations: {house: {members: {carol: write}, private_by_default: true}}\n"
    )
    command = [sys.executable, "-m", "tests.support.local_hub", "--port", "0", "--folder", tmp_path / "files"]
    command = [*map(str, command), "--accounts", str(tmp_path / "accounts.yaml")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in range(6)]
            url = re.fullmatch(r"export HF_ENDPOINT=(http://127\.0\.0\.1:\d+)\n", lines[0])[1]
            token = re.match(r"# carol: (\S+) (\S+)", lines[4])[1]
            headers = {"Authorization": f"Bearer {token}"}
            name = {"name": "m", "organization": "house"}
            made = httpx2.post(f"{url}/api/repos/create", json=name, headers=headers, verify=False)
            assert made.json()["url"] == f"{url}/house/m"
            assert httpx2.get(f"{url}/api/models/house/m", verify=False).status_code == 401
            assert (tmp_path / "files").is_dir()
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert not list((tmp_path / "files").rglob("*/*"))
