"""Publish a model on the Hugging Face Hub as one commit. New repositories are private by default.

    scratch-gpt publish --folder_path runs/quickstart/run/model --repo_id alice/tiny --dry_run
    scratch-gpt publish --folder_path runs/quickstart/run/model --repo_id alice/tiny
    scratch-gpt publish --folder_path runs/quickstart/run/model --repo_id alice/tiny --space alice/tiny-demo

Uploads weights, config, code, tokenizer, model card and pictures, and nothing else. Weights of an earlier upload that
are no longer part of the model are deleted. Run the same command again to upload only what has changed.
"""

import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import HTTPError

from hf_scratch_gpt import ScratchGPTConfig

from .hub.client import HubName, account_of_token, hub_errors
from .hub.space import APP_FILE, plan_space
from .hub.upload import (
    RemoteState,
    UploadPlan,
    fetch_remote_state,
    is_retryable,
    plan_upload,
    upload,
    validate_card,
)
from .hub.upload_files import UploadFile, collect_files
from .model.find import has_weights
from .model.hints import about_folder, about_missing, is_model
from .model.load import check_model, refuse_quantized
from .settings.command import run_command
from .settings.json_files import read_json
from .settings.recipe import option, option_list, parse_recipe, required
from .settings.run_folder import ADAPTER_CONFIG_FILE, CONFIG_FILE

ATTEMPTS = 4
WAIT = 1.0  # seconds before the second attempt, doubled for each further one


@dataclass
class PublishArguments:
    """Settings of `scratch-gpt publish`."""

    folder_path: str = required("Folder of a model: model/ of a run, a checkpoint, or an adapter.", is_path=True)
    repo_id: str = required("Name on the Hub: namespace/name, or a name in your own namespace.")
    private: bool | None = option("Whether a new repository is private (default: true).")
    revision: str | None = option("Branch to commit to; created if it does not exist (default: main).")
    create_pr: bool = option("Open a pull request instead of committing to the branch.", False)
    commit_message: str | None = option("Title of the commit (default: Publish and the name of the folder).")
    dry_run: bool = option("List the files and upload nothing.", False)
    overwrite: bool = option("Replace a model of another type in the repository.", False)
    license: str | None = option("License for the card, as spelled on the Hub: apache-2.0, mit, cc-by-4.0, ...")
    language: list[str] = option_list("Languages for the card, as ISO 639 codes: en de ...")
    base_model: str | None = option("Base model of an adapter: its name on the Hub.")
    space: str | None = option("Also publish a Space with this name, in which others can try the model.")
    max_shard_size: str = option("Maximum size of a weights file; larger ones are split.", "5GB")

    def __post_init__(self) -> None:
        """Refuse a commit as the branch."""
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(f"--revision is {self.revision}, which is a commit: give the name of a branch.")
        if self.space is not None:
            HubName.parse(self.space)
            if self.create_pr:
                raise ValueError("--space requires --create_pr false: the Space shows the published model.")


def main(argv: Sequence[str] | None = None) -> None:
    """Publish, and print how to load this version."""
    (arguments,) = parse_recipe([PublishArguments], argv, description=__doc__ or "")
    plan = publish(arguments)
    say_result(plan, arguments.dry_run)
    if not arguments.dry_run:
        print(f'load this version: from_pretrained("{plan.name.repo_id}", revision="{plan.sha}")')
    if arguments.space:
        space = publish_space(arguments, plan.name)
        say_result(space, arguments.dry_run)
        if not arguments.dry_run:
            print(f"its page: {constants.ENDPOINT}/spaces/{space.name.repo_id}")


def say_result(plan: UploadPlan, dry_run: bool) -> None:
    """Print what was uploaded, or would be."""
    if dry_run:
        print(f"{plan.table()}\nnothing was uploaded (--dry_run)")
    elif plan.commit is None:
        print(f"{plan.table()}\nnothing to upload: the Hub already has all files")
    else:
        print(f"published, all checksums match: {plan.commit.pr_url or plan.commit.commit_url}")


def publish(arguments: PublishArguments) -> UploadPlan:
    """Upload a model folder to the Hub in one commit, or with `dry_run` only plan it.

    Files, card, name and token are checked before the first change on the Hub.

    Raises:
        ValueError: a folder without a model or with a secret, a card or name that the Hub refuses, a token without
            write access, a repository with another type of model, or others who keep committing.
        ConnectionError: the Hub cannot be reached or is unavailable.
    """
    base_model = HubName.parse(arguments.base_model) if arguments.base_model else None
    message = arguments.commit_message or f"Publish {Path(arguments.folder_path).name}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.folder_path)
        check_model_folder(folder)
        files, skipped = collect_files(folder, Path(scratch), arguments.max_shard_size, base_model)
        api = HfApi()
        name = repository(api, arguments, arguments.repo_id, arguments.revision)

        def plan() -> UploadPlan:
            plan = plan_changes(api, arguments, name, files)
            plan.notes += [f"not uploaded: {', '.join(skipped)}"] if skipped else []
            return plan

        return carry_out(api, name, plan, message, arguments.dry_run)


def publish_space(arguments: PublishArguments, model: HubName) -> UploadPlan:
    """Upload the Space that shows a published model, as `publish` uploads the model.

    Raises:
        ValueError: a name that the Hub refuses, or a Space with another program.
        ConnectionError: the Hub cannot be reached or is unavailable.
    """
    api = HfApi()
    name = repository(api, arguments, str(arguments.space))

    def plan() -> UploadPlan:
        app = None
        remote = remote_state(api, arguments, name, "space")
        if remote is not None and APP_FILE in remote.files:
            with tempfile.TemporaryDirectory() as scratch, hub_errors(name, "The Space was not changed."):
                path = hf_hub_download(
                    name.repo_id, APP_FILE, revision=remote.sha, repo_type="space", local_dir=scratch
                )
                app = Path(path).read_text(encoding="utf-8")
        private = arguments.private is not False
        plan = plan_space(name, model, remote, app, private=private, overwrite=arguments.overwrite)
        if not arguments.dry_run:
            with hub_errors(name, "The Space was not changed."):
                validate_card(plan.card, "space")
        return plan

    return carry_out(api, name, plan, f"Show {model}", arguments.dry_run)


def carry_out(
    api: HfApi, name: HubName, make_plan: Callable[[], UploadPlan], message: str, dry_run: bool
) -> UploadPlan:
    """Upload what a plan says; if another commit came first or the Hub is unavailable, plan and try again.

    Raises:
        ValueError, ConnectionError: as `publish`.
    """
    for attempt in range(ATTEMPTS):
        plan = make_plan()
        if dry_run or plan.is_empty:
            return plan
        if attempt == 0:
            print(plan.table())
        with hub_errors(name, "An upload is published as a whole or not at all: run the same command again."):
            try:
                upload(api, plan, message)
                return plan
            except HTTPError as error:
                if attempt == ATTEMPTS - 1 or not is_retryable(error):
                    raise
                print(f"trying again in {WAIT * 2**attempt:.0f} s: {error}", file=sys.stderr)
        time.sleep(WAIT * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that is not a model, and an incomplete model of another type than ours.

    `collect_files` checks ours without loading it.

    Raises:
        ValueError: what the folder is instead, or the weights that are missing or do not fit.
    """
    if not is_model(folder):
        reason = about_folder(folder) if folder.exists() else about_missing(folder)
        raise ValueError(f"--folder_path {folder} {reason}")
    path = folder / CONFIG_FILE
    if not (path.exists() and has_weights(folder)) or (folder / ADAPTER_CONFIG_FILE).exists():
        return
    refuse_quantized(f"--folder_path {folder}", folder, "published")
    if read_json(path).get("model_type") != ScratchGPTConfig.model_type:
        check_model(f"--folder_path {folder}", folder)


def repository(api: HfApi, arguments: PublishArguments, repo_id: str, revision: str | None = None) -> HubName:
    """A repository and branch. The namespace defaults to that of the token; a dry run needs no token.

    Raises:
        ValueError: an invalid name, or no token with write access.
        ConnectionError: the Hub cannot be reached.
    """
    needs_account = not arguments.dry_run or ("/" not in repo_id and get_token() is not None)
    if needs_account:
        account = account_of_token(api, needs_write=not arguments.dry_run)
        repo_id = repo_id if "/" in repo_id else f"{account}/{repo_id}"
    return HubName(HubName.parse(repo_id).repo_id, revision)


def remote_state(
    api: HfApi, arguments: PublishArguments, name: HubName, repo_type: str = "model"
) -> RemoteState | None:
    """The repository as it is now; a dry run does without.

    Raises:
        ConnectionError: the Hub cannot be reached.
    """
    try:
        with hub_errors(name, "Nothing was published."):
            return fetch_remote_state(api, name, repo_type)
    except ConnectionError as error:
        if not arguments.dry_run:
            raise
        print(f"warning: {error} This plan assumes that the repository is empty.", file=sys.stderr)
        return None


def plan_changes(api: HfApi, arguments: PublishArguments, name: HubName, files: Mapping[str, UploadFile]) -> UploadPlan:
    """Compare the local files with the repository as it is now.

    Raises:
        ValueError: the repository has another visibility or another type of model, or the Hub refuses the card.
        ConnectionError: the Hub cannot be reached.
    """
    remote = remote_state(api, arguments, name)
    metadata: dict[str, Any] = {"license": arguments.license, "language": arguments.language}
    if arguments.base_model:
        metadata |= {"base_model": HubName.parse(arguments.base_model).repo_id, "base_model_relation": "adapter"}
    plan = plan_upload(
        name,
        files,
        remote,
        metadata,
        private=arguments.private,
        create_pr=arguments.create_pr,
        overwrite=arguments.overwrite,
    )
    if not arguments.dry_run:
        with hub_errors(name, "Nothing was published."):
            validate_card(plan.card)
    return plan


if __name__ == "__main__":
    sys.exit(run_command(main))
