"""TODO."""

import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    RepoFile,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import get_session, hf_raise_for_status

from ..checkpoint.manifest import read_json
from ..settings.recipe import option, option_list, required
from ..settings.run_folder import ADAPTER_CONFIG_FILE, CARD_FILE, CONFIG_FILE
from .cards.metadata import PLACE, merged_metadata
from .client import CONFLICT, SERVER_ERROR, HubName, account_of_token, hub_errors
from .files import STALE, OutgoingFile, outgoing_files

ATTEMPTS = 4
WAIT = 1.0  # seconds before the second attempt, doubled for each further one
MAIN = "main"
BAD_REQUEST = 400  # HTTP status code


@dataclass
class PublishArguments:
    """Settings of train.publish."""

    folder_path: str = required("Folder of a model: model/ of a run, a checkpoint, or an adapter.", is_path=True)
    repo_id: str = required("Name on the Hub: namespace/name, or a name in your own namespace.")
    private: bool | None = option("Whether a new repository is private (the default) or seen by everybody.")
    revision: str | None = option("Branch to commit to; made if there is none of that name. Without: main.")
    create_pr: bool = option("Open a pull request instead of changing the branch.", False)
    commit_message: str | None = option("Commit message.")
    dry_run: bool = option("Only list what would be sent.", False)
    overwrite: bool = option("Replace a model of another kind that lies there.", False)
    license: str | None = option("Licence for the card, as the Hub spells it: apache-2.0, mit, cc-by-4.0 ...")
    language: list[str] = option_list("Languages for the card, as ISO 639 codes: en de ...")
    base_model: str | None = option("For an adapter: the name on the Hub of the model that it belongs to.")
    max_shard_size: str = option("Larger files of weights are split.", "5GB")

    def __post_init__(self) -> None:
        """Refuse what the Hub would take for something else."""
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(f"--revision is {self.revision}, a commit, and commits never change: name a branch.")


@dataclass
class There:
    """What lies on the Hub at the moment."""

    sha: str
    has_branch: bool
    private: bool
    files: dict[str, RepoFile]
    card: str | None
    config: dict[str, Any]


@dataclass
class Publication:
    """What is or would be sent, and after the commit, where it lies."""

    name: HubName
    private: bool
    is_new: bool
    is_new_branch: bool
    send: list[OutgoingFile]
    same: list[OutgoingFile]
    remove: list[str]
    notes: list[str] = field(default_factory=list)
    sha: str | None = None
    url: str | None = None
    pull_request: str | None = None

    def table(self) -> str:
        """The files with their sizes."""
        rows = [("send", file.name, file.size) for file in self.send]
        rows += [("same", file.name, file.size) for file in self.same]
        lines = [f"  {what}    {name:<40} {size:>15,} bytes" for what, name, size in rows]
        lines += [f"  remove  {name}" for name in self.remove]
        visibility = "private" if self.private else "public"
        kind = f"new, {visibility}" if self.is_new else visibility
        total = sum(file.size for file in self.send)
        head = f"{self.name.repo_id} ({kind}), branch {self.name.revision or MAIN}{' (new)' * self.is_new_branch}:"
        tail = f"  {len(self.send)} files to send, {total:,} bytes"
        return "\n".join([head, *lines, tail, *(f"note: {note}" for note in self.notes)])


def publish(arguments: PublishArguments) -> Publication:
    """Sends a model folder to the Hub in one commit, or says what would be sent.

    Every check of files, card, name and token comes before the first change on the Hub.

    Raises:
        ValueError: a folder that is no model, that would give away a secret, a card or a name that the Hub does not
            take, a token that may not write, a repository that holds something else, somebody who commits all the time.
        ConnectionError: the Hub cannot be reached or is out of order.
    """
    base_model = HubName.parse(arguments.base_model) if arguments.base_model else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.folder_path)
        files, left_here = outgoing_files(folder, Path(scratch), arguments.max_shard_size, base_model)
        api = HfApi()
        name = HubName.parse(full_name(api, arguments))
        name = HubName(name.repo_id, arguments.revision)
        for attempt in range(ATTEMPTS):
            planned, parent = plan(api, arguments, name, files)
            planned.notes += [f"stays here: {', '.join(left_here)}"] if left_here else []
            if arguments.dry_run:
                return planned
            if not (planned.send or planned.remove or planned.is_new_branch):
                planned.sha = parent
                return planned
            if attempt == 0:
                print(planned.table())
            with hub_errors(name, "Nothing is published by halves: the same command goes on."):
                additions = upload(api, arguments, planned)
                try:
                    return commit(api, arguments, planned, additions, parent)
                except HTTPError as error:
                    if attempt == ATTEMPTS - 1 or not may_pass(error):
                        raise
                    print(f"looking again in {WAIT * 2**attempt:.0f} s: {error}", file=sys.stderr)
            time.sleep(WAIT * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def full_name(api: HfApi, arguments: PublishArguments) -> str:
    """The name of the repository with its namespace; without one, that of the token.

    Raises:
        ValueError: no token that may write.
        ConnectionError: the Hub cannot be reached.
    """
    repo_id = arguments.repo_id
    if arguments.dry_run and ("/" in repo_id or get_token() is None):
        return repo_id
    account = account_of_token(api, needs_write=not arguments.dry_run)
    return repo_id if "/" in repo_id else f"{account}/{repo_id}"


def may_pass(error: Exception) -> bool:
    """Whether a second attempt has a chance: a commit of somebody else came first, or the Hub is out of order."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else SERVER_ERROR
    return status == CONFLICT or status >= SERVER_ERROR


def look_there(api: HfApi, name: HubName) -> There | None:
    """What the branch holds; where it does not exist yet, what main holds; None without a repository."""
    has_branch = True
    try:
        info = api.model_info(name.repo_id, revision=name.revision)
    except RevisionNotFoundError:
        info, has_branch = api.model_info(name.repo_id), False
    except RepositoryNotFoundError:
        return None
    sha = str(info.sha)
    listed = api.list_repo_tree(name.repo_id, recursive=True, revision=sha)
    files = {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            wanted: Path(hf_hub_download(name.repo_id, wanted, revision=sha, local_dir=scratch))
            for wanted in (CARD_FILE, CONFIG_FILE)
            if wanted in files
        }
        card = found[CARD_FILE].read_text(encoding="utf-8") if CARD_FILE in found else None
        config = read_json(found[CONFIG_FILE]) if CONFIG_FILE in found else {}
    return There(sha, has_branch, bool(info.private), files, card, config)


def plan(
    api: HfApi, arguments: PublishArguments, name: HubName, files: list[OutgoingFile]
) -> tuple[Publication, str | None]:
    """What to send and to remove, and the commit that this follows from.

    Raises:
        ValueError: the repository is seen by more people than was asked for or holds another kind of model, or the
            Hub does not take the card.
        ConnectionError: the Hub cannot be reached.
    """
    try:
        with hub_errors(name, "Nothing was published."):
            there = look_there(api, name)
    except ConnectionError as error:
        if not arguments.dry_run:
            raise
        print(f"warning: {error} What lies there is not known.", file=sys.stderr)
        there = None
    outgoing = {file.name: file for file in files}
    card, notes = outgoing_card(arguments, outgoing.get(CARD_FILE), name, there)
    outgoing[CARD_FILE] = OutgoingFile(CARD_FILE, str(card).encode("utf-8"))
    if not arguments.dry_run:
        validate(api, card, name)
    if not any(file.startswith("tokenizer") for file in outgoing):
        notes.append("the folder holds no tokenizer: nobody can use the model without one")
    if there is None:
        if arguments.create_pr:
            raise ValueError(f"--create_pr: there is no {name.repo_id} to open a pull request for.")
        send, private = list(outgoing.values()), arguments.private is not False
        return Publication(name, private, True, name.revision is not None, send, [], [], notes), None
    if arguments.private is not None and arguments.private != there.private:
        raise ValueError(
            f"--private is {arguments.private}, but {name.repo_id} exists and is "
            f"{'private' if there.private else 'public'}: change that in its settings on the Hub."
        )
    refuse_other_kind(arguments, outgoing, there)
    same = [file for file in outgoing.values() if is_there(file, there.files)]
    send = [file for file in outgoing.values() if file not in same]
    stale = [path for path in there.files if path not in outgoing and any(fnmatch(path, pattern) for pattern in STALE)]
    is_new_branch = not there.has_branch and not arguments.create_pr
    return Publication(name, there.private, False, is_new_branch, send, same, sorted(stale), notes), there.sha


def validate(api: HfApi, card: ModelCard, name: HubName) -> None:
    """Asks the Hub whether it takes a card, before anything is made there.

    Raises:
        ValueError: it does not.
        ConnectionError: it cannot be asked.
    """
    body = {"content": str(card), "repoType": "model"}
    with hub_errors(name, "Nothing was published."):
        answer = get_session().post(f"{api.endpoint}/api/validate-yaml", json=body)
        refused = answer.json().get("errors") if answer.status_code == BAD_REQUEST else None
        if not refused:
            hf_raise_for_status(answer)
            return
    reasons = "; ".join(error["message"] for error in refused)
    raise ValueError(f"the Hub refuses the metadata of {CARD_FILE}: {reasons}. Nothing was published.")


def refuse_other_kind(arguments: PublishArguments, outgoing: dict[str, OutgoingFile], there: There) -> None:
    """Whoever mistypes a name should not replace another model.

    Raises:
        ValueError: the repository holds another kind of model.
    """
    if arguments.overwrite:
        return
    if ADAPTER_CONFIG_FILE in there.files and CONFIG_FILE not in there.files and CONFIG_FILE in outgoing:
        raise ValueError(
            f"{arguments.repo_id} holds an adapter, and {arguments.folder_path} a whole model. Name another --repo_id, "
            "or replace it with --overwrite true."
        )
    ours: dict[str, Any] = json.loads(outgoing[CONFIG_FILE].text) if CONFIG_FILE in outgoing else {}
    for key in ("model_type", "architectures"):
        if there.config and ours.get(key) != there.config.get(key):
            raise ValueError(
                f"{arguments.repo_id} holds another kind of model: {key} is {there.config.get(key)}, and "
                f"{ours.get(key)} in {arguments.folder_path}. Name another --repo_id, or replace it with --overwrite true."
            )


def is_there(file: OutgoingFile, listed: Mapping[str, Any]) -> bool:
    """Whether the Hub lists this very file."""
    entry = listed.get(file.name)
    return entry is not None and file.is_same_as(entry.blob_id, entry.lfs.sha256 if entry.lfs else None)


def outgoing_card(
    arguments: PublishArguments, file: OutgoingFile | None, name: HubName, there: There | None
) -> tuple[ModelCard, list[str]]:
    """The card with the metadata of the command line and of the Hub, and what to tell about it.

    Raises:
        ValueError: its metadata is no YAML.
    """
    text = file.text if file else MINIMAL_CARD
    try:
        card = ModelCard(text.replace(PLACE, name.repo_id))
        ours: Any = card.data
        theirs: Any = ModelCard(there.card).data if there and there.card else ModelCardData()
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {CARD_FILE} is damaged ({error}): mend the lines between the ---.") from None
    given: dict[str, Any] = {"license": arguments.license, "language": arguments.language}
    if arguments.base_model:
        given |= {"base_model": HubName.parse(arguments.base_model).repo_id, "base_model_relation": "adapter"}
    card.data, notes = merged_metadata(ours, theirs, given)
    if not card.data.get("license"):
        notes.append("the card names no license, so nobody else may use the model: --license apache-2.0, for example")
    return card, notes


def upload(api: HfApi, arguments: PublishArguments, planned: Publication) -> list[CommitOperationAdd]:
    """Makes the repository and the branch if they are missing, and brings large files to the Hub's storage.

    Nobody sees them before the commit. The client tries again by itself for up to some minutes; what has arrived is not
    sent a second time.

    Raises:
        HTTPError, OSError: what the client raises.
    """
    repo_id, revision = planned.name.repo_id, planned.name.revision
    if planned.is_new:
        api.create_repo(repo_id, private=planned.private, exist_ok=True)
    if planned.is_new_branch and revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    additions = [CommitOperationAdd(file.name, file.content) for file in planned.send]
    api.preupload_lfs_files(repo_id, additions, revision=revision, create_pr=arguments.create_pr, free_memory=False)
    return additions


def commit(
    api: HfApi,
    arguments: PublishArguments,
    planned: Publication,
    additions: list[CommitOperationAdd],
    parent: str | None,
) -> Publication:
    """Commits, and compares what the Hub then lists.

    Raises:
        HTTPError: what the client raises.
        ValueError: the Hub lists another file than was sent.
    """
    repo_id = planned.name.repo_id
    removals = [CommitOperationDelete(path) for path in planned.remove]
    made = api.create_commit(
        repo_id, [*additions, *removals], commit_message=arguments.commit_message or f"Publish {Path(arguments.folder_path).name}",
        revision=planned.name.revision, create_pr=arguments.create_pr, parent_commit=parent,
    )  # fmt: skip
    listed = {
        entry.path: entry for entry in api.get_paths_info(repo_id, [f.name for f in planned.send], revision=made.oid)
    }
    wrong = [file.name for file in planned.send if not is_there(file, listed)]
    if wrong:
        raise ValueError(
            f"{repo_id} does not hold what was sent, but other bytes in {', '.join(wrong)}: send it again."
        )
    planned.sha, planned.url, planned.pull_request = made.oid, made.commit_url, made.pr_url
    return planned


MINIMAL_CARD = f"""\
---
library_name: transformers
pipeline_tag: text-generation
tags: [scratch_gpt]
---

A checkpoint of a model that is trained with hf_scratch_gpt: `AutoModelForCausalLM.from_pretrained("{PLACE}")`.
"""
