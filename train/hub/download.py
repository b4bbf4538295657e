"""Download models from the Hub and verify them against the Hub's checksums; offline, load them from the cache."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, RepoFile, constants, is_offline_mode, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils.sha import git_hash
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..checkpoint.manifest import sha256_of
from ..settings.json_files import read_json
from .client import HubName, hub_errors

# pickles, which can execute code when loaded, and weights of other frameworks
IGNORED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot"]


@dataclass(frozen=True)
class LocalModel:
    """A downloaded model. `is_verified` is False if it comes from the cache and the Hub was not asked."""

    folder: Path
    sha: str
    is_verified: bool


def pull(name: HubName, *, local_dir: str | None = None, force_download: bool = False) -> LocalModel:
    """Download a model and verify it; in offline mode, load it from the cache.

    Raises:
        ValueError: the name or revision does not exist, no access, not in the cache, or damaged files (the message
            lists them).
        ConnectionError: the Hub cannot be reached, or the connection broke.
        OSError: the disk is full or not writable.
    """
    if is_offline_mode():
        if local_dir:
            raise ValueError(f"cannot use --local_dir {local_dir} while HF_HUB_OFFLINE is set.")
        return cached(name)
    api = HfApi()
    with hub_errors(name):
        sha = str(api.model_info(name.repo_id, revision=name.revision).sha)
    hint = (
        f"Completed files are kept in {local_dir or constants.HF_HUB_CACHE}: run the same command again to download "
        "the rest."
    )
    with hub_errors(name, hint):
        folder = Path(
            snapshot_download(
                name.repo_id, revision=sha if local_dir else name.revision, local_dir=local_dir,
                force_download=force_download, ignore_patterns=IGNORED,
            )
        )  # fmt: skip
        sha = sha if local_dir else folder.name  # the branch may have moved in between
        tree = api.list_repo_tree(name.repo_id, recursive=True, revision=sha)
        listed = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    expected = filter_repo_objects(sorted(listed), ignore_patterns=IGNORED)
    _check_index(name, folder, listed)
    damaged = [path for path in expected if _differs(folder / path, listed[path])]
    if damaged:
        options = f"--model {name}{f' --local_dir {local_dir}' if local_dir else ''} --force_download true"
        raise ValueError(
            f"files of {name} in {folder} do not match the checksums on the Hub: {', '.join(damaged)}. "
            f"Download them again: scratch-gpt pull {options}"
        )
    return LocalModel(folder, sha, is_verified=True)


def pull_or_cached(name: HubName) -> Path:
    """The folder of a downloaded model; if the Hub cannot be reached, that in the cache.

    Raises:
        ValueError, OSError: see `pull`.
    """
    try:
        return pull(name).folder
    except ConnectionError as error:
        try:
            model = cached(name)
        except ValueError:
            raise error from None
        print(f"warning: {error} Using commit {model.sha} from the cache, not verified.", file=sys.stderr)
        return model.folder


def cached(name: HubName) -> LocalModel:
    """A model from the cache, without a request to the Hub.

    Raises:
        ValueError: it is not in the cache.
    """
    try:
        folder = snapshot_download(name.repo_id, revision=name.revision, local_files_only=True, ignore_patterns=IGNORED)
    except (LocalEntryNotFoundError, CachedRepoTreeNotFoundError):
        raise ValueError(
            f"{name} is not in {constants.HF_HUB_CACHE} and cannot be downloaded while HF_HUB_OFFLINE is set."
        ) from None
    return LocalModel(Path(folder), Path(folder).name, is_verified=False)


def _check_index(name: HubName, folder: Path, listed: Collection[str]) -> None:
    """Refuse an index that refers to files outside of the repository, which were not verified."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    shards = read_json(index, {"weight_map?": {str: str}}).get("weight_map", {}).values() if index.exists() else []
    if unknown := sorted(set(shards) - set(listed)):
        raise ValueError(f"{index.name} lists files that are not in {name}: {', '.join(map(str, unknown[:3]))}.")


def _differs(path: Path, entry: RepoFile) -> bool:
    if not path.exists():
        return True
    if entry.lfs is not None:
        return sha256_of(path) != entry.lfs.sha256
    return git_hash(path.read_bytes()) != entry.blob_id
