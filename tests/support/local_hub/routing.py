"""Routes: the function for each path, and the permission it needs."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from .refusals import Refusal, no_repository

API = r"(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
WEB = r"(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+?)"
ROUTES = []


@dataclass(frozen=True)
class Route:
    port: str
    method: str
    pattern: re.Pattern
    need: str | None
    function: Callable


def route(method, path, need=None, port="hub"):
    """Registers a function for a path.

    `{api}` and `{web}` stand for a repository in the two ways that addresses name it, which is looked up, tested for
    what the caller needs ("read", "content", "login", "write" or "change") and passed on; `{name}` for one segment of
    the path and `{name*}` for the rest of it. Addresses are matched as they were sent, so that a slash that is part of
    a name, quoted as %2F, does not separate.
    """
    pattern = path.replace("{api}", API).replace("{web}", WEB)
    pattern = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.*)", pattern)
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)

    def register(function):
        ROUTES.append(Route(port, method, re.compile(pattern), need, function))
        return function

    return register


def dispatch(request):
    """The response to a request; HEAD is treated as GET without the body."""
    method = "GET" if request.method == "HEAD" else request.method
    for entry in ROUTES:
        if (entry.port, entry.method) == (request.port, method) and (
            match := entry.pattern.fullmatch(request.raw_path)
        ):
            names = {name: value and unquote(value) for name, value in match.groupdict().items()}
            if entry.need is None:
                return entry.function(request, **names)
            kind = (names.pop("kind", None) or "models").removesuffix("s")
            repository = find(request, kind, names.pop("id"))
            require(request, repository, entry.need, names.get("revision", ""))
            return entry.function(request, repository, **names)
    raise _nothing_there(request)


def find(request, kind, name):
    """A repository that is visible to the caller; a request for a former name is redirected."""
    repository = request.hub.find(name, kind)
    is_former = repository is None and f"/{name}" in request.raw_path
    if is_former:
        repository = request.hub.moved.get((kind, name.lower()))
    if repository is None or (repository.private and not _role(request, repository)):
        raise no_repository(request.caller)
    if is_former:
        query = f"?{request.raw_query}" if request.raw_query else ""
        location = request.raw_path.replace(f"/{name}", f"/{repository.id}", 1) + query
        raise Refusal(307, f"Moved to {repository.id}", headers={"Location": location})
    return repository


def require(request, repository, need, revision=""):
    """Raises unless the caller has a permission.

    "change" is "write", or for what becomes a pull request "login": any caller with a name.
    """
    if need == "change":
        is_proposal = "create_pr" in request.query or revision.startswith("refs/pr/")
        need = "login" if is_proposal else "write"
    if need == "content" and repository.gated and not _may_read_gated(request, repository):
        status = 401 if request.caller.name is None else 403
        message = f"Access to {repository.kind} {repository.id} is restricted and you are not in the authorized list."
        raise Refusal(status, message, "GatedRepo")
    if need == "write":
        request.hub.accounts.require_write(request.caller, repository.namespace)
    if need == "login" and request.caller.role != "write":
        request.hub.accounts.require_write(request.caller, request.caller.name or repository.namespace)


def _may_read_gated(request, repository):
    return _role(request, repository) or request.caller.name in repository.granted


def _role(request, repository):
    return request.hub.accounts.role_in(request.caller.name, repository.namespace)


def _nothing_there(request):
    """A missing repository, or a 501 if the repository exists: gaps of this server must not look like missing data."""
    match = re.match(f"/api/{API}(/|$)", request.raw_path) or re.match(f"/{WEB}/(resolve|raw)/", request.raw_path)
    if match and request.hub.find(match["id"], (match["kind"] or "models").removesuffix("s")):
        return Refusal(501, f"This local hub does not implement {request.method} {request.path}")
    if re.match("/api/(models|datasets|spaces)/|.*/resolve/", request.raw_path):
        return no_repository(request.caller)
    return Refusal(404, f"No such address: {request.method} {request.path}", "RouteNotFound")
