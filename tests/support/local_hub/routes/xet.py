"""The HTTP side of the Xet protocol: tokens from the hub, chunks to and from the storage. `Cas` does the rest."""

import json
import re
import secrets
import time

from ..content import InMemory
from ..refusals import Refusal
from ..routing import route
from ..wire import Reply, json_reply, ranged

LIFETIME = 3600  # seconds of a token


@route("GET", "/api/{api}/xet-read-token/{revision}", need="content")
def read_token(request, repository, revision):
    repository.commit_at(revision)
    return _token(request, "read")


@route("GET", "/api/{api}/xet-write-token/{revision}", need="change")
def write_token(request, repository, revision):
    return _token(request, "write")


@route("GET", "/v1/chunks/{prefix}/{chunk}", port="storage")
def find_chunk(request, prefix, chunk):
    _require_token(request, "write")
    raise Refusal(404, "No other file has this chunk")


@route("POST", "/v1/xorb-grants/{prefix}/{xorb}", port="storage")
def grant(request, prefix, xorb):
    _require_token(request, "write")
    raise Refusal(404, "Send it here")


@route("POST", "/v1/xorbs/{prefix}/{xorb}", port="storage")
def put_xorb(request, prefix, xorb):
    _require_token(request, "write")
    try:
        is_new = request.hub.objects.cas.put_xorb(xorb, request.body.read())
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    return json_reply({"was_inserted": bool(is_new)})


@route("POST", "/v1/shards", port="storage")
def put_shard(request):
    _require_token(request, "write")
    try:
        request.hub.objects.cas.put_shard(request.body.read())
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    return json_reply({"result": 1})


@route("POST", "/v2/shards", port="storage")
def put_shard_with_events(request):
    """The response is a list of events; the last one is the result."""
    try:
        put_shard(request)
        event = {"type": "result", "result": 1}
    except Refusal as refusal:
        if refusal.status != 400:
            raise
        event = {"type": "error", "message": refusal.message}
    body = InMemory(json.dumps(event).encode() + b"\n")
    return Reply(200, body, {"Content-Type": "application/x-ndjson"})


@route("GET", "/v1/reconstructions/{file}", port="storage")
def reconstruct_v1(request, file):
    return _reconstruct(request, file, 1)


@route("GET", "/v2/reconstructions/{file}", port="storage")
def reconstruct_v2(request, file):
    return _reconstruct(request, file, 2)


@route("GET", "/xorb/{xorb}", port="storage")
def get_xorb(request, xorb):
    """Requires the key in the address instead of a token, as with a content delivery network."""
    if request.query.get("key") != [request.hub.download_key(xorb)]:
        raise Refusal(403, "This address was not given out by the hub")
    content = InMemory(request.hub.objects.cas.read_xorb(xorb))
    ranges = re.findall(r"(\d+)-(\d+)", request.headers.get("range", ""))
    if len(ranges) < 2:
        return ranged(request, content, {"Content-Type": "application/octet-stream"})
    return _several_ranges(content, [(int(first), int(last)) for first, last in ranges])


def _several_ranges(content, ranges):
    boundary, body = secrets.token_hex(16), bytearray()
    for first, last in ranges:
        if not first <= last < content.size:
            raise Refusal(416, f"Range not satisfiable: {first}-{last} of {content.size}")
        head = f"Content-Type: application/octet-stream\r\nContent-Range: bytes {first}-{last}/{content.size}"
        body += f"--{boundary}\r\n{head}\r\n\r\n".encode() + content.data[first : last + 1] + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return Reply(206, InMemory(bytes(body)), {"Content-Type": f"multipart/byteranges; boundary={boundary}"})


def _reconstruct(request, file, version):
    _require_token(request, "read")
    hub = request.hub
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    part = (int(match[1]), int(match[2]) if match[2] else None) if match else None

    def address(xorb):
        return f"{hub.storage_url}/xorb/{xorb}?key={hub.download_key(xorb)}"

    try:
        return json_reply(hub.objects.cas.reconstruction(file, part, version=version, url=address))
    except KeyError:
        raise Refusal(404, f"No file {file}", "EntryNotFound") from None
    except IndexError as error:
        raise Refusal(416, str(error)) from None


def _token(request, right):
    token, expires = f"xet-{right}-{secrets.token_hex(16)}", int(time.time()) + LIFETIME
    request.hub.xet_tokens[token] = right
    storage = request.hub.storage_url
    headers = {"X-Xet-Cas-Url": storage, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return json_reply({"casUrl": storage, "accessToken": token, "exp": expires}, headers=headers)


def _require_token(request, right):
    """A write token also permits reading."""
    if request.hub.xet_tokens.get(request.bearer) not in (right, "write"):
        raise Refusal(401, f"A Xet token to {right} is needed")
