"""Models of the Hub on this machine: downloaded, and compared with the Hub's checksums; or from the cache."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, RepoFile, constants, is_offline_mode, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils.sha import git_hash
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..checkpoint.manifest import read_json, sha256_of
from .client import HubName, hub_errors

# pickles, which run what they like when they are opened, and the weights of other frameworks
LEFT_THERE = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot"]


@dataclass(frozen=True)
class Pulled:
    """A model on this machine. `is_verified` is False where it lay in the cache and the Hub could not be asked."""

    folder: Path
    sha: str
    is_verified: bool


def pull(name: HubName, *, local_dir: str | None = None, force_download: bool = False) -> Pulled:
    """Downloads a model and verifies it; in offline mode takes what the cache holds.

    Raises:
        ValueError: nothing of that name, no right to it, not in the cache, or damaged files (they are named).
        ConnectionError: the Hub cannot be reached or the connection broke.
        OSError: the disk is full or cannot be written.
    """
    if is_offline_mode():
        if local_dir:
            raise ValueError(
                f"--local_dir {local_dir}: HF_HUB_OFFLINE forbids to ask the Hub what belongs there: unset it."
            )
        return cached(name)
    api = HfApi()
    with hub_errors(name):
        sha = str(api.model_info(name.repo_id, revision=name.revision).sha)
    kept = f"What was complete is kept in {local_dir or constants.HF_HUB_CACHE}: the same command fetches the rest."
    with hub_errors(name, kept):
        folder = Path(
            snapshot_download(
                name.repo_id, revision=sha if local_dir else name.revision, local_dir=local_dir,
                force_download=force_download, ignore_patterns=LEFT_THERE,
            )
        )  # fmt: skip
        sha = sha if local_dir else folder.name  # the branch may have moved in between
        there = api.list_repo_tree(name.repo_id, recursive=True, revision=sha)
        listed = {entry.path: entry for entry in there if isinstance(entry, RepoFile)}
    wanted = filter_repo_objects(sorted(listed), ignore_patterns=LEFT_THERE)
    _check_index(name, folder, listed)
    damaged = [path for path in wanted if _differs(folder / path, listed[path])]
    if damaged:
        raise ValueError(
            f"{len(damaged)} of the files of {name} in {folder} do not have the checksum that the Hub lists: "
            f"{', '.join(damaged)}. Download again: scratch-gpt pull --model {name} --force_download true"
        )
    return Pulled(folder, sha, True)


def pull_or_cached(name: HubName) -> Path:
    """The folder of a model to load: that of the Hub, or the one in the cache where the Hub cannot be reached.

    Raises:
        ValueError, OSError: as `pull`.
    """
    try:
        return pull(name).folder
    except ConnectionError as error:
        try:
            found = cached(name)
        except ValueError:
            raise error from None
        print(f"warning: {error} Using commit {found.sha} from the cache, not verified.", file=sys.stderr)
        return found.folder


def cached(name: HubName) -> Pulled:
    """A model that was downloaded before, without asking the Hub.

    Raises:
        ValueError: it was not.
    """
    try:
        folder = snapshot_download(
            name.repo_id, revision=name.revision, local_files_only=True, ignore_patterns=LEFT_THERE
        )
    except (LocalEntryNotFoundError, CachedRepoTreeNotFoundError):
        raise ValueError(
            f"{name} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to ask the Hub: unset it."
        ) from None
    return Pulled(Path(folder), Path(folder).name, False)


def _check_index(name: HubName, folder: Path, listed: Collection[str]) -> None:
    """Refuses shards that lie elsewhere, where nothing has verified them."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    shards = read_json(index).get("weight_map", {}).values() if index.exists() else []
    if strange := sorted(set(shards) - set(listed)):
        raise ValueError(f"{index.name} names files that {name} does not hold: {', '.join(map(str, strange[:3]))}.")


def _differs(path: Path, entry: RepoFile) -> bool:
    if not path.exists():
        return True
    if entry.lfs is not None:
        return sha256_of(path) != entry.lfs.sha256
    return git_hash(path.read_bytes()) != entry.blob_id
