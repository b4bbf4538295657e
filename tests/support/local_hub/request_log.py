"""A log of requests for assertions. It does not record the Authorization header."""

import re
from dataclasses import dataclass, field


@dataclass
class Logged:
    port: str  # "hub" or "storage"
    method: str
    path: str  # unquoted
    query: str
    headers: dict[str, str] = field(repr=False)  # without Authorization, names in lower case
    authorised: bool  # whether it had Authorization
    user: str | None = None  # whose token it was
    status: int | None = None  # None before the response, and if the connection was closed before it
    received: int = 0  # bytes of the body
    sent: int = 0

    def __str__(self):
        who = self.user or ("token" if self.authorised else "anyone")
        query = f"?{self.query}" if self.query else ""
        return (
            f"{self.port} {self.method} {self.path}{query} {self.status} by {who}, {self.received} in, {self.sent} out"
        )


class RequestLog(list):
    """Requests in order of arrival."""

    def matching(self, method="", path="", port=None):
        """Requests with this method whose path matches this regular expression."""
        return [
            entry for entry in list(self)
            if method in ("", entry.method) and re.search(path, entry.path) and port in (None, entry.port)
        ]  # fmt: skip

    def __str__(self):
        return "\n".join(map(str, list(self)))
