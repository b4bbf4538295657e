"""Upload the files of a model to the Hub as one commit: fetch the state of the repository, plan, commit, verify.

Nothing on the Hub changes before `upload`: a dry run prints the plan.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    RepoFile,
    hf_hub_download,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import get_session, hf_raise_for_status

from ..settings.json_files import read_json
from ..settings.run_folder import ADAPTER_CONFIG_FILE, CARD_FILE, CONFIG_FILE
from .cards.merge import merge_metadata
from .cards.template import MODEL_PLACEHOLDER
from .client import CONFLICT, REFUSED, SERVER_ERROR, HubName
from .upload_files import REPLACED, UploadFile

MINIMAL_CARD = f"""\
---
library_name: transformers
pipeline_tag: text-generation
tags: [scratch_gpt]
---

A model trained with hf_scratch_gpt. Load it with `AutoModelForCausalLM.from_pretrained("{MODEL_PLACEHOLDER}")`.
"""


@dataclass
class RemoteState:
    """A repository on the Hub at one commit."""

    sha: str
    has_branch: bool
    private: bool
    files: dict[str, RepoFile]
    card: str | None
    config: dict[str, Any]


def fetch_remote_state(api: HfApi, name: HubName, repo_type: str = "model") -> RemoteState | None:
    """The state of a branch; that of main if the branch does not exist; None without a repository.

    Raises:
        HTTPError, OSError: as huggingface_hub raises them.
    """
    has_branch = True
    try:
        info = api.repo_info(name.repo_id, revision=name.revision, repo_type=repo_type)
    except RevisionNotFoundError:
        info, has_branch = api.repo_info(name.repo_id, repo_type=repo_type), False
    except RepositoryNotFoundError:
        return None
    sha = str(info.sha)
    tree = api.list_repo_tree(name.repo_id, recursive=True, revision=sha, repo_type=repo_type)
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            file: Path(hf_hub_download(name.repo_id, file, revision=sha, local_dir=scratch, repo_type=repo_type))
            for file in (CARD_FILE, CONFIG_FILE)
            if file in files
        }
        card = found[CARD_FILE].read_text(encoding="utf-8") if CARD_FILE in found else None
        config = read_json(found[CONFIG_FILE]) if CONFIG_FILE in found else {}
    return RemoteState(sha, has_branch, bool(info.private), files, card, config)


@dataclass
class UploadPlan:
    """The changes to a repository, and after `upload`, their commit."""

    name: HubName
    private: bool
    is_new_repo: bool
    is_new_branch: bool
    create_pr: bool
    parent: str | None  # the commit that the plan was made for
    card: ModelCard
    upload: list[UploadFile]
    unchanged: list[UploadFile]
    delete: list[str]
    notes: list[str] = field(default_factory=list)
    commit: CommitInfo | None = None
    repo_type: str = "model"

    @property
    def is_empty(self) -> bool:
        """Whether the Hub already has everything."""
        return not (self.upload or self.delete or self.is_new_branch)

    @property
    def sha(self) -> str | None:
        """The commit with the model."""
        return self.commit.oid if self.commit else self.parent

    def table(self) -> str:
        """The files with their sizes."""
        rows = [("upload", file) for file in self.upload] + [("unchanged", file) for file in self.unchanged]
        lines = [f"  {action:<10} {file.name:<40} {file.size:>15,} bytes" for action, file in rows]
        lines += [f"  {'delete':<10} {path}" for path in self.delete]
        visibility = "private" if self.private else "public"
        kind = f"new, {visibility}" if self.is_new_repo else visibility
        branch = f"branch {self.name.revision or 'main'}{' (new)' * self.is_new_branch}"
        total = f"  {len(self.upload)} files to upload, {sum(file.size for file in self.upload):,} bytes"
        notes = [f"note: {note}" for note in self.notes]
        what = self.name.repo_id if self.repo_type == "model" else f"Space {self.name.repo_id}"
        return "\n".join([f"{what} ({kind}), {branch}:", *lines, total, *notes])


def plan_upload(
    name: HubName,
    files: Mapping[str, UploadFile],
    remote: RemoteState | None,
    metadata: Mapping[str, Any],
    *,
    private: bool | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
) -> UploadPlan:
    """Compare local files with a repository.

    Args:
        name: the repository and branch.
        files: local files, by name.
        remote: the state of the repository; None if it does not exist.
        metadata: entries for the card; they win over those of the local card and of the card on the Hub.
        private: the visibility of the repository; None: private if it is new.
        create_pr: open a pull request instead of committing to the branch.
        overwrite: replace a model of another type.

    Raises:
        ValueError: the repository has another visibility or another type of model, or the card is damaged.
    """
    card, notes = merged_card(files.get(CARD_FILE), name, remote, metadata)
    files = {**files, CARD_FILE: UploadFile(CARD_FILE, str(card).encode("utf-8"))}
    if not any(file.startswith("tokenizer") for file in files):
        notes.append("the folder has no tokenizer, and the model cannot be used without one")
    if remote is None and create_pr:
        raise ValueError(f"--create_pr requires an existing repository, and {name.repo_id} does not exist.")
    if remote is not None and private is not None and private != remote.private:
        raise ValueError(
            f"--private is {private}, but {name.repo_id} exists and is {'private' if remote.private else 'public'}: "
            "change that in its settings on the Hub."
        )
    if remote is not None and not overwrite:
        check_same_kind(name, files, remote)
    on_hub = remote.files if remote else {}
    unchanged = [file for file in files.values() if is_on_hub(file, on_hub)]
    stale = [path for path in on_hub if path not in files and any(fnmatch(path, pattern) for pattern in REPLACED)]
    has_branch = remote.has_branch if remote else name.revision is None
    return UploadPlan(
        name=name,
        private=remote.private if remote else private is not False,
        is_new_repo=remote is None,
        is_new_branch=not has_branch and not create_pr,
        create_pr=create_pr,
        parent=remote.sha if remote else None,
        card=card,
        upload=[file for file in files.values() if file not in unchanged],
        unchanged=unchanged,
        delete=sorted(stale),
        notes=notes,
    )


def merged_card(
    file: UploadFile | None, name: HubName, remote: RemoteState | None, given: Mapping[str, Any]
) -> tuple[ModelCard, list[str]]:
    """The local card with the metadata of the command line and of the card on the Hub, and notes on both.

    Raises:
        ValueError: the metadata is not valid YAML.
    """
    text = file.text if file else MINIMAL_CARD
    try:
        card = ModelCard(text.replace(MODEL_PLACEHOLDER, name.repo_id))
        ours: Any = card.data
        theirs: Any = ModelCard(remote.card).data if remote and remote.card else ModelCardData()
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {CARD_FILE} is damaged ({error}): fix the lines between the ---.") from None
    card.data, notes = merge_metadata(ours, theirs, given)
    if not card.data.get("license"):
        notes.append("the card has no license, so others may not use the model: add one, such as --license apache-2.0")
    return card, notes


def check_same_kind(name: HubName, files: Mapping[str, UploadFile], remote: RemoteState) -> None:
    """Protect another model from a mistyped name.

    Raises:
        ValueError: the repository contains another type of model.
    """
    remedy = "Give another --repo_id, or replace it with --overwrite true."
    if ADAPTER_CONFIG_FILE in remote.files and CONFIG_FILE not in remote.files and CONFIG_FILE in files:
        raise ValueError(f"{name.repo_id} contains an adapter, but --folder_path contains a whole model. {remedy}")
    config: dict[str, Any] = json.loads(files[CONFIG_FILE].text) if CONFIG_FILE in files else {}
    for key in ("model_type", "architectures"):
        if remote.config and config.get(key) != remote.config.get(key):
            raise ValueError(
                f"{name.repo_id} contains another type of model: its {key} is {remote.config.get(key)}, but that of "
                f"--folder_path is {config.get(key)}. {remedy}"
            )


def is_on_hub(file: UploadFile, listed: Mapping[str, Any]) -> bool:
    """Whether the Hub lists this file with the same content."""
    entry = listed.get(file.name)
    return entry is not None and file.is_same_as(entry.blob_id, entry.lfs.sha256 if entry.lfs else None)


def validate_card(card: ModelCard, repo_type: str = "model") -> None:
    """Let the Hub validate the metadata of a card.

    Raises:
        ValueError: the Hub refuses it.
        HTTPError, OSError: as huggingface_hub raises them.
    """
    # `card.validate` of huggingface_hub 1 sends the card to huggingface.co, even if HF_ENDPOINT names another Hub
    body = {"repoType": repo_type, "content": str(card)}
    response = get_session().post(f"{HfApi().endpoint}/api/validate-yaml", json=body, headers={"Accept": "text/plain"})
    if response.status_code == REFUSED:
        reasons = "; ".join(entry["message"] for entry in response.json()["errors"])
        raise ValueError(f"the Hub refuses the metadata of {CARD_FILE}: {reasons}. Nothing was published.")
    hf_raise_for_status(response)


def upload(api: HfApi, plan: UploadPlan, commit_message: str) -> None:
    """Create what is missing, commit, compare the checksums that the Hub then lists, and set `plan.commit`.

    Large files are transferred before the commit, so the repository never contains half a model. The next attempt does
    not transfer them again.

    Raises:
        HTTPError, OSError, RuntimeError: as huggingface_hub raises them.
        ValueError: the Hub lists other checksums.
    """
    repo_id, revision, repo_type = plan.name.repo_id, plan.name.revision, plan.repo_type
    if plan.is_new_repo:
        sdk = "gradio" if repo_type == "space" else None
        api.create_repo(repo_id, private=plan.private, exist_ok=True, repo_type=repo_type, space_sdk=sdk)
    if plan.is_new_branch and revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
    # `upload_folder` may split an upload into several commits, uploads files of one folder only, and looks again which
    # files to delete, so a dry run could list others; `create_commit` is the thinnest call that keeps these promises
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(file.name, file.content) for file in plan.upload),
            *map(CommitOperationDelete, plan.delete),
        ],
        commit_message=commit_message,
        revision=revision,
        create_pr=plan.create_pr,
        parent_commit=plan.parent,
        repo_type=repo_type,
    )
    listed = {
        entry.path: entry
        for entry in api.get_paths_info(
            repo_id, [file.name for file in plan.upload], revision=commit.oid, repo_type=repo_type
        )
    }
    wrong = [file.name for file in plan.upload if not is_on_hub(file, listed)]
    if wrong:
        raise ValueError(
            f"the checksums of {', '.join(wrong)} in {repo_id} differ from the local files: publish again."
        )
    plan.commit = commit


def is_retryable(error: HTTPError) -> bool:
    """Whether to try again: another commit came first, the Hub is unavailable, or the connection broke."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else SERVER_ERROR
    return status == CONFLICT or status >= SERVER_ERROR
