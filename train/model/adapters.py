"""TODO."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint.manifest import read_json, sha256_of
from ..checkpoint.weights import safetensors_names
from ..settings.run_folder import ADAPTER_CONFIG_FILE, ADAPTER_FILE, BASE_MODEL_FILE
from .find import find_model


def weights_sha256(folder: Path) -> str:
    """Identity of the weights in a folder: of each file its name and hash."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


@contextmanager
def outdated_names() -> Iterator[None]:
    """PEFT asks transformers for `is_gradient_checkpointing`, which is called differently since 5.23."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def base_of_adapter(folder: Path) -> Path:
    """Where the base model of an adapter lies.

    Raises:
        ValueError: it is gone, or no longer has the weights that the adapter was trained on.
        OSError: as `find_model`.
    """
    settings = read_json(folder / ADAPTER_CONFIG_FILE)
    name = settings.get("base_model_name_or_path") or ""
    revision = settings.get("revision")
    found = find_model(f"{folder} is an adapter for another model:", f"{name}@{revision}" if revision else name)
    noted = folder / BASE_MODEL_FILE
    expected = read_json(noted)["weights_sha256"] if noted.exists() else None
    if expected is not None and weights_sha256(found) != expected:
        raise ValueError(
            f"{folder} is an adapter for other weights than those in {name}: set base_model_name_or_path in its "
            f"{ADAPTER_CONFIG_FILE} to the model that it was trained on."
        )
    return found


def put_adapter_on(model: nn.Module, folder: Path) -> Any:
    """The model with an adapter.

    Raises:
        ValueError: it is an adapter for another model.
    """
    from peft import PeftModel, get_peft_model_state_dict  # takes a second

    if not (folder / ADAPTER_FILE).exists():
        raise ValueError(f"{folder} is an adapter without its weights ({ADAPTER_FILE}); pickles are not loaded.")
    try:
        with outdated_names():
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError) as error:  # sizes differ; no module of that name
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{folder} is an adapter for another model ({reason}).") from None
    saved, there = set(safetensors_names(folder / ADAPTER_FILE)), set(get_peft_model_state_dict(adapted))
    if saved != there:  # PEFT leaves out weights that the model has no place for, and makes new ones where it has more
        raise ValueError(
            f"{folder} is an adapter for another model: {len(saved - there)} of its weights have no place in this one, "
            f"such as {min(saved ^ there)}, and {len(there - saved)} are missing."
        )
    return adapted
