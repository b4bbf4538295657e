"""Download a model of the Hugging Face Hub and compare every file with the Hub's checksum:

    python -m train.pull --model alice/tiny
    python -m train.pull --model alice/tiny@v1 --local_dir models/tiny

The client of the Hub compares sizes only. Files that Python would unpickle are left there.
"""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, RepoFile, constants, is_offline_mode, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils.sha import git_hash
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from .arguments import option, parse_recipe, required, run_script
from .hub import HubName, hub_errors
from .manifest import sha256_of

# pickles, which run what they like when they are opened, and the weights of other frameworks
LEFT_THERE = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot"]


@dataclass
class PullArguments:
    """Settings of train.pull."""

    model: str = required("Name on the Hub, such as alice/tiny; alice/tiny@v1 for a branch, a tag or a commit.")
    local_dir: str | None = option("Folder to download to; without, the cache that every Hugging Face library shares.")
    force_download: bool = option("Download again what is there.", False)


@dataclass(frozen=True)
class Pulled:
    """A model on this machine. `is_verified` is False where it lay in the cache and the Hub could not be asked."""

    folder: Path
    sha: str
    is_verified: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Download, verify, and say how to load exactly this."""
    (arguments,) = parse_recipe([PullArguments], argv, description=__doc__ or "")
    name = HubName.parse(arguments.model)
    found = pull(name, local_dir=arguments.local_dir, force_download=arguments.force_download)
    print(f"{name} at commit {found.sha}: " + ("all checksums are the Hub's" if found.is_verified else "not verified"))
    code = sorted(path.name for path in found.folder.glob("*.py"))
    if code:
        print(f"it brings code, which nothing runs unless you pass trust_remote_code=True: {', '.join(code)}")
    print(f'from_pretrained("{name.repo_id}", revision="{found.sha}") loads exactly this.')
    print(found.folder)


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
            f"{', '.join(damaged)}. Download again: python -m train.pull --model {name} --force_download true"
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
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.exists() else []
    if strange := sorted(set(shards) - set(listed)):
        raise ValueError(f"{index.name} names files that {name} does not hold: {', '.join(map(str, strange[:3]))}.")


def _differs(path: Path, entry: RepoFile) -> bool:
    if not path.exists():
        return True
    if entry.lfs is not None:
        return sha256_of(path) != entry.lfs.sha256
    return git_hash(path.read_bytes()) != entry.blob_id


if __name__ == "__main__":
    sys.exit(run_script(main))
