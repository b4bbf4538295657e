"""Commits: how to upload each file, and the commit itself, which succeeds as a whole or not at all."""

import base64
import binascii
import json

from ..discussions import Discussion
from ..model_cards import check_card
from ..paths import LARGE, check_no_file_is_a_folder, check_path, is_ignored, is_lfs
from ..refusals import Refusal, no_entry, no_revision, stale_parent
from ..repository import Entry, lfs_entry, new_commit
from ..routing import route
from ..wire import json_reply


@route("POST", "/api/{api}/preupload/{revision}", need="change")
def preupload(request, repository, revision):
    commit = repository.commit_at(revision)
    attributes = repository.small_file(commit, ".gitattributes")
    ignored = request.json.get("gitIgnore")
    ignored = repository.small_file(commit, ".gitignore") if ignored is None else ignored.encode()
    files = [_advice(file, commit, attributes, ignored) for file in request.json.get("files", [])]
    return json_reply({"files": files, "commitOid": commit.id})


def _advice(file, commit, attributes, ignored):
    path, sample = str(file.get("path")), base64.b64decode(file.get("sample", ""))
    mode = "lfs" if is_lfs(path, file.get("size", 0), sample, attributes) else "regular"
    advice = {"path": path, "uploadMode": mode, "shouldIgnore": is_ignored(path, ignored)}
    if entry := commit.files.get(path):
        advice["oid"] = entry.sha256 or entry.oid
    return advice


@route("POST", "/api/{api}/commit/{revision}", need="change")
def commit(request, repository, revision):
    header, operations = _parsed(request.body.read())
    is_proposal = request.flag("create_pr")
    with repository.lock:
        branch = repository.branch_of(revision)
        parent = repository.head(branch)
        if expected := header.get("parentCommit"):
            if is_proposal:
                parent = repository.commit_at(expected)
            elif not parent.id.startswith(expected):
                raise stale_parent()
        _check_author(request, repository, branch)
        files = _applied(repository, parent, operations)
        made = new_commit(parent, files, str(header["summary"]), request.caller.name, header.get("description", ""))
        number = _propose(request, repository, branch, made) if is_proposal else repository.advance(branch, made)
    base = f"{request.hub.url}/{repository.web}"
    answer = {"success": True, "commitOid": made.id, "commitUrl": f"{base}/commit/{made.id}", "hookOutput": ""}
    return json_reply(answer | ({"pullRequestUrl": f"{base}/discussions/{number}"} if is_proposal else {}))


def _parsed(body):
    """The header, and the operations as (key, value)."""
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        pairs = [(line["key"], line["value"]) for line in lines]
        is_sound = pairs and pairs[0][0] == "header" and isinstance(pairs[0][1].get("summary"), str)
    except (ValueError, KeyError, TypeError, AttributeError):
        is_sound = False
    if not is_sound:
        raise Refusal(400, "A commit is lines of JSON with a key and a value, of which the first is the header")
    if len(pairs) == 1:
        raise Refusal(400, "Add a line with the key `lfsFile`, `file`, `deletedFile` or `deletedFolder`")
    if not pairs[0][1]["summary"].strip():
        raise Refusal(400, "A commit needs a message")
    return pairs[0][1], pairs[1:]


def _check_author(request, repository, branch):
    """Its author, and users with write access to the repository, may commit to a pull request."""
    if isinstance(branch, int) and repository.discussion(branch).author != request.caller.name:
        request.hub.accounts.require_write(request.caller, repository.namespace)


def _applied(repository, parent, operations):
    """The files after the operations; the parent commit does not change."""
    files = dict(parent.files)
    for key, value in operations:
        path = value.get("path")
        check_path(path.removesuffix("/") if key.startswith("deleted") and isinstance(path, str) else path)
        if key == "file":
            files[path] = _small_file(repository, path, value)
        elif key == "lfsFile":
            files[path] = _large_file(repository, value)
        elif key in ("deletedFile", "deletedFolder"):
            _delete(files, path.rstrip("/"), is_folder=key == "deletedFolder")
        else:
            raise Refusal(400, f"Unknown operation {key!r}")
    check_no_file_is_a_folder(set(files))
    return files


def _small_file(repository, path, value):
    try:
        data = base64.b64decode(value["content"], validate=True)
    except (KeyError, binascii.Error) as error:
        raise Refusal(400, f"The content of {path} is not base64: {error}") from None
    if len(data) > LARGE:
        raise Refusal(400, f"{path} has {len(data)} bytes: files larger than {LARGE} must be sent to the storage first")
    if path == "README.md":
        check_card(data, repository.kind)
    return Entry(repository.objects.put_blob(data), len(data))


def _large_file(repository, value):
    sha256, objects = str(value.get("oid")), repository.objects
    if value.get("algo") != "sha256" or not objects.has(sha256):
        raise Refusal(400, f"{value['path']} names object {sha256}, which was not uploaded")
    size = objects.lfs_size(sha256)
    if value.get("size", size) != size:
        raise Refusal(400, f"{value['path']} is said to have {value['size']} bytes, but has {size}")
    return lfs_entry(sha256, size)


def _delete(files, path, is_folder):
    inside = [name for name in files if name.startswith(f"{path}/")]
    if path in files and not is_folder:
        inside = [path]
    if not inside:
        refusal = no_entry(path)
        refusal.body = {"error": f"A file with this name doesn't exist: {path}"}
        raise refusal
    for name in inside:
        del files[name]


def _propose(request, repository, branch, made):
    if isinstance(branch, int):
        raise no_revision(f"refs/pr/{branch}")  # a pull request is made against a branch
    discussion = Discussion.open(repository, made.title, made.message, request.caller.name, base=branch, status="open")
    repository.pulls[discussion.number] = made
    return discussion.number
