"""Find a model by its folder or its name on the Hugging Face Hub, and identify its weights."""

import hashlib
from pathlib import Path

from transformers import CONFIG_MAPPING

import hf_scratch_gpt  # noqa: F401  registers the model's classes
from hf_scratch_gpt.conversion.sources import PICKLES, without_weights

from ..checkpoint.manifest import sha256_of
from ..hub.client import HubName
from ..hub.download import pull_or_cached
from ..settings.json_files import read_json
from ..settings.near_paths import near_paths
from ..settings.run_folder import ADAPTER_CONFIG_FILE, CHECKPOINT_PREFIX, CONFIG_FILE, MODEL_FILE, MODEL_INDEX_FILE
from .hints import about_folder, about_missing, about_unfinished, is_run, tokenizer_of_run
from .vocabulary import check_tokenizer


def find_model(option: str, name: str, needs_weights: bool = True) -> Path:
    """The folder of a model or adapter. A model on the Hub is downloaded and verified first.

    Args:
        option: the option that `name` was given with, for the error messages.

    Raises:
        ValueError: no such model, or a folder without a known config or without weights, or with the tokenizer of
            another model.
        OSError: the Hub cannot be reached, or the disk is full.
    """
    folder = Path(name)
    place = f"{option} {name}"
    if not folder.exists():
        if is_path(name):
            raise ValueError(f"{place} {about_missing(folder)}")
        folder = _from_hub(place, name)
    if folder.is_dir() and (folder / ADAPTER_CONFIG_FILE).exists():
        return folder
    if not (folder / CONFIG_FILE).exists():
        raise ValueError(f"{place} {about_folder(folder)}")
    model_type = read_json(folder / CONFIG_FILE).get("model_type")
    if model_type is None:
        raise ValueError(f"{place} is not a model folder: its {CONFIG_FILE} has no model_type.")
    check_tokenizer(place, folder)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{place} has the unknown model_type {model_type}: it must be scratch_gpt or one of transformers' "
            "own; code in a model folder is never executed."
        )
    if needs_weights and not has_weights(folder):
        raise ValueError(f"{place} {_without_weights(folder)}")
    return folder


def has_weights(folder: Path) -> bool:
    """Whether a folder has the weights of a whole model, in one file or several."""
    return (folder / MODEL_FILE).exists() or (folder / MODEL_INDEX_FILE).exists()


def is_path(name: str) -> bool:
    """Whether a name that does not exist here can only be a path: no model on the Hub has such a name."""
    first, *rest = name.split("/")
    return name.startswith((".", "/", "~")) or len(rest) > 1 or (bool(rest) and Path(first).is_dir())


def _from_hub(place: str, name: str, weights: bool = True) -> Path:
    try:
        return pull_or_cached(HubName.parse(name), weights)
    except (ValueError, ConnectionError) as error:
        near = near_paths(Path(name), only_folders=True)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        kind = ConnectionError if isinstance(error, ConnectionError) else ValueError
        raise kind(f"{place} is not a folder here, and {error}{hint}") from None


def _without_weights(folder: Path) -> str:
    if any(folder.glob("shard-*.safetensors")):
        return (
            "is the checkpoint of a model that was split over several processes: only its run can read it. "
            f"{about_unfinished(folder.parent)}"
        )
    if any(path for pattern in PICKLES for path in folder.glob(pattern)):
        return without_weights(folder)
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8])
    return (
        f"has no weights ({MODEL_FILE}; found: {found}): give the folder of a trained model. Only fine-tuning can "
        "start without: --random_weights true."
    )


def find_tokenizer(option: str, name: str) -> Path:
    """The folder of a tokenizer. One on the Hub is downloaded without the weights of its model, and verified.

    Raises:
        ValueError: no such folder or model.
        OSError: the Hub cannot be reached, or the disk is full.
    """
    folder, place = Path(name), f"{option} {name}"
    if folder.exists():
        return folder
    if is_path(name):
        near = near_paths(folder, only_folders=True)
        hint = f"did you mean {' or '.join(near)}?" if near else "write one with scratch-gpt train_tokenizer."
        raise ValueError(f"{place} does not exist: {hint}")
    return _from_hub(place, name, weights=False)


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a model is: in its folder, except for a checkpoint."""
    if folder.name.startswith(CHECKPOINT_PREFIX) and is_run(folder.parent):
        return tokenizer_of_run(folder.parent) or folder
    return folder


def weights_sha256(folder: Path) -> str:
    """The identity of the weights in a folder: a hash of the names and contents of all safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
