"""What clients have asked for, to assert on; tokens are never written down where the client is meant to send them."""

import re
from dataclasses import dataclass, field


@dataclass
class Logged:
    port: str  # "hub" or "storage"
    method: str
    path: str  # unquoted
    query: str
    headers: dict[str, str] = field(repr=False)  # without Authorization, names in lower case
    authorised: bool  # whether it came with Authorization
    user: str | None = None  # whose token it was
    status: int | None = None  # None as long as there is no answer, and if the connection was cut before
    received: int = 0  # bytes of the body
    sent: int = 0

    def __str__(self):
        who = self.user or ("token" if self.authorised else "anyone")
        query = f"?{self.query}" if self.query else ""
        return (
            f"{self.port} {self.method} {self.path}{query} {self.status} by {who}, {self.received} in, {self.sent} out"
        )


class RequestLog(list):
    """Requests in the order of their arrival."""

    def matching(self, method="", path="", port=None):
        """Those whose method is this one and whose path contains this regular expression."""
        return [
            entry for entry in list(self)
            if method in ("", entry.method) and re.search(path, entry.path) and port in (None, entry.port)
        ]  # fmt: skip

    def __str__(self):
        return "\n".join(map(str, list(self)))
