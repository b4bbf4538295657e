"""The local Hub with the real client: permissions, files, history and metadata."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save

from tests.support.local_hub.paths import GIT_ATTRIBUTES, is_ignored, is_lfs
from tests.support.local_hub.raw import call, commit, put
from tests.support.local_hub.routes import uploads

BOTH = pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
PLAIN = pytest.mark.parametrize("hub", ["lfs"], indirect=True)
CARD = b"---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [small]\n---\n# A model\n"


# permissions


@pytest.mark.parametrize(
    ("caller", "public", "private", "missing", "write"),
    [
        ("anyone", 200, 401, 401, 401),
        ("unknown", 401, 401, 401, 401),
        ("bob", 200, 404, 404, 403),
        ("alice read", 200, 200, 404, 403),
        ("alice", 200, 200, 404, 200),
    ],
)
def test_permissions(hub, caller, public, private, missing, write):
    hub.create("alice/public")
    hub.create("alice/private", private=True)
    token = {
        "anyone": None,
        "unknown": "local-write-nobody",
        "bob": hub.token("bob"),
        "alice read": hub.token(role="read"),
    }
    token = token.get(caller, hub.token())
    replies = [call(hub, "GET", f"/api/models/alice/{name}", token) for name in ("public", "private", "missing")]
    assert [reply.status_code for reply in replies] == [public, private, missing]
    changed = call(hub, "PUT", "/api/models/alice/public/settings", token, json={"gated": "auto"})
    assert changed.status_code == write
    for reply in (*replies, changed):
        assert "X-Request-Id" in reply.headers
        assert reply.status_code not in (401, 404) or reply.headers["X-Error-Code"]
    if private == missing:  # then both give the same response
        assert replies[1].content == replies[2].content
        assert replies[1].headers["X-Error-Code"] == replies[2].headers["X-Error-Code"]


def test_the_client_understands_refusals(hub):
    hub.create("alice/m", private=True)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as bad:
        HfApi(token="local-write-nobody").model_info("alice/m")
    assert not isinstance(bad.value, RepositoryNotFoundError)
    for token in (False, hub.token("bob")):
        with pytest.raises(RepositoryNotFoundError):
            HfApi().model_info("alice/m", token=token)
    with pytest.raises(RevisionNotFoundError):
        HfApi().model_info("alice/m", revision="v1")
    with pytest.raises(EntryNotFoundError) as missing:
        HfApi().hf_hub_download("alice/m", "config.json")
    assert missing.value.response.headers["X-Repo-Commit"] == hub.repo("alice/m").commit_at().id
    with pytest.raises(HfHubHTTPError, match="can only read"):
        HfApi(token=hub.token(role="read")).create_repo("new")
    assert HfApi().whoami()["orgs"][0]["name"] == "acme"


def test_creating_moving_and_deleting_repositories(hub):
    api = HfApi()
    assert api.create_repo("acme/m", private=True).repo_id == "acme/m"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("acme/m")
    api.create_repo("acme/m", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("bob/m")
    assert [model.id for model in api.list_models(author="acme")] == ["acme/m"]
    assert not list(api.list_models(author="acme", token=False))
    api.update_repo_settings("acme/m", private=False)
    assert not hub.repo("acme/m").private
    api.move_repo("acme/m", "alice/n")
    assert api.model_info("acme/m").id == "alice/n"  # redirected to the new name
    api.delete_repo("ALICE/N")
    assert not api.repo_exists("alice/n")


def test_a_gated_repository_shows_everything_but_its_files(hub):
    hub.create("alice/m", gated="auto")
    hub.commit("alice/m", {"config.json": b"{}", "model.safetensors": b"\0"})
    api = HfApi(token=hub.token("bob"))
    assert {file.rfilename for file in api.model_info("alice/m").siblings} > {"config.json"}
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(GatedRepoError):
            api.hf_hub_download("alice/m", name)
    with pytest.raises(GatedRepoError):
        api.auth_check("alice/m")
    hub.repo("alice/m").granted.add("bob")
    assert Path(api.hf_hub_download("alice/m", "config.json")).read_bytes() == b"{}"


# files


@BOTH
@pytest.mark.parametrize("parts", [1, 3])
def test_uploads_are_downloaded_unchanged(hub, tmp_path, parts):
    hub.part_size = 100_000
    files = {"a/b/config.json": b"{}", "empty.bin": b"", "weights.bin": os.urandom(100_000 * parts - 7)}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    HfApi().create_repo("m", private=True)
    HfApi().upload_folder(folder_path=tmp_path, repo_id="alice/m")
    assert hub.repo("alice/m").files() == {".gitattributes": GIT_ATTRIBUTES, **files}
    folder = Path(snapshot_download("alice/m"))
    assert {path: (folder / path).read_bytes() for path in files} == files
    puts = hub.requests.matching("PUT", port="storage")
    if hub.requests.matching("GET", "xet-write-token"):
        assert not puts
        assert hub.requests.matching("GET", "^/xorb/")
    else:
        assert len(puts) == parts
        assert not [entry for entry in hub.requests.matching(port="storage") if entry.authorised]
    assert not HfApi().verify_repo_checksums("alice/m").mismatches
    hub.requests.clear()
    HfApi().upload_folder(folder_path=tmp_path, repo_id="alice/m")
    assert len(hub.repo("alice/m").history()) == 2  # no changes, so no commit
    assert not hub.requests.matching("PUT") + hub.requests.matching("POST", "xorbs")


def test_downloads_without_xet(hub, tmp_path):
    HfApi().create_repo("m")
    HfApi().upload_file(path_or_fileobj=b"\0" * 1000, path_in_repo="model.bin", repo_id="alice/m")
    hub.announces_xet = False
    assert Path(hf_hub_download("alice/m", "model.bin")).read_bytes() == b"\0" * 1000
    assert hub.requests.matching("GET", "/lfs/.*model.bin", port="storage")
    assert not hub.requests.matching("GET", "xet-read-token|/xorb/")


def test_the_storage_refuses_unannounced_content(hub):
    hub.create("alice/m")
    wanted = {"oid": "0" * 64, "size": 4}

    def upload(content):
        batch = {"operation": "upload", "objects": [wanted], "ref": {"name": "main"}}
        answer = call(hub, "POST", "/alice/m.git/info/lfs/objects/batch", hub.token(), json=batch)
        return call(hub, "PUT", answer.json()["objects"][0]["actions"]["upload"]["href"], content=content)

    assert "Size" in upload(b"12345").json()["error"]
    assert "SHA-256" in upload(b"1234").json()["error"]
    assert call(hub, "PUT", f"{hub.storage_url}/upload/guessed", content=b"1234").status_code == 403
    assert call(hub, "GET", f"{hub.storage_url}/lfs/{'0' * 64}/x?key=guessed").status_code == 403
    assert call(hub, "POST", f"{hub.storage_url}/v1/xorbs/default/{'0' * 64}", content=b"1").status_code == 401
    large = {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", **wanted}}
    assert "was not uploaded" in commit(hub, large).json()["error"]
    assert len(hub.repo("alice/m").history()) == 1


def test_a_token_sent_to_the_storage_is_recorded(hub):
    assert call(hub, "GET", f"{hub.storage_url}/lfs/x/y", hub.token()).status_code == 500
    assert len(hub.leaks) == 1
    hub.leaks.clear()


@pytest.mark.parametrize(
    ("asked", "status", "body", "content_range"),
    [
        ("bytes=3-", 206, b"3456789", "bytes 3-9/10"),
        ("bytes=3-4", 206, b"34", "bytes 3-4/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("nonsense", 200, b"0123456789", None),
    ],
)
@pytest.mark.parametrize("name", ["small.txt", "large.bin"])
def test_ranges(hub, name, asked, status, body, content_range):
    hub.create("alice/m")
    hub.commit("alice/m", {name: b"0123456789"})
    path = f"/alice/m/resolve/main/{name}"
    reply = call(hub, "GET", path, headers={"Range": asked}, follow_redirects=True)
    assert (reply.status_code, reply.headers.get("Content-Range")) == (status, content_range)
    assert body is None or reply.content == body
    head = call(hub, "HEAD", path)
    assert head.headers["ETag"]
    assert head.headers["X-Repo-Commit"] == hub.repo("alice/m").commit_at().id
    assert head.headers.get("X-Linked-Size", head.headers["Content-Length"]) == "10"


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../x", "/x", "a//x", "", "a/", "./x", "a\\x", "C:x", ".git/config", "a/.GIT/x", "a\nb", "x" * 1100],
)
def test_paths_that_are_refused(hub, path):
    hub.create("alice/m")
    assert commit(hub, put("good"), put(path)).status_code == 422
    assert set(hub.repo("alice/m").files()) == {".gitattributes"}


def test_invalid_commits(hub):
    hub.create("alice/m")
    hub.commit("alice/m", {"file": b"", "folder/file": b""})
    statuses = {
        commit(hub, put("x", "not base64")).status_code: 400,
        commit(hub).status_code: 400,
        commit(hub, {"key": "unknown", "value": {"path": "x"}}).status_code: 400,
        commit(hub, put("file/x")).status_code: 422,
        commit(hub, put("folder")).status_code: 422,
        commit(hub, {"key": "deletedFile", "value": {"path": "none"}}).status_code: 404,
        commit(hub, put("x"), revision="v1").status_code: 404,
    }
    assert all(status == wanted for status, wanted in statuses.items())
    assert call(hub, "POST", "/api/models/alice/m/commit/main", hub.token(), content=b"[]").status_code == 400
    assert len(hub.repo("alice/m").history()) == 2


@pytest.mark.parametrize(
    ("pattern", "ignored", "kept"),
    [
        ("*.log", ["x.log", "a/x.log"], ["x.logs"]),
        ("/x", ["x", "x/y"], ["a/x"]),
        ("a/*.txt", ["a/x.txt"], ["b/a/x.txt", "a/b/x.txt"]),
        ("a/**/x", ["a/x", "a/b/c/x"], ["b/x"]),
        ("runs/", ["runs/x", "a/runs/x"], ["runs"]),
        ("*.bin\n!keep.bin", ["x.bin"], ["keep.bin"]),
        ("# x\n\n[!a].py", ["b.py"], ["a.py", "x"]),
    ],
)
def test_gitignore(pattern, ignored, kept):
    assert all(is_ignored(path, pattern.encode()) for path in ignored)
    assert not any(is_ignored(path, pattern.encode()) for path in kept)


def test_which_files_are_large():
    cases = {
        "x.safetensors": b"{",
        "a/x.bin": b"{",
        "events.out.tfevents.1": b"{",
        "saved_model/a/b": b"{",
        "raw": b"\0",
    }
    assert all(is_lfs(path, 1, data, GIT_ATTRIBUTES) for path, data in cases.items())
    assert is_lfs("x.json", 11_000_000, b"{", GIT_ATTRIBUTES)
    assert not is_lfs("x.json", 9_000_000, "ä".encode() * 256, GIT_ATTRIBUTES)
    assert not is_lfs("x.bin", 0, b"", GIT_ATTRIBUTES)
    assert not is_lfs("x.bin", 1, b"{", GIT_ATTRIBUTES + b"*.bin -filter\n")


def test_ignored_files_are_not_committed(hub, tmp_path):
    (tmp_path / "x.log").touch()
    (tmp_path / ".gitignore").write_text("*.log\n")
    hub.create("alice/m")
    HfApi().upload_folder(folder_path=tmp_path, repo_id="alice/m")
    assert set(hub.repo("alice/m").files()) == {".gitattributes", ".gitignore"}


# history


def test_branches_tags_and_squash(hub):
    api = HfApi()
    hub.create("alice/m")
    first = hub.commit("alice/m", {"x": b"1"})
    second = hub.commit("alice/m", {"x": b"2", "a/y": b""}, title="Second")
    api.create_tag("alice/m", tag="v1", revision=first.id[:8])
    api.create_branch("alice/m", branch="dev", revision="v1")
    api.upload_file(path_or_fileobj=b"3", path_in_repo="x", repo_id="alice/m", revision="dev")
    found = {revision: hub.repo("alice/m").read("x", revision) for revision in ("v1", "main", "dev", second.id)}
    assert found == {"v1": b"1", "main": b"2", "dev": b"3", second.id: b"2"}
    assert {branch.name for branch in api.list_repo_refs("alice/m").branches} == {"main", "dev"}
    tree = {entry.path: entry.last_commit.title for entry in api.list_repo_tree("alice/m", recursive=True, expand=True)}
    assert tree == {".gitattributes": "initial commit", "x": "Second", "a": "Second", "a/y": "Second"}
    for make in (api.create_tag, api.create_branch):
        with pytest.raises(HfHubHTTPError, match="Invalid reference"):
            make("alice/m", **{make.__name__.removeprefix("create_"): "not a name"})
    api.super_squash_history("alice/m")
    assert [entry.title for entry in api.list_repo_commits("alice/m")] == [
        "Super-squash branch 'main' using huggingface_hub"
    ]
    assert hub.repo("alice/m").read("x", "v1") == b"1"


@PLAIN
def test_long_lists_have_pages(hub):
    hub.create("alice/m")
    hub.commit("alice/m", {f"{number:04}.txt": b"" for number in range(1050)})
    for number in range(60):
        hub.commit("alice/m", {"x": b"%d" % number})
    assert len(HfApi().list_repo_files("alice/m")) == 1052
    assert len(HfApi().list_repo_commits("alice/m")) == 62


def test_a_commit_is_refused_when_another_has_landed(hub):
    hub.create("alice/m")
    hub.before_commit(lambda: hub.commit("alice/m", {"x": b"rival"}))
    upload = {"path_or_fileobj": b"mine", "path_in_repo": "x", "repo_id": "alice/m"}
    parent = hub.repo("alice/m").commit_at().id
    with pytest.raises(HfHubHTTPError, match="The branch was updated") as refused:
        HfApi().upload_file(**upload, parent_commit=parent)
    assert refused.value.response.status_code == 412
    assert hub.repo("alice/m").read("x") == b"rival"
    HfApi().upload_file(**upload, parent_commit=hub.repo("alice/m").commit_at().id)
    assert hub.repo("alice/m").read("x") == b"mine"


def test_concurrent_commits_all_succeed(hub, monkeypatch):
    hub.create("alice/m")
    # a pause between reading the branch and moving it, which is only safe with a lock
    monkeypatch.setattr(uploads, "new_commit", lambda *what, make=uploads.new_commit: time.sleep(0.01) or make(*what))
    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(lambda number: commit(hub, put(f"{number}.txt")), range(12)))
    assert {reply.status_code for reply in replies} == {200}
    assert len(hub.repo("alice/m").files()) == len(hub.repo("alice/m").history()) == 13


@BOTH
def test_a_pull_request_from_another_user(hub, tmp_path):
    hub.create("alice/m")
    (tmp_path / "model.bin").write_bytes(b"\0\1")
    bob, alice = HfApi(token=hub.token("bob")), HfApi()
    made = bob.upload_folder(folder_path=tmp_path, repo_id="alice/m", create_pr=True)
    assert made.pr_revision == "refs/pr/1"
    assert "model.bin" not in hub.repo("alice/m").files()
    alice.comment_discussion("alice/m", 1, "Thank you")
    alice.change_discussion_status("alice/m", 1, "open")
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.merge_pull_request("alice/m", 1)
    hub.commit("alice/m", {"other": b""})
    alice.merge_pull_request("alice/m", 1)
    assert {"model.bin", "other"} < set(hub.repo("alice/m").files())
    details = alice.get_discussion_details("alice/m", 1)
    assert (details.status, details.merge_commit_oid) == ("merged", hub.repo("alice/m").commit_at().id)
    assert [discussion.num for discussion in alice.get_repo_discussions("alice/m", discussion_status="closed")] == [1]


def test_a_pull_request_in_conflict(hub):
    hub.create("alice/m")
    pull = HfApi().create_commit(
        "alice/m", [CommitOperationAdd("x", b"theirs")], commit_message="Theirs", create_pr=True
    )
    hub.commit("alice/m", {"x": b"ours"})
    assert HfApi().get_discussion_details("alice/m", pull.pr_num).conflicting_files == ["x"]
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi().merge_pull_request("alice/m", pull.pr_num)


# metadata


def test_metadata_of_a_model(hub):
    hub.create("alice/m")
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}
    config = json.dumps(
        {"architectures": ["Small"], "model_type": "small", "auto_map": {"AutoModel": "x.Small"}}
    ).encode()
    hub.commit("alice/m", {"README.md": CARD, "config.json": config, "model.safetensors": save(tensors)})
    info = HfApi().model_info("alice/m", files_metadata=True)
    assert info.safetensors.parameters == {"F32": 15, "BF16": 7}
    assert (info.pipeline_tag, info.library_name, info.card_data.license) == ("text-generation", "transformers", "mit")
    assert {"small", "custom_code", "safetensors", "license:mit", "text-generation"} < set(info.tags)
    assert info.config["auto_map"] == {"AutoModel": "x.Small"}
    assert {file.rfilename: file.size for file in info.siblings}["config.json"] == len(config)
    assert HfApi().model_info("alice/m", expand=["safetensors"]).card_data is None


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("a: [", "YAML"),
        ("model-index: foo", "model-index"),
        ("model-index: [{name: x, results: [{task: {type: y}}]}]", "dataset.type"),
        ("license: my-own", "license"),
        ("language: english", "language"),
        ("base_model: /home/alice/model", "base_model"),
        ("datasets: [a/b/c]", "datasets"),
    ],
)
def test_model_cards_that_are_refused(hub, metadata, problem):
    hub.create("alice/m")
    card = f"---\n{metadata}\n---\n".encode()
    with pytest.raises(ValueError, match=f"(?s)Invalid metadata in README.md.*{problem}"):
        HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="alice/m")
    assert not hub.requests.matching("POST", "/commit/")
