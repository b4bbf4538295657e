"""Creating, deleting, moving and setting up repositories."""

import re

from ..refusals import Refusal
from ..routing import find, require, route
from ..wire import json_reply

NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")  # no dot or hyphen at either end


@route("POST", "/api/repos/create")
def create(request):
    accounts, hub = request.hub.accounts, request.hub
    kind, namespace, name = _target(request)
    accounts.require_write(request.caller, namespace)
    repo_id = f"{namespace}/{name}"
    if not _is_name(repo_id):
        raise Refusal(400, f"Invalid name of a repository: {repo_id!r}")
    organization = accounts.organization(namespace)
    visibility = request.json.get("visibility") or ("private" if request.json.get("private") else None)
    is_private = visibility == "private" if visibility else bool(organization and organization.private_by_default)
    with hub.lock:
        if found := hub.find(repo_id, kind):
            message = f"You already created this {kind} repo: {found.id}"
            raise Refusal(409, message, body={"error": message, **_described(hub, found)})
        repository = hub.create(repo_id, kind, private=is_private, author=request.caller.name)
    return json_reply(_described(hub, repository))


@route("DELETE", "/api/repos/delete")
def delete(request):
    kind, namespace, name = _target(request)
    repository = find(request, kind, f"{namespace}/{name}")
    require(request, repository, "write")
    request.hub.repositories.pop((kind, repository.id.lower()), None)
    return json_reply({})


@route("POST", "/api/repos/move")
def move(request):
    hub, kind, target = request.hub, request.json.get("type") or "model", str(request.json.get("toRepo"))
    repository = find(request, kind, str(request.json.get("fromRepo")))
    require(request, repository, "write")
    hub.accounts.require_write(request.caller, target.partition("/")[0])
    if not _is_name(target):
        raise Refusal(400, f"Invalid name of a repository: {target!r}")
    with hub.lock:
        if hub.find(target, kind):
            raise Refusal(409, f"A {kind} repository called {target} already exists")
        hub.moved[kind, repository.id.lower()] = hub.repositories[kind, target.lower()] = repository
        del hub.repositories[kind, repository.id.lower()]
        repository.id = target
    return json_reply({})


@route("PUT", "/api/{api}/settings", need="write")
def settings(request, repository):
    changes = request.json
    if "visibility" in changes or "private" in changes:
        repository.private = changes.get("visibility") == "private" or bool(changes.get("private"))
    if "gated" in changes:
        if changes["gated"] not in (False, "auto", "manual"):
            raise Refusal(400, f"gated must be false, 'auto' or 'manual', not {changes['gated']!r}")
        repository.gated = changes["gated"]
    return json_reply({"private": repository.private, "gated": repository.gated})


@route("GET", "/api/{api}/auth-check", need="content")
def may_read(request, repository):
    return json_reply({})


@route("GET", "/api/{api}/auth-check/write", need="write")
def may_write(request, repository):
    return json_reply({})


def _target(request):
    kind = request.json.get("type") or "model"
    if kind not in ("model", "dataset", "space"):
        raise Refusal(400, f"type must be model, dataset or space, not {kind!r}")
    return kind, request.json.get("organization") or request.caller.name or "", str(request.json.get("name"))


def _is_name(repo_id):
    parts = repo_id.split("/")
    is_sound = len(parts) == 2 and all(NAME.fullmatch(part) for part in parts)
    return is_sound and len(repo_id) <= 96 and not re.search(r"--|\.\.|\.git$", repo_id)


def _described(hub, repository):
    return {"url": f"{hub.url}/{repository.web}", "name": repository.id, "id": repository._id}
