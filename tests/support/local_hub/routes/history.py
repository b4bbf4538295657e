"""Commits, and the files of one."""

import hashlib
from urllib.parse import parse_qs

from ..objects import pointer
from ..refusals import no_entry
from ..repository import last_commits
from ..routing import route
from ..wire import json_reply, page


@route("GET", "/api/{api}/commits/{revision}", need="read")
def commits(request, repository, revision):
    with_format = "formatted" in request.query.get("expand[]", []) + request.query.get("expand", [])
    found = [_described(commit, with_format) for commit in repository.history(revision)]
    return page(request, found, 50)


@route("GET", "/api/{api}/tree/{revision}", need="read")
@route("GET", "/api/{api}/tree/{revision}/{path*}", need="read")
def tree(request, repository, revision, path=""):
    commit, folder = repository.commit_at(revision), path.strip("/")
    prefix = f"{folder}/" if folder else ""
    within = {name: entry for name, entry in commit.files.items() if name.startswith(prefix)}
    if folder and not within:
        raise no_entry(folder, commit.id)
    if not request.flag("recursive"):
        within = {prefix + name[len(prefix) :].partition("/")[0]: None for name in within}
        paths = list(within)
    else:
        paths = list(dict.fromkeys(part for name in within for part in _parents(name, prefix)))
    expand = request.flag("expand")
    return page(request, _entries(request, commit, sorted(paths), expand), 50 if expand else 1000)


@route("POST", "/api/{api}/paths-info/{revision}", need="read")
def paths_info(request, repository, revision):
    commit = repository.commit_at(revision)
    if "json" in request.headers.get("content-type", ""):
        form = request.json
        paths, expand = form.get("paths", []), bool(form.get("expand"))
    else:
        form = parse_qs(request.body.read().decode())
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
    known = [path for path in paths if path in commit.files or _is_folder(commit, path)]
    return json_reply(_entries(request, commit, known, expand))


def _parents(path, prefix):
    """The path and its parent folders, down to `prefix`."""
    parts = path[len(prefix) :].split("/")
    return [prefix + "/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _is_folder(commit, path):
    return any(name.startswith(f"{path}/") for name in commit.files)


def _entries(request, commit, paths, expand):
    last = last_commits(commit) if expand else {}
    return [
        _entry(request, commit, path)
        | ({"lastCommit": {name: getattr(last[path], name) for name in ("id", "title", "date")}} if expand else {})
        for path in paths
    ]


def _entry(request, commit, path):
    entry = commit.files.get(path)
    if entry is None:
        inside = sorted((name, file.oid) for name, file in commit.files.items() if name.startswith(f"{path}/"))
        oid = hashlib.sha1(repr(inside).encode(), usedforsecurity=False).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": path}
    described = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.sha256:
        described["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": pointer_size(entry)}
        if xet_hash := request.hub.xet_hash(entry):
            described["xetHash"] = xet_hash
    return described


def pointer_size(entry):
    return len(pointer(entry.sha256, entry.size))


def _described(commit, with_format):
    described = {
        "id": commit.id, "title": commit.title, "message": commit.message, "date": commit.date,
        "authors": [{"user": commit.author, "avatar": ""}],
    }  # fmt: skip
    if with_format:
        described["formatted"] = {"title": commit.title, "message": commit.message}
    return described
