"""A discussion of a repository, or a pull request if it has a branch to merge into."""

import itertools
from dataclasses import dataclass, field

from .refusals import Refusal, stale_parent
from .repository import ancestors, new_commit, now

_numbers = itertools.count(1)


@dataclass
class Discussion:
    number: int
    title: str
    author: str
    status: str  # draft, open, closed or merged
    base: str | None  # the branch that a pull request changes
    created: str = field(default_factory=now)
    events: list = field(default_factory=list)
    merge_commit: str | None = None

    @classmethod
    def open(cls, repository, title, description, author, base, status):
        discussion = cls(len(repository.discussions) + 1, title, author, status, base)
        repository.discussions.append(discussion)
        discussion.comment(author, description)
        return discussion

    @property
    def kind(self):
        return "discussion" if self.base is None else "pull_request"

    @property
    def is_open(self):
        return self.status in ("open", "draft")

    def summary(self, repository):
        return {
            "num": self.number, "title": self.title, "status": self.status, "createdAt": self.created,
            "author": {"name": self.author}, "isPullRequest": self.base is not None, "numComments": len(self.events),
            "repo": {"name": repository.id, "type": repository.kind}, "pinned": False,
        }  # fmt: skip

    def details(self, repository):
        details = self.summary(repository) | {"events": self.events, "filesWithConflicts": [], "diff": ""}
        if self.base is not None:
            details["changes"] = {"base": f"refs/heads/{self.base}"}
            details["filesWithConflicts"] = sorted(self.conflicts(repository))
        if self.merge_commit:
            details["changes"]["mergeCommitId"] = self.merge_commit
        return details

    def comment(self, author, text):
        latest = {"raw": text, "html": text, "updatedAt": now(), "author": {"name": author}}
        return self._event("comment", author, {"latest": latest, "edited": False, "hidden": False})

    def change_comment(self, event_id, text):
        """Edits a comment, or hides it without a text."""
        event = next((event for event in self.events if event["id"] == event_id and event["type"] == "comment"), None)
        if event is None:
            raise Refusal(404, f"Comment {event_id} not found")
        data = event["data"]
        data["latest"] |= {"raw": text or "", "html": text or "", "updatedAt": now()}
        data["edited" if text is not None else "hidden"] = True
        return event

    def rename(self, author, title):
        old, self.title = self.title, title.strip()
        return self._event("title-change", author, {"from": old, "to": self.title})

    def set_status(self, author, status):
        self.status = status
        return self._event("status-change", author, {"status": status})

    def conflicts(self, repository):
        """Files that the pull request and the branch have changed in different ways."""
        ours, theirs = repository.branches[self.base], repository.pulls[self.number]
        start = common_ancestor(ours, theirs)
        before = start.files if start else {}
        changed = [
            {path for path in {*commit.files, *before} if commit.files.get(path) != before.get(path)}
            for commit in (ours, theirs)
        ]
        return {path for path in changed[0] & changed[1] if ours.files.get(path) != theirs.files.get(path)}

    def merge(self, repository, author):
        """One commit on the branch with all changes of the pull request."""
        if self.base is None or self.status != "open":
            raise Refusal(400, f"This is not an open pull request, but a {self.status} {self.kind}")
        if self.conflicts(repository):
            raise stale_parent()
        ours, theirs = repository.branches[self.base], repository.pulls[self.number]
        before = common_ancestor(ours, theirs)
        changed = {path for path in {*theirs.files, *before.files} if theirs.files.get(path) != before.files.get(path)}
        files = {path: entry for path, entry in ours.files.items() if path not in changed}
        files |= {path: theirs.files[path] for path in changed if path in theirs.files}
        made = new_commit(ours, files, f"{self.title} (#{self.number})", author)
        repository.branches[self.base] = made
        self.merge_commit = made.id
        return self.set_status(author, "merged")

    def _event(self, kind, author, data):
        event = {"id": f"{next(_numbers):024x}", "type": kind, "createdAt": now(), "author": {"name": author}}
        self.events.append(event | {"data": data})
        return self.events[-1]


def common_ancestor(one, other):
    known = {commit.id for commit in ancestors(one)}
    return next((commit for commit in ancestors(other) if commit.id in known), None)
