"""Find a model by its folder or its name on the Hugging Face Hub, and identify its weights."""

import hashlib
from pathlib import Path

from transformers import CONFIG_MAPPING

import hf_scratch_gpt  # noqa: F401  registers the model's classes

from ..checkpoint.manifest import sha256_of
from ..hub.client import HubName
from ..hub.download import pull_or_cached
from ..settings.json_files import read_json
from ..settings.run_folder import ADAPTER_CONFIG_FILE, CONFIG_FILE
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
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ValueError(
                f"{option} {name} does not exist; scratch-gpt quickstart writes runs/quickstart/run/model."
            )
        folder = pull_or_cached(HubName.parse(name))
    found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    shown = ", ".join(found[:8]) or "nothing"
    if ADAPTER_CONFIG_FILE in found:
        return folder
    if CONFIG_FILE not in found:
        raise ValueError(f"{option} {name} is not a model folder: it has no {CONFIG_FILE} (found: {shown}).")
    model_type = read_json(folder / CONFIG_FILE).get("model_type")
    check_tokenizer(f"{option} {name}", folder)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{option} {name} has the unknown model_type {model_type}: it must be scratch_gpt or one of transformers' "
            "own; code in a model folder is never executed."
        )
    if needs_weights and not any(entry.endswith(".safetensors") for entry in found):
        raise ValueError(
            f"{option} {name} has no weights (*.safetensors; found: {shown}): give the folder of a trained model. "
            "Only fine-tuning can start without: --random_weights true."
        )
    return folder


def weights_sha256(folder: Path) -> str:
    """The identity of the weights in a folder: a hash of the names and contents of all safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
