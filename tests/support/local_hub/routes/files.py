"""Downloads: small files from the hub, large ones by a redirect to the storage."""

from urllib.parse import quote

from ..content import InMemory
from ..objects import pointer
from ..refusals import Refusal, no_entry
from ..routing import route
from ..wire import Reply, ranged


@route("GET", "/{web}/resolve/{revision}/{path*}", need="content")
@route("GET", "/api/resolve-cache/{api}/{revision}/{path*}", need="content")
def resolve(request, repository, revision, path):
    commit, entry = _find(repository, revision, path)
    headers = _headers(commit, path)
    if entry.sha256 is None:
        content = repository.objects.content(entry)
        return ranged(request, content, headers | {"ETag": f'"{entry.oid}"', "Content-Type": "text/plain"})
    headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"', "ETag": f'"{entry.sha256}"'}
    if xet_hash := request.hub.xet_hash(entry):
        kind = f"{repository.kind}s"
        token = f"{request.hub.url}/api/{kind}/{repository.id}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    name = quote(path.rpartition("/")[2])
    key = request.hub.download_key(entry.sha256)
    location = f"{request.hub.storage_url}/lfs/{entry.sha256}/{name}?key={key}"
    return Reply(302, InMemory(b""), headers | {"Location": location})


@route("GET", "/{web}/raw/{revision}/{path*}", need="content")
def raw(request, repository, revision, path):
    """The content in Git, which is a pointer for a large file."""
    commit, entry = _find(repository, revision, path)
    content = repository.objects.content(entry)
    if entry.sha256:
        content = InMemory(pointer(entry.sha256, entry.size))
    return ranged(request, content, _headers(commit, path) | {"ETag": f'"{entry.oid}"', "Content-Type": "text/plain"})


@route("GET", "/lfs/{sha256}/{name}", port="storage")
def stored(request, sha256, name):
    if request.query.get("key") != [request.hub.download_key(sha256)]:
        raise Refusal(403, "This address was not given out by the hub")
    content = request.hub.objects.lfs_content(sha256)
    return ranged(request, content, {"ETag": f'"{sha256}"', "Content-Type": "application/octet-stream"})


def _find(repository, revision, path):
    commit = repository.commit_at(revision)
    if path not in commit.files:
        raise no_entry(path, commit.id)
    return commit, commit.files[path]


def _headers(commit, path):
    name = quote(path.rpartition("/")[2])
    return {"X-Repo-Commit": commit.id, "Content-Disposition": f"inline; filename*=UTF-8''{name}; filename=\"{name}\";"}
