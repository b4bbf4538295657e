"""Large files of a repository: listing, removal, and copies to another repository."""

import dataclasses
import hashlib

from ..repository import ancestors
from ..routing import find, require, route
from ..wire import json_reply, page


@route("GET", "/api/{api}/lfs-files", need="write")
def listed(request, repository):
    found = {}
    for reference, head in repository.references().items():
        name = reference.removeprefix("refs/heads/")
        for commit in reversed(list(ancestors(head))):
            for path, entry in commit.files.items():
                if entry.sha256:
                    found.setdefault(entry.sha256, _described(entry, path, commit, name))
    return page(request, list(found.values()), 1000)


@route("POST", "/api/{api}/lfs-files/batch", need="write")
def delete(request, repository):
    """Removes files from all commits, which changes the commits."""
    unwanted = set(request.json.get("deletions", {}).get("sha", []))
    with repository.lock:
        new = {}
        for head in repository.references().values():
            for commit in reversed(list(ancestors(head))):
                new.setdefault(commit.id, _rewritten(commit, new, unwanted))
        for names in (repository.branches, repository.tags, repository.pulls):
            names.update({name: new[commit.id] for name, commit in names.items()})
    return json_reply({})


@route("POST", "/api/{api}/lfs-files/duplicate", need="content")
def duplicate(request, repository):
    """Nothing to copy: all repositories share one storage."""
    target = request.json.get("target", {})
    require(request, find(request, target.get("type", "model"), str(target.get("name"))), "write")
    missing = [file for file in request.json.get("files", []) if not request.hub.objects.has(file.get("sha256", ""))]
    return json_reply({"failed": [{"sha256": file.get("sha256"), "error": "not found"} for file in missing]})


def _described(entry, path, commit, reference):
    return {
        "fileOid": entry.sha256, "filename": path, "oid": entry.sha256, "pushedAt": commit.date, "ref": reference,
        "size": entry.size,
    }  # fmt: skip


def _rewritten(commit, new, unwanted):
    parent = commit.parent and new[commit.parent.id]
    files = {path: entry for path, entry in commit.files.items() if entry.sha256 not in unwanted}
    if parent is commit.parent and files == commit.files:
        return commit
    name = hashlib.sha1(f"{commit.id} {sorted(unwanted)}".encode(), usedforsecurity=False).hexdigest()
    return dataclasses.replace(commit, id=name, parent=parent, files=files)
