"""Plain HTTP requests, without huggingface_hub."""

import json

import httpx2


def call(hub, method, path, token=None, headers=None, **options):
    """The response to one request. A path is an address of the hub."""
    headers = (headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})
    address = path if path.startswith("http") else hub.url + path
    return httpx2.request(method, address, headers=headers, verify=False, **options)  # no certificates to load


def commit(hub, *operations, token=None, revision="main"):
    """The response to a commit to alice/m."""
    lines = [{"key": "header", "value": {"summary": "A commit"}}, *operations]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return call(hub, "POST", f"/api/models/alice/m/commit/{revision}", token or hub.token(), content=body)


def put(path, content="aGk="):
    """The operation that adds a file."""
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}
