"""Error responses as the client expects them: status, text, and the code that selects its exception."""


class Refusal(Exception):
    """Raised anywhere below a route; the handler turns it into a response.

    A 401 or 404 always has a code: over plain HTTP the client does not guess "no such repository" from the status.
    """

    def __init__(self, status, message, code=None, headers=None, body=None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or {401: "Unauthorized", 404: "NotFound"}.get(status)
        self.headers = headers or {}
        self.body = body or {"error": message}

    @property
    def all_headers(self):
        line = " ".join(self.message.split()).encode("latin-1", "replace").decode("latin-1")
        code = {"X-Error-Code": self.code} if self.code else {}
        return {"X-Error-Message": line, **code, **self.headers}


def bad_token():
    return Refusal(401, "Invalid credentials in Authorization header", "InvalidCredentials")


def no_repository(caller):
    """The same response for missing and for hidden repositories."""
    if caller.name is None:
        return Refusal(401, "Invalid username or password.", "RepoNotFound")
    return Refusal(404, "Repository not found", "RepoNotFound")


def no_revision(revision):
    return Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def no_entry(path, commit=None):
    """With the id of the commit, the client caches that the file does not exist."""
    headers = {"X-Repo-Commit": commit} if commit else {}
    return Refusal(404, f"Entry not found: {path}", "EntryNotFound", headers)


def stale_parent():
    return Refusal(412, "The branch was updated since you opened this page. Please refresh and try again.")
