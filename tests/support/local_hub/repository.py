"""A repository: immutable commits, references to them, and discussions."""

import datetime
import functools
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from .content import read
from .objects import blob_id, pointer
from .paths import GIT_ATTRIBUTES, is_lfs
from .refusals import Refusal, no_revision

SPACE_CARD = b"---\ntitle: Space\n---\n"
_numbers = itertools.count()


@dataclass(frozen=True)
class Entry:
    """A file of a commit. Files outside of Git have a `sha256`, and the `oid` of their pointer."""

    oid: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Commit:
    id: str
    parent: "Commit | None" = field(repr=False)
    files: Mapping[str, Entry] = field(repr=False)
    title: str
    message: str
    author: str
    date: str

    @property
    def changed(self):
        """Paths that differ from the parent."""
        before = self.parent.files if self.parent else {}
        return {path for path in {*self.files, *before} if self.files.get(path) != before.get(path)}


class Repository:
    """Inspection for tests: `files()`, `history()`, `branches`, `tags`, `discussions`."""

    def __init__(self, kind, name, objects, author, private=False, gated=False):
        self.kind = kind  # model, dataset or space
        self.id = name
        self.private = private
        self.gated = gated  # False, "auto" or "manual"
        self.granted = set()  # other users with access to a gated repository
        self.created = now()
        self.lock = threading.RLock()
        self.objects = objects
        self.tags = {}  # name -> commit
        self.pulls = {}  # number -> commit
        self.discussions = []
        files = {".gitattributes": GIT_ATTRIBUTES} | ({"README.md": SPACE_CARD} if kind == "space" else {})
        entries = {path: Entry(objects.put_blob(data), len(data)) for path, data in files.items()}
        self.branches = {"main": new_commit(None, entries, "initial commit", author)}

    @property
    def namespace(self):
        return self.id.partition("/")[0]

    @property
    def web(self):
        """The path of its page."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    @functools.cached_property
    def _id(self):
        return hashlib.sha1(f"{self.kind}/{self.id}/{next(_numbers)}".encode(), usedforsecurity=False).hexdigest()[:24]

    def references(self):
        """All references and their commits."""
        return {
            **{f"refs/heads/{name}": commit for name, commit in self.branches.items()},
            **{f"refs/tags/{name}": commit for name, commit in self.tags.items()},
            **{f"refs/pr/{number}": commit for number, commit in self.pulls.items()},
        }

    def commit_at(self, revision="main"):
        """The commit of a branch, tag, pull request or id; an id may be shortened if that is unique."""
        references = self.references()
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in references:
                return references[name]
        if re.fullmatch("[0-9a-fA-F]{5,40}", revision):
            reachable = {commit.id: commit for head in references.values() for commit in ancestors(head)}
            found = [commit for name, commit in reachable.items() if name.startswith(revision.lower())]
            if len(found) == 1:
                return found[0]
        raise no_revision(revision)

    def history(self, revision="main"):
        """The commits, newest first."""
        return list(ancestors(self.commit_at(revision)))

    def files(self, revision="main"):
        """Path -> bytes."""
        return {path: self.read(path, revision) for path in self.commit_at(revision).files}

    def read(self, path, revision="main"):
        return read(self.objects.content(self.commit_at(revision).files[path]))

    def small_file(self, commit, path):
        """The bytes of a file in Git; b"" if there is none."""
        entry = commit.files.get(path)
        return self.objects.blobs[entry.oid] if entry and entry.sha256 is None else b""

    def entry_of(self, path, data, commit):
        """Stores bytes in Git or as a large file, as the repository's rules say for this path."""
        if not is_lfs(path, len(data), data[:512], self.small_file(commit, ".gitattributes")):
            return Entry(self.objects.put_blob(data), len(data))
        sha256 = hashlib.sha256(data).hexdigest()
        self.objects.put_lfs(sha256, len(data), [data])
        return lfs_entry(sha256, len(data))

    def branch_of(self, revision):
        """The target of commits: a branch, or the number of a pull request."""
        if match := re.fullmatch(r"refs/pr/(\d+)", revision):
            if int(match[1]) not in self.pulls:
                raise no_revision(revision)
            return int(match[1])
        name = revision.removeprefix("refs/heads/")
        if name not in self.branches:
            raise no_revision(revision)
        return name

    def head(self, branch):
        return self.pulls[branch] if isinstance(branch, int) else self.branches[branch]

    def advance(self, branch, commit):
        (self.pulls if isinstance(branch, int) else self.branches)[branch] = commit

    def discussion(self, number):
        if not 0 < int(number) <= len(self.discussions):
            raise Refusal(404, f"Discussion {number} not found")
        return self.discussions[int(number) - 1]


def new_commit(parent, files, title, author, message=""):
    parts = [parent and parent.id, sorted(files.items()), title, author, message, next(_numbers)]
    name = hashlib.sha1(json.dumps(parts, default=str).encode(), usedforsecurity=False).hexdigest()
    return Commit(name, parent, dict(files), title, message, author, now())


def lfs_entry(sha256, size):
    return Entry(blob_id(pointer(sha256, size)), size, sha256)


def ancestors(commit):
    while commit:
        yield commit
        commit = commit.parent


def last_commits(commit):
    """Path -> the last commit that changed it; a folder changes with its files."""
    last = {}
    for ancestor in ancestors(commit):
        for path in ancestor.changed:
            parts = path.split("/")
            for end in range(1, len(parts) + 1):
                last.setdefault("/".join(parts[:end]), ancestor)
    return last


def now():
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
