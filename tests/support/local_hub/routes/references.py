"""Branches and tags."""

import re

from ..refusals import Refusal, no_revision
from ..repository import new_commit
from ..routing import route
from ..wire import json_reply

REFERENCE = re.compile(r"(?!/|.*(?:\.\.|//|@\{|/\.|\.lock$|[/.]$))[^\x00-\x20\x7f~^:?*\[\\]+")  # of Git


@route("GET", "/api/{api}/refs", need="read")
def references(request, repository):
    found = {"branches": [], "tags": [], "converts": []}
    if request.flag("include_prs"):
        found["pullRequests"] = []
    for reference, commit in repository.references().items():
        _, kind, name = reference.split("/", 2)
        kind = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}[kind]
        if kind in found:
            found[kind].append({"name": name, "ref": reference, "targetCommit": commit.id})
    return json_reply(found)


@route("POST", "/api/{api}/branch/{name}", need="write")
def create_branch(request, repository, name):
    _check_name(name)
    with repository.lock:
        if name in repository.branches:
            raise Refusal(409, f"Reference refs/heads/{name} already exists")
        repository.branches[name] = repository.commit_at(request.json.get("startingPoint") or "main")
    return json_reply({}, 201)


@route("DELETE", "/api/{api}/branch/{name}", need="write")
def delete_branch(request, repository, name):
    if name == "main":
        raise Refusal(403, "Cannot delete refs/heads/main")
    with repository.lock:
        if repository.branches.pop(name, None) is None:
            raise no_revision(name)
    return json_reply({})


@route("POST", "/api/{api}/tag/{revision}", need="write")
def create_tag(request, repository, revision):
    name = str(request.json.get("tag"))
    with repository.lock:
        commit = repository.commit_at(revision)
        _check_name(name)
        if name in repository.tags:
            raise Refusal(409, f"Reference refs/tags/{name} already exists")
        repository.tags[name] = commit
    return json_reply({}, 201)


@route("DELETE", "/api/{api}/tag/{revision}", need="write")
def delete_tag(request, repository, revision):
    with repository.lock:
        if repository.tags.pop(revision, None) is None:
            raise no_revision(revision)
    return json_reply({})


@route("POST", "/api/{api}/super-squash/{revision}", need="write")
def squash(request, repository, revision):
    with repository.lock:
        branch = repository.branch_of(revision)
        title = request.json.get("message") or f"Super-squash branch '{revision}'"
        files = repository.head(branch).files
        repository.advance(branch, new_commit(None, files, title, request.caller.name))
    return json_reply({"commitId": repository.head(branch).id})


def _check_name(name):
    if not REFERENCE.fullmatch(name) or name.startswith("refs/"):
        raise Refusal(400, f"Invalid reference for a branch or a tag: {name!r}")
