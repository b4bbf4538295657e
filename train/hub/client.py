"""Names, accounts and errors of the Hugging Face Hub, shared by downloads and uploads."""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

LOGIN = "log in with `hf auth login` or set HF_TOKEN"
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# raised by huggingface_hub if a response is not in the expected format
MALFORMED = (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError)
# HTTP status codes
REFUSED, UNAUTHORIZED, FORBIDDEN, CONFLICT, TOO_MANY, SERVER_ERROR = 400, 401, 403, 412, 429, 500


@dataclass(frozen=True)
class HubName:
    """A repository and optionally a branch, tag or commit, as in `alice/tiny@v1`.

    HfFileSystem uses the same notation (https://huggingface.co/docs/huggingface_hub/guides/hf_file_system).
    """

    repo_id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Parse `repo_id` or `repo_id@revision`.

        Raises:
            ValueError: not a valid name.
        """
        repo_id, at, revision = text.partition("@")
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"{text} is not a name on the Hub: {error}") from None
        if at and not revision:
            raise ValueError(f"{text} has no revision after the @: give a branch, tag or commit.")
        return cls(repo_id, revision or None)

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id


@contextmanager
def hub_errors(name: HubName, hint: str = "") -> Iterator[None]:
    """Turn the errors of huggingface_hub into one sentence with a remedy.

    Args:
        name: the repository of the request.
        hint: a sentence that ends each message.

    Raises:
        ValueError: the request is wrong: name, revision, token, permissions, or a conflict.
        ConnectionError: the Hub cannot be reached, closed the connection, is unavailable, or is not a Hub at all.
        OSError: the disk is full, or a file cannot be read or written.
    """
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError, *MALFORMED) as error:
        is_ours = isinstance(error, ValueError) and not isinstance(error, (HfHubHTTPError, *MALFORMED))
        is_vague = isinstance(error, LocalEntryNotFoundError) or str(error).startswith("Force download failed")
        has_reason = is_vague and isinstance(error.__cause__, HTTPError)
        if is_ours and not has_reason:
            raise
        kind, sentence = _explanation(error.__cause__ if has_reason and error.__cause__ else error, name)
        raise kind(f"{sentence} {hint}".strip()) from error


def _explanation(error: BaseException, name: HubName) -> tuple[type[Exception], str]:
    if isinstance(error, MALFORMED):
        return ConnectionError, f"{HfApi().endpoint} does not respond like a Hugging Face Hub ({error!r})."
    if reason := _local_reason(error):
        return OSError, f"{reason}."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    repo_id = name.repo_id
    if isinstance(error, OfflineModeIsEnabled):
        return ValueError, f"cannot access {repo_id} while HF_HUB_OFFLINE is set."
    if isinstance(error, GatedRepoError):
        return ValueError, f"{repo_id} is gated: request access at {HfApi().endpoint}/{repo_id}, then {LOGIN}."
    if isinstance(error, RepositoryNotFoundError):
        reason = "is private and this token has no access to it" if get_token() else f"is private: {LOGIN}"
        return ValueError, f"{repo_id} does not exist on the Hub or {reason}."
    if isinstance(error, RevisionNotFoundError):
        return ValueError, f"{repo_id} has no branch, tag or commit {name.revision or 'main'}."
    if status == UNAUTHORIZED:
        return ValueError, f"the Hub rejected the token ({_server_message(error)}): {LOGIN}."
    if status == FORBIDDEN:
        return ValueError, f"the token does not have the permissions for {repo_id} ({_server_message(error)})."
    if status == CONFLICT:
        return ValueError, f"{repo_id} was changed by another commit ({_server_message(error)}). Try again."
    if status == TOO_MANY or status >= SERVER_ERROR:
        return ConnectionError, (
            f"the Hub is busy or unavailable: HTTP {status} ({_server_message(error)}). Try again later."
        )
    if status:
        return ValueError, f"the Hub refused the request for {repo_id}: HTTP {status} ({_server_message(error)})."
    cause = error.__cause__ or error
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())
    return ConnectionError, f"the connection to {HfApi().endpoint} failed ({reason})."


def _local_reason(error: BaseException) -> str:
    """The operating system's message about a file, or "". Xet reports such errors as RuntimeErrors."""
    if isinstance(error, RuntimeError) and (found := re.search(r"\(os error (\d+)\)", str(error))):
        return os.strerror(int(found[1]))
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    return ""


def _server_message(error: BaseException) -> str:
    return getattr(error, "server_message", None) or str(error).strip().splitlines()[-1]


def account_of_token(api: HfApi, needs_write: bool) -> str:
    """The name of the account that the token of this machine belongs to.

    Raises:
        ValueError: there is no token, the Hub rejects it, or it cannot write.
        ConnectionError: the Hub cannot be reached.
    """
    if get_token() is None:
        raise ValueError(f"no token for {api.endpoint}: {LOGIN} (tokens: {api.endpoint}/settings/tokens).")
    address = urlsplit(api.endpoint)
    if address.scheme != "https" and address.hostname not in LOOPBACK:
        print(f"warning: {api.endpoint} does not use https: the token is sent unencrypted", file=sys.stderr)
    with hub_errors(HubName("whoami")):
        account = api.whoami()
    role = account.get("auth", {}).get("accessToken", {}).get("role", "")
    if needs_write and role == "read":
        raise ValueError(
            f"the token of {account['name']} is read-only: create one with write access at "
            f"{api.endpoint}/settings/tokens, then {LOGIN}."
        )
    return str(account["name"])
