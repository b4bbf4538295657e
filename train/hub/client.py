"""What every exchange with the Hugging Face Hub needs: names, accounts, and errors in words that help."""

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
# what the client raises where an answer is not what it expects
GARBLED = (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError)
CONFLICT, UNAUTHORIZED, FORBIDDEN, TOO_MANY, SERVER_ERROR = 412, 401, 403, 429, 500  # HTTP status codes


@dataclass(frozen=True)
class HubName:
    """A repository and perhaps a branch, tag or commit of it, as in `alice/tiny@v1`.

    The notation is that of HfFileSystem (https://huggingface.co/docs/huggingface_hub/guides/hf_file_system).
    """

    repo_id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Reads the notation.

        Raises:
            ValueError: no name of a repository.
        """
        repo_id, at, revision = text.partition("@")
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"{text} is no name on the Hub: {error}") from None
        if at and not revision:
            raise ValueError(f"{text} names no revision after the @: give a branch, a tag or a commit.")
        return cls(repo_id, revision or None)

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id


@contextmanager
def hub_errors(name: HubName, consequence: str = "") -> Iterator[None]:
    """Turns what the client raises into one sentence with a remedy.

    Args:
        name: what is asked for.
        consequence: a sentence that ends each message, such as that nothing was published.

    Raises:
        ValueError: the request is wrong: name, revision, token, rights, or a conflict.
        ConnectionError: the Hub cannot be reached, broke off, is out of order, or it is not a Hub that answers.
        OSError: the disk is full, or a file cannot be read or written.
    """
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError, *GARBLED) as error:
        if isinstance(error, ValueError) and not isinstance(error, (HfHubHTTPError, *GARBLED)) and not _hides(error):
            raise
        kind, sentence = _explained(error.__cause__ if _hides(error) and error.__cause__ else error, name)
        raise kind(f"{sentence} {consequence}".strip()) from error


def _hides(error: Exception) -> bool:
    """Whether the client tells what went wrong only in the cause of its error."""
    is_vague = isinstance(error, LocalEntryNotFoundError) or str(error).startswith("Force download failed")
    return is_vague and isinstance(error.__cause__, HTTPError)


def _explained(error: BaseException, name: HubName) -> tuple[type[Exception], str]:
    if isinstance(error, GARBLED):
        return ConnectionError, f"{HfApi().endpoint} does not answer as a Hugging Face Hub ({error!r})."
    if reason := _reason_on_this_machine(error):
        return OSError, f"{reason}."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    repo_id = name.repo_id
    if isinstance(error, OfflineModeIsEnabled):
        return ValueError, f"{repo_id}: HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it."
    if isinstance(error, GatedRepoError):
        return ValueError, f"{repo_id} is gated: ask for access on {HfApi().endpoint}/{repo_id}, then {LOGIN}."
    if isinstance(error, RepositoryNotFoundError):
        return ValueError, (
            f"the Hub has no {repo_id}, or it is private and not shown to "
            f"{'this token' if get_token() else f'anybody without a token: {LOGIN}'}."
        )
    if isinstance(error, RevisionNotFoundError):
        return ValueError, f"{repo_id} has no branch, tag or commit {name.revision or 'main'}."
    if status == UNAUTHORIZED:
        return ValueError, f"the Hub does not accept the token ({_said(error)}): {LOGIN}."
    if status == FORBIDDEN:
        return ValueError, f"the Hub does not allow that for {repo_id} with this token ({_said(error)})."
    if status == CONFLICT:
        return ValueError, f"{repo_id} was changed by somebody else at the same time ({_said(error)}). Try again."
    if status == TOO_MANY or status >= SERVER_ERROR:
        return ConnectionError, f"the Hub is out of order or busy: HTTP {status} ({_said(error)}). Try again later."
    if status:
        return ValueError, f"the Hub refuses {repo_id}: HTTP {status} ({_said(error)})."
    cause = error.__cause__ or error
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())
    return ConnectionError, f"the connection to {HfApi().endpoint} failed ({reason})."


def _reason_on_this_machine(error: BaseException) -> str:
    """What the operating system says of a file; Xet has RuntimeErrors for that as for all else."""
    if isinstance(error, RuntimeError) and (found := re.search(r"\(os error (\d+)\)", str(error))):
        return os.strerror(int(found[1]))
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    return ""


def _said(error: BaseException) -> str:
    return getattr(error, "server_message", None) or str(error).strip().splitlines()[-1]


def account_of_token(api: HfApi, needs_write: bool) -> str:
    """The name of the account that the token of this machine belongs to.

    Raises:
        ValueError: no token, a token that the Hub does not know, one that may only read.
        ConnectionError: the Hub cannot be reached.
    """
    if get_token() is None:
        raise ValueError(f"no token for {api.endpoint}: {LOGIN} (tokens: {api.endpoint}/settings/tokens).")
    address = urlsplit(api.endpoint)
    if address.scheme != "https" and address.hostname not in LOOPBACK:
        print(f"warning: {api.endpoint} is not https: the token is sent in the clear", file=sys.stderr)
    with hub_errors(HubName("whoami")):
        told = api.whoami()
    role = told.get("auth", {}).get("accessToken", {}).get("role", "")
    if needs_write and role == "read":
        raise ValueError(
            f"the token of {told['name']} may only read: make one that may write on {api.endpoint}/settings/tokens, "
            f"then {LOGIN}."
        )
    return str(told["name"])
