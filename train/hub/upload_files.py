"""The files of a model folder to upload, checked and without tokens or paths of this machine.

Only files with known names are uploaded: a folder may also contain optimizer states, logs and secrets.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_token, save_torch_state_dict
from huggingface_hub.utils.sha import git_hash
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig

from hf_scratch_gpt import configuration_scratch_gpt, modeling_scratch_gpt
from hf_scratch_gpt.configuration_scratch_gpt import AUTO_MAP

from ..checkpoint.manifest import sha256_of
from ..checkpoint.weights import safetensors_shapes
from ..settings.checks import bytes_of
from ..settings.durable import files_and_folders
from ..settings.json_files import read_json
from ..settings.run_folder import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    BASE_MODEL_FILE,
    CARD_FILE,
    CONFIG_FILE,
    MODEL_INDEX_FILE,
)
from ..settings.words import counted, shown_names
from .client import HubName

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", ADAPTER_FILE)
CODE = (configuration_scratch_gpt, modeling_scratch_gpt)
# written by the commands of this project and by save_pretrained
MODEL_FILES = (
    *(CONFIG_FILE, "generation_config.json", MODEL_INDEX_FILE, *WEIGHTS, ADAPTER_CONFIG_FILE, BASE_MODEL_FILE),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
    *(CARD_FILE, "loss_curve.png", "confusion_matrix.png"),
)
# deleted from the repository unless they are uploaded again
REPLACED = (
    *MODEL_FILES,
    *("configuration_scratch_gpt.py", "modeling_scratch_gpt.py", "pytorch_model*.bin", "pytorch_model.bin.index.json"),
)
EXTRA_FILES = ("LICENSE",)  # uploaded, but never deleted
TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".md", ".py", "LICENSE")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


@dataclass(frozen=True)
class UploadFile:
    """A file to upload: its name in the repository, and its content as a local path or bytes."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def text(self) -> str:
        """The content, decoded."""
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return content.decode("utf-8")

    def is_same_as(self, blob_id: str, sha256: str | None) -> bool:
        """Whether a file on the Hub has the same content: by Git's SHA-1, or by the SHA-256 of a large file."""
        if sha256 is not None and isinstance(self.content, Path):
            return sha256_of(self.content) == sha256
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return git_hash(content) == blob_id


def collect_files(
    folder: Path, scratch: Path, max_shard_size: str, base_model: HubName | None
) -> tuple[dict[str, UploadFile], list[str]]:
    """The files of a model folder to upload, by name, and the names of those that are not uploaded.

    Args:
        folder: a model, a checkpoint or an adapter.
        scratch: an empty folder for weights that have to be split.
        max_shard_size: the maximum size of a weights file, such as "5GB".
        base_model: the base model of an adapter on the Hub.

    Raises:
        ValueError: not a model folder, weights that are damaged or do not match the config, or a file that contains
            a token or a local path.
    """
    if not folder.is_dir():
        raise ValueError(f"--folder_path {folder} is not a folder: give the model/ folder of a run.")
    names = sorted(path.relative_to(folder).as_posix() for path in files_and_folders(folder) if path.is_file())
    known = [name for name in names if any(fnmatch(name, pattern) for pattern in (*MODEL_FILES, *EXTRA_FILES))]
    if ADAPTER_CONFIG_FILE in known:
        files = _adapter_files(folder, base_model)
    elif CONFIG_FILE in known:
        if base_model is not None:
            raise ValueError(
                f"--base_model ({base_model}) requires an adapter, but {folder} contains a whole model: remove it."
            )
        files = _model_files(folder, scratch, max_shard_size)
        known = [name for name in known if not name.endswith(".safetensors") and name != MODEL_INDEX_FILE]
    else:
        shown = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"--folder_path {folder} is not a model folder: it has no {CONFIG_FILE} (found: {shown}).")
    for name in known:
        files.setdefault(name, UploadFile(name, folder / name))
    for file in files.values():
        _check_secrets(file, folder)
    return files, [name for name in names if name not in files and not name.endswith(".safetensors")]


def _adapter_files(folder: Path, base_model: HubName | None) -> dict[str, UploadFile]:
    """The files that name the base model, with its name on the Hub instead of a local path."""
    if not (folder / ADAPTER_FILE).exists():
        raise ValueError(f"--folder_path {folder} is an adapter without weights ({ADAPTER_FILE}).")
    settings = read_json(folder / ADAPTER_CONFIG_FILE)
    named = str(settings.get("base_model_name_or_path"))
    if base_model is None:
        if Path(named).exists() or named.count("/") != 1 or named.startswith((".", "~")):
            raise ValueError(
                f"--folder_path {folder} is an adapter for {named}, which is not on the Hub: publish that model first, "
                "then pass its name as --base_model namespace/name."
            )
        return {}
    settings |= {"base_model_name_or_path": base_model.repo_id, "revision": base_model.revision}
    texts = {ADAPTER_CONFIG_FILE: _json(settings)}
    for name in (BASE_MODEL_FILE, CARD_FILE):  # peft writes the path into the card
        if (folder / name).exists():
            texts[name] = (folder / name).read_text(encoding="utf-8").replace(named, base_model.repo_id).encode()
    return {name: UploadFile(name, text) for name, text in texts.items()}


def _model_files(folder: Path, scratch: Path, max_shard_size: str) -> dict[str, UploadFile]:
    """The config, weights and code of a whole model."""
    config = read_json(folder / CONFIG_FILE)
    config.pop("_name_or_path", None)
    files = []
    if config.get("model_type") == configuration_scratch_gpt.ScratchGPTConfig.model_type:
        _check_weights(folder)
        config["auto_map"] = AUTO_MAP
        files = [UploadFile(path.name, path) for path in (Path(str(module.__file__)) for module in CODE)]
    files.append(UploadFile(CONFIG_FILE, _json(config)))
    weights = sorted(path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in WEIGHTS))
    if not weights:
        raise ValueError(f"--folder_path {folder} has no weights (model.safetensors): is the run complete?")
    if any(path.stat().st_size > bytes_of("max_shard_size", max_shard_size) for path in weights):
        tensors = {name: tensor for path in weights for name, tensor in load_file(path).items()}
        save_torch_state_dict(tensors, scratch, max_shard_size=max_shard_size, metadata={"format": "pt"})
        weights = sorted(scratch.glob("*.safetensors"))
        folder = scratch
    files += [UploadFile(path.name, path) for path in weights]
    if len(weights) > 1:
        _check_index(folder, weights)
        files.append(UploadFile(MODEL_INDEX_FILE, folder / MODEL_INDEX_FILE))
    return {file.name: file for file in files}


def shapes_of(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return safetensors_shapes(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): publish a checkpoint of the run instead.") from None


def _check_weights(folder: Path) -> None:
    """Compare the shapes of the weights with the config, without loading them."""
    config = AutoConfig.from_pretrained(folder)
    architecture = (config.architectures or [""])[0]
    if not hasattr(modeling_scratch_gpt, architecture):
        raise ValueError(
            f"--folder_path {folder}: the architecture in {CONFIG_FILE} is {architecture!r}, which is not a class of "
            "hf_scratch_gpt."
        )
    with torch.device("meta"):
        model = getattr(modeling_scratch_gpt, architecture)(config)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys)
    found: dict[str, list[int]] = {}
    for path in folder.glob("model*.safetensors"):
        found |= shapes_of(path)
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    wrong = [name for name in wrong if not (name in tied and name not in found)]
    if not found:
        return  # the caller says that there are no weights at all
    if missing := [name for name in wrong if name not in found]:
        number = counted(len(missing), "weight")
        raise ValueError(f"--folder_path {folder} lacks {number} ({shown_names(missing)}): its files are incomplete.")
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"--folder_path {folder}: {len(wrong)} weights do not match {CONFIG_FILE}, such as {name}: "
            f"found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}."
        )


def _check_index(folder: Path, weights: list[Path]) -> None:
    if not (folder / MODEL_INDEX_FILE).exists():
        raise ValueError(f"--folder_path {folder} has {len(weights)} weights files, but no {MODEL_INDEX_FILE}.")
    listed = read_json(folder / MODEL_INDEX_FILE, {"weight_map?": {str: str}}).get("weight_map", {})
    found = {name: path.name for path in weights for name in shapes_of(path)}
    if listed != found:
        wrong = sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
        raise ValueError(
            f"--folder_path {folder}: {MODEL_INDEX_FILE} does not match the weights files, for example {wrong[0]}."
        )


def _check_secrets(file: UploadFile, folder: Path) -> None:
    """Refuse a text with a token or a path of this machine."""
    if not file.name.endswith(TEXT_SUFFIXES):
        return
    try:
        text = file.text
    except UnicodeDecodeError:
        raise ValueError(f"{folder / file.name} is damaged: it is not UTF-8 text.") from None
    token = get_token()
    if TOKEN.search(text) or (token and token in text):
        raise ValueError(
            f"{folder / file.name} contains a Hub token: remove it, and revoke it if others may have seen it."
        )
    for pattern in local_paths(folder):
        if found := re.search(f".*{pattern}.*", text):
            raise ValueError(f"{folder / file.name} contains a local path: {found[0].strip():.120}. Remove it.")


def local_paths(folder: Path) -> Iterator[str]:
    """Regular expressions for paths of this machine.

    A short path, such as /root or /app, may be a word of a vocabulary: it matches only with something below it.
    """
    for path in (folder, folder.resolve(), Path.cwd(), Path.home(), Path(constants.HF_HOME)):
        if path.is_absolute() and len(path.parts) > 1:
            end = "/" if len(path.parts) == 2 else r"(?![\w.-])"
            yield rf"(?<![\w.]){re.escape(path.as_posix())}{end}"


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
