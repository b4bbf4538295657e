"""Discussions and pull requests."""

from ..discussions import Discussion
from ..refusals import Refusal
from ..routing import require, route
from ..wire import json_reply

PER_PAGE = 10


@route("GET", "/api/{api}/discussions", need="read")
def listed(request, repository):
    value = {name: values[0] for name, values in request.query.items()}
    found = [
        discussion for discussion in reversed(repository.discussions)
        if value.get("type", "all") in ("all", discussion.kind)
        and (value.get("status", "all") == "all" or (value["status"] == "open") == discussion.is_open)
        and value.get("author", discussion.author) == discussion.author
    ]  # fmt: skip
    start = int(value.get("p", 0)) * PER_PAGE
    shown = [discussion.summary(repository) for discussion in found[start : start + PER_PAGE]]
    return json_reply({"discussions": shown, "count": len(found), "start": start, "numClosedDiscussions": 0})


@route("POST", "/api/{api}/discussions", need="login")
def create(request, repository):
    title = str(request.json.get("title", "")).strip()
    if len(title) < 3:
        raise Refusal(400, "A title has at least 3 characters")
    is_pull = bool(request.json.get("pullRequest"))
    with repository.lock:
        discussion = Discussion.open(
            repository, title, request.json.get("description", ""), request.caller.name,
            base="main" if is_pull else None, status="draft" if is_pull else "open",
        )  # fmt: skip
        if is_pull:
            repository.pulls[discussion.number] = repository.branches["main"]
    return json_reply(discussion.details(repository))


@route("GET", "/api/{api}/discussions/{number}", need="read")
def one(request, repository, number):
    return json_reply(_find(repository, number).details(repository))


@route("POST", "/api/{api}/discussions/{number}/comment", need="login")
def comment(request, repository, number):
    event = _find(repository, number).comment(request.caller.name, str(request.json.get("comment")))
    return json_reply({"newMessage": event})


@route("POST", "/api/{api}/discussions/{number}/comment/{event}/{action}", need="login")
def change_comment(request, repository, number, event, action):
    if action not in ("edit", "hide"):
        raise Refusal(404, f"No such action: {action}", "RouteNotFound")
    discussion = _find(repository, number)
    _require_say(request, repository, discussion)
    updated = discussion.change_comment(event, request.json.get("content") if action == "edit" else None)
    return json_reply({"updatedComment": updated})


@route("POST", "/api/{api}/discussions/{number}/title", need="login")
def rename(request, repository, number):
    discussion = _find(repository, number)
    _require_say(request, repository, discussion)
    return json_reply({"newTitle": discussion.rename(request.caller.name, str(request.json.get("title")))})


@route("POST", "/api/{api}/discussions/{number}/status", need="login")
def set_status(request, repository, number):
    discussion, status = _find(repository, number), request.json.get("status")
    _require_say(request, repository, discussion)
    if status not in ("open", "closed") or discussion.status == "merged":
        raise Refusal(400, f"The status cannot change from {discussion.status} to {status}")
    return json_reply({"newStatus": discussion.set_status(request.caller.name, status)})


@route("POST", "/api/{api}/discussions/{number}/merge", need="write")
def merge(request, repository, number):
    with repository.lock:
        event = _find(repository, number).merge(repository, request.caller.name)
    return json_reply({"newStatus": event})


def _find(repository, number):
    if not number.isdigit():
        raise Refusal(400, f"Not the number of a discussion: {number!r}")
    return repository.discussion(number)


def _require_say(request, repository, discussion):
    if request.caller.name != discussion.author:
        require(request, repository, "write")
