"""Uploads of large files by Git LFS, in one piece or in parts."""

import hashlib
import math
import re
import secrets
from dataclasses import dataclass, field

from ..refusals import Refusal
from ..routing import require, route
from ..wire import Reply, json_reply


@dataclass
class Upload:
    sha256: str
    size: int
    part_size: int
    parts: dict = field(default_factory=dict)  # number -> bytes

    @property
    def count(self):
        return math.ceil(self.size / self.part_size)


@route("POST", "/{web}.git/info/lfs/objects/batch", need="read")
def batch(request, repository):
    # a pull request names no branch; it requires a token, but no permission for this repository
    require(request, repository, "write" if request.json.get("ref") else "login")
    if request.json.get("operation") != "upload":
        raise Refusal(501, "This local hub knows LFS for uploads only")
    can_part = "multipart" in request.json.get("transfers", ["basic"])
    objects = [_instructions(request, repository, entry, can_part) for entry in request.json.get("objects", [])]
    return _lfs_reply({"transfer": "basic", "objects": objects})


def _instructions(request, repository, entry, can_part):
    hub, sha256, size = request.hub, str(entry.get("oid")), entry.get("size")
    answer = {"oid": sha256, "size": size}
    if not re.fullmatch("[0-9a-f]{64}", sha256) or not isinstance(size, int) or size < 0:
        return answer | {"error": {"code": 422, "message": "oid must be a SHA-256 and size a number of bytes"}}
    if hub.objects.has(sha256):
        return answer  # nothing to do
    key = secrets.token_hex(16)
    upload = hub.uploads[key] = Upload(sha256, size, hub.part_size)
    address = f"{hub.storage_url}/upload/{key}"
    action = {"href": address, "header": {}}
    if can_part and size > hub.part_size:
        parts = {f"{number:05}": f"{address}/{number}" for number in range(1, upload.count + 1)}
        action = {"href": f"{address}/complete", "header": {"chunk_size": str(upload.part_size), **parts}}
    verify = {"href": f"{hub.url}/{repository.web}.git/info/lfs/objects/verify", "header": {}}
    return answer | {"authenticated": True, "actions": {"upload": action, "verify": verify}}


@route("POST", "/{web}.git/info/lfs/objects/verify", need="login")
def verify(request, repository):
    sha256 = str(request.json.get("oid"))
    if not request.hub.objects.has(sha256):
        raise Refusal(404, f"Object {sha256} was not uploaded", "EntryNotFound")
    if (size := request.hub.objects.lfs_size(sha256)) != request.json.get("size"):
        raise Refusal(400, f"Object {sha256} has {size} bytes")
    return _lfs_reply({})


@route("PUT", "/upload/{key}", port="storage")
def put(request, key):
    upload = _upload(request, key)
    request.hub.objects.put_lfs(upload.sha256, upload.size, request.body.pieces())
    request.hub.uploads.pop(key, None)
    return Reply(200, headers={"ETag": f'"{upload.sha256}"'})


@route("PUT", "/upload/{key}/{number}", port="storage")
def put_part(request, key, number):
    upload = _upload(request, key)
    if not number.isdigit() or not 1 <= int(number) <= upload.count:
        raise Refusal(400, f"There is no part {number}, but {upload.count} parts")
    data = upload.parts[int(number)] = request.body.read()
    return Reply(200, headers={"ETag": f'"{_etag(data)}"'})


@route("POST", "/upload/{key}/complete", port="storage")
def complete(request, key):
    upload = _upload(request, key)
    announced = {part["partNumber"]: part["etag"].strip('"') for part in request.json.get("parts", [])}
    if request.json.get("oid") != upload.sha256 or announced != {n: _etag(data) for n, data in upload.parts.items()}:
        raise Refusal(400, "The list of parts does not agree with what was uploaded")
    request.hub.objects.put_lfs(upload.sha256, upload.size, [data for _, data in sorted(upload.parts.items())])
    request.hub.uploads.pop(key, None)
    return json_reply({})


def _upload(request, key):
    if key not in request.hub.uploads:
        raise Refusal(403, "This address was not given out by the hub, or has been used")
    return request.hub.uploads[key]


def _etag(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _lfs_reply(value):
    return json_reply(value, headers={"Content-Type": "application/vnd.git-lfs+json"})
