"""Users, organizations, and tokens, which are made for one server and do not look like real secrets."""

import secrets
from dataclasses import dataclass, field

from .refusals import Refusal, bad_token


@dataclass
class Organization:
    name: str
    fullname: str
    members: dict[str, str]  # user -> "read", "write" or "admin"
    private_by_default: bool = False


@dataclass
class User:
    name: str
    fullname: str
    tokens: dict[str, str] = field(default_factory=dict)  # role -> token


@dataclass(frozen=True)
class Caller:
    """The user of a request and the role of the token; both are None without a token."""

    name: str | None = None
    role: str | None = None


ANYONE = Caller()


class Accounts:
    def __init__(self):
        self.users = {}
        self.organizations = {}
        self._callers = {}

    def add_user(self, name, fullname=None):
        """A user with one token of each role."""
        user = self.users[name] = User(name, fullname or name.title())
        for role in ("read", "write"):
            user.tokens[role] = f"local-{role}-{name}-{secrets.token_hex(12)}"
            self._callers[user.tokens[role]] = Caller(name, role)
        return user

    def add_organization(self, name, members, fullname=None, private_by_default=False):
        self.organizations[name] = Organization(name, fullname or name, members, private_by_default)

    def token(self, name, role="write"):
        return self.users[name].tokens[role]

    def is_token(self, text):
        return text in self._callers

    def caller(self, authorization):
        """Raises a 401 for an unknown token, whatever the request is."""
        if authorization is None:
            return ANYONE
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or token not in self._callers:
            raise bad_token()
        return self._callers[token]

    def role_in(self, name, namespace):
        """The role of a user in a namespace: "admin" in their own, that of a member in an organization, or None."""
        if name is None:
            return None
        if name.lower() == namespace.lower():
            return "admin"
        organization = self.organization(namespace)
        return organization.members.get(name) if organization else None

    def organization(self, name):
        return next((entry for key, entry in self.organizations.items() if key.lower() == name.lower()), None)

    def require_write(self, caller, namespace):
        if caller.name is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if self.role_in(caller.name, namespace) not in ("write", "admin"):
            raise Refusal(403, f"You don't have the rights to change anything under the namespace {namespace!r}")
        if caller.role != "write":
            raise Refusal(403, "This token can only read: a token with write access is needed")
