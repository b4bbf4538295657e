"""What of a model folder may leave this machine, as it leaves: checked, without traces of the machine.

Only files whose names are known are sent; a folder may hold optimizer states, logs and secrets too. What is sent is
searched for tokens and for places on this machine.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig

from hf_scratch_gpt import configuration_scratch_gpt, modeling_scratch_gpt
from hf_scratch_gpt.configuration_scratch_gpt import AUTO_MAP

from ..checkpoint.manifest import read_json, sha256_of
from ..settings.run_folder import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    BASE_MODEL_FILE,
    CARD_FILE,
    CONFIG_FILE,
    MODEL_INDEX_FILE,
)
from .client import HubName

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", ADAPTER_FILE)
CODE = (configuration_scratch_gpt, modeling_scratch_gpt)
# what our scripts and save_pretrained write; a file of the Hub that has such a name and is not sent again is stale
MODEL_FILES = (
    *(CONFIG_FILE, "generation_config.json", MODEL_INDEX_FILE, *WEIGHTS, ADAPTER_CONFIG_FILE, BASE_MODEL_FILE),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
    *(CARD_FILE, "loss_curve.png", "confusion_matrix.png"),
)
STALE = (
    *MODEL_FILES,
    *("configuration_scratch_gpt.py", "modeling_scratch_gpt.py", "pytorch_model*.bin", "pytorch_model.bin.index.json"),
)
KEPT_THERE = ("LICENSE",)  # sent, but never removed
TEXTS = (".json", ".jinja", ".txt", ".md", ".py", "LICENSE")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


@dataclass(frozen=True)
class OutgoingFile:
    """A file to send: its name in the repository, and a file of this machine or the bytes themselves."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def text(self) -> str:
        """What it says, of a text."""
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return content.decode("utf-8")

    def is_same_as(self, blob_id: str, sha256: str | None) -> bool:
        """Whether the Hub holds it already: by git's SHA-1, or the SHA-256 of a large file."""
        if sha256 is not None and isinstance(self.content, Path):
            return sha256_of(self.content) == sha256
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return git_hash(content) == blob_id


def outgoing_files(
    folder: Path, scratch: Path, max_shard_size: str, base_model: HubName | None
) -> tuple[list[OutgoingFile], list[str]]:
    """The files of a model folder to send, and the names of those that stay here.

    Args:
        folder: of a model, of a checkpoint, or of an adapter.
        scratch: an empty folder, for weights that are split anew.
        max_shard_size: larger files of weights are split, such as "5GB".
        base_model: where the model lies on the Hub that an adapter belongs to.

    Raises:
        ValueError: it is no model folder, its weights are damaged or do not fit its config, something would give
            away a token or a place on this machine.
    """
    if not folder.is_dir():
        raise ValueError(f"--folder_path {folder} is no folder: name the model/ folder of a run.")
    here = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    known = [name for name in here if any(fnmatch(name, pattern) for pattern in (*MODEL_FILES, *KEPT_THERE))]
    if ADAPTER_CONFIG_FILE in known:
        files = _adapter(folder, base_model)
    elif CONFIG_FILE in known:
        if base_model is not None:
            raise ValueError(f"--base_model belongs to adapters, and {folder} holds a whole model: leave it out.")
        files = _model(folder, scratch, max_shard_size)
        known = [name for name in known if not name.endswith(".safetensors") and name != MODEL_INDEX_FILE]
    else:
        shown = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"--folder_path {folder} is no model folder: it holds no {CONFIG_FILE} (but {shown}).")
    for name in known:
        files.setdefault(name, OutgoingFile(name, folder / name))
    for file in files.values():
        _refuse_secrets(file, folder)
    return list(files.values()), [name for name in here if name not in files and not name.endswith(".safetensors")]


def _adapter(folder: Path, base_model: HubName | None) -> dict[str, OutgoingFile]:
    """What names the base of an adapter, with its name on the Hub in place of a folder of this machine."""
    if not (folder / ADAPTER_FILE).exists():
        raise ValueError(f"--folder_path {folder} is an adapter without its weights ({ADAPTER_FILE}).")
    settings = read_json(folder / ADAPTER_CONFIG_FILE)
    named = str(settings.get("base_model_name_or_path"))
    if base_model is None:
        if Path(named).exists() or named.count("/") != 1 or named.startswith((".", "~")):
            raise ValueError(
                f"--folder_path {folder} is an adapter for {named}, which nobody else has: publish that model, "
                "and name it with --base_model namespace/name."
            )
        return {}
    settings |= {"base_model_name_or_path": base_model.repo_id, "revision": base_model.revision}
    texts = {ADAPTER_CONFIG_FILE: _json(settings)}
    for name in (BASE_MODEL_FILE, CARD_FILE):  # peft writes the place into the card
        if (folder / name).exists():
            texts[name] = (folder / name).read_text(encoding="utf-8").replace(named, base_model.repo_id).encode()
    return {name: OutgoingFile(name, text) for name, text in texts.items()}


def _model(folder: Path, scratch: Path, max_shard_size: str) -> dict[str, OutgoingFile]:
    """Config, weights and code of a whole model."""
    config = read_json(folder / CONFIG_FILE)
    config.pop("_name_or_path", None)
    files = []
    if config.get("model_type") == configuration_scratch_gpt.ScratchGPTConfig.model_type:
        _check_weights(folder)
        config["auto_map"] = AUTO_MAP
        files = [OutgoingFile(path.name, path) for path in (Path(str(module.__file__)) for module in CODE)]
    files.append(OutgoingFile(CONFIG_FILE, _json(config)))
    weights = sorted(path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in WEIGHTS))
    if not weights:
        raise ValueError(f"--folder_path {folder} holds no weights (model.safetensors): is the run complete?")
    if any(path.stat().st_size > _bytes(max_shard_size) for path in weights):
        tensors = {name: tensor for path in weights for name, tensor in load_file(path).items()}
        save_torch_state_dict(tensors, scratch, max_shard_size=max_shard_size, metadata={"format": "pt"})
        weights = sorted(scratch.glob("*.safetensors"))
        folder = scratch
    files += [OutgoingFile(path.name, path) for path in weights]
    if len(weights) > 1:
        _check_index(folder, weights)
        files.append(OutgoingFile(MODEL_INDEX_FILE, folder / MODEL_INDEX_FILE))
    return {file.name: file for file in files}


def shapes_of(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): take the model from a checkpoint.") from None


def _check_weights(folder: Path) -> None:
    """Compares the weights with those that the config asks for, without memory for them."""
    config = AutoConfig.from_pretrained(folder)
    architecture = (config.architectures or [""])[0]
    if not hasattr(modeling_scratch_gpt, architecture):
        raise ValueError(
            f"--folder_path {folder}: {CONFIG_FILE} names no class of ours in architectures ({architecture!r})."
        )
    with torch.device("meta"):
        model = getattr(modeling_scratch_gpt, architecture)(config)
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys)
    found: dict[str, list[int]] = {}
    for path in folder.glob("model*.safetensors"):
        found |= shapes_of(path)
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    wrong = [name for name in wrong if not (name in tied and name not in found)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"--folder_path {folder}: {len(wrong)} weights do not fit {CONFIG_FILE}, such as {name}: "
            f"{found.get(name, 'nothing')} in place of {wanted.get(name, 'nothing')}."
        )


def _check_index(folder: Path, weights: list[Path]) -> None:
    if not (folder / MODEL_INDEX_FILE).exists():
        raise ValueError(f"--folder_path {folder} holds {len(weights)} files of weights, but no {MODEL_INDEX_FILE}.")
    listed = read_json(folder / MODEL_INDEX_FILE).get("weight_map", {})
    there = {name: path.name for path in weights for name in shapes_of(path)}
    if listed != there:
        wrong = sorted(name for name in listed.keys() | there.keys() if listed.get(name) != there.get(name))
        raise ValueError(
            f"--folder_path {folder}: {MODEL_INDEX_FILE} does not describe the weights that are there, such as {wrong[0]}."
        )


# Nothing of this machine
def _refuse_secrets(file: OutgoingFile, folder: Path) -> None:
    if not file.name.endswith(TEXTS):
        return
    try:
        text = file.text
    except UnicodeDecodeError:
        raise ValueError(f"{folder / file.name} is not UTF-8 text: it is damaged.") from None
    token = get_token()
    if TOKEN.search(text) or (token and token in text):
        raise ValueError(f"{folder / file.name} holds a token of the Hub: take it out, and revoke it if others saw it.")
    for place in places(folder):
        if found := re.search(f".*{place}.*", text):
            raise ValueError(
                f"{folder / file.name} names a place on this machine: {found[0].strip():.120}. Take it out."
            )


def places(folder: Path) -> Iterator[str]:
    """Regular expressions of paths of this machine that nobody else has a use for.

    A short one, such as /root or /app, may be a word of a vocabulary: it counts only with something below it.
    """
    for path in (folder, folder.resolve(), Path.cwd(), Path.home(), Path(constants.HF_HOME)):
        if path.is_absolute() and len(path.parts) > 1:
            end = "/" if len(path.parts) == 2 else r"(?![\w.-])"
            yield rf"(?<![\w.]){re.escape(path.as_posix())}{end}"


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _bytes(size: str) -> int:
    found = re.fullmatch(r"(\d+) ?([KMGT]?B)", size.strip(), re.IGNORECASE)
    if found is None or int(found[1]) == 0:
        raise ValueError(f"--max_shard_size is {size!r}: give a size such as 5GB or 200MB.")
    return int(found[1]) * 1000 ** ("B", "KB", "MB", "GB", "TB").index(found[2].upper())
