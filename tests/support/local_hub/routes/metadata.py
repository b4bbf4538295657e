"""Metadata of a repository: its model card, configuration, and shapes of weights."""

import json
import math
import re
import struct

from ..model_cards import metadata_of
from ..refusals import Refusal
from ..routing import route
from ..wire import json_reply, page
from .history import pointer_size

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
EXPAND = {
    *("author", "baseModels", "cardData", "childrenModelCount", "citation", "config", "createdAt", "datasets"),
    *("description", "disabled", "downloads", "downloadsAllTime", "evalResults", "gated", "gguf", "inference"),
    *("inferenceProviderMapping", "lastModified", "library_name", "likes", "mainSize", "mask_token", "model-index"),
    *("models", "paperswithcode_id", "pipeline_tag", "private", "resourceGroup", "runtime", "safetensors", "sdk"),
    *("sha", "siblings", "spaces", "subdomain", "tags", "transformersInfo", "trendingScore", "usedStorage"),
    *("widgetData", "xetEnabled"),
}
SHORT = ("_id", "id", "modelId", "author", "private", "gated", "downloads", "likes", "tags", "createdAt", "sha")
IN_LISTS = (*SHORT, "lastModified", "pipeline_tag", "library_name")
MAX_HEADER = 25_000_000  # bytes of the header of a safetensors file


@route("GET", "/api/{api}", need="read")
def info(request, repository):
    return json_reply(_selected(request, described(request, repository, repository.commit_at())))


@route("GET", "/api/{api}/revision/{revision}", need="read")
def info_at(request, repository, revision):
    return json_reply(_selected(request, described(request, repository, repository.commit_at(revision))))


@route("GET", "/api/{kinds}")
def listed(request, kinds):
    if kinds not in KINDS:
        raise Refusal(404, f"No such address: {request.path}", "RouteNotFound")
    value = {name: values[0] for name, values in request.query.items()}
    found = [
        repository for (kind, _), repository in list(request.hub.repositories.items())
        if kind == KINDS[kinds] and _is_visible(request, repository)
        and value.get("author", repository.namespace).lower() == repository.namespace.lower()
        and value.get("search", "").lower() in repository.id.lower()
    ]  # fmt: skip
    found.sort(key=lambda repository: repository.created, reverse=value.get("direction", "-1") == "-1")
    entries = [described(request, repository, repository.commit_at()) for repository in found]
    entries = [entry for entry in entries if set(request.query.get("filter", [])) <= set(entry["tags"])]
    shown = [_selected(request, entry, None if request.flag("full") else IN_LISTS) for entry in entries]
    return page(request, shown[: int(value.get("limit", len(shown)))], 1000)


def described(request, repository, commit):
    """Every field that a client may request."""
    card = metadata_of(repository.small_file(commit, "README.md"))
    config = _json(repository.small_file(commit, "config.json"))
    about = {
        "_id": repository._id, "id": repository.id, "author": repository.namespace, "sha": commit.id,
        "lastModified": commit.date, "createdAt": repository.created, "private": repository.private,
        "gated": repository.gated, "disabled": False, "downloads": 0, "downloadsAllTime": 0, "likes": 0,
        "tags": _tags(card, config, commit), "siblings": _siblings(request, commit),
        "usedStorage": _storage(repository),
    }  # fmt: skip
    if card:
        about["cardData"] = card
    if repository.kind == "model":
        about |= {"modelId": repository.id, "spaces": []}
        about |= {name: card[name] for name in ("library_name", "pipeline_tag", "model-index") if name in card}
        if config:
            about["config"] = {
                name: config[name] for name in ("architectures", "model_type", "auto_map") if name in config
            }
        if weights := _weights(repository, commit):
            about["safetensors"] = weights
    if request.flag("securityStatus"):
        about["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    return about


def _selected(request, about, names=None):
    expand = request.query.get("expand", []) + request.query.get("expand[]", [])
    if unknown := set(expand) - EXPAND:
        raise Refusal(400, f"Invalid value of expand: {sorted(unknown)}")
    if expand:
        names = ["_id", "id", *expand]
    return about if names is None else {name: about[name] for name in names if name in about}


def _is_visible(request, repository):
    role = request.hub.accounts.role_in(request.caller.name, repository.namespace)
    return not repository.private or role is not None


def _siblings(request, commit):
    siblings = []
    for path, entry in sorted(commit.files.items()):
        sibling = {"rfilename": path}
        if request.flag("blobs"):
            sibling |= {"size": entry.size, "blobId": entry.oid}
            if entry.sha256:
                sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": pointer_size(entry)}
        siblings.append(sibling)
    return siblings


def _tags(card, config, commit):
    tags = [card.get("library_name"), config.get("model_type"), card.get("pipeline_tag"), *_list(card.get("tags"))]
    tags += [*_list(card.get("language")), "custom_code" if config.get("auto_map") else None]
    tags += ["safetensors" if any(path.endswith(".safetensors") for path in commit.files) else None]
    for name in ("dataset", "license", "base_model"):
        tags += [f"{name}:{value}" for value in _list(card.get(name) or card.get(f"{name}s"))]
    return list(dict.fromkeys(str(tag) for tag in tags if tag))


def _list(value):
    return value if isinstance(value, list) else [value] if value else []


def _storage(repository):
    commits = [commit for head in repository.references() for commit in repository.history(head)]
    return sum({entry.oid: entry.size for commit in commits for entry in commit.files.values()}.values())


def _weights(repository, commit):
    """Numbers of parameters by type, from the headers of the safetensors files; nothing if one has no header."""
    counts = {}
    names = [path for path in commit.files if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", path)]
    for path in names:
        header = _header(repository.objects.content(commit.files[path]))
        if header is None:
            return None
        for tensor in header.values():
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return {"parameters": counts, "total": sum(counts.values())} if counts else None


def _header(content):
    """The tensors of a safetensors file."""
    start = b"".join(content.pieces(0, min(8, content.size)))
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER
    if size >= min(MAX_HEADER, content.size):
        return None
    header = _json(b"".join(content.pieces(8, 8 + size)))
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    is_sound = all(isinstance(tensor, dict) and {"dtype", "shape"} <= set(tensor) for tensor in tensors.values())
    return tensors if is_sound else None


def _json(data):
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
