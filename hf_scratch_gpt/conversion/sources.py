"""Where tensors come from: a folder of safetensors files, or memory. Shapes are known before a tensor is read."""

import json
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

SAFETENSORS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Source(ABC):
    """Tensors by name: their shapes and types are known at once, and each is read when it is needed."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """One tensor."""


class SafetensorsFolder(Source):
    """The tensors of model.safetensors, or of the files that its index lists.

    A file is opened anew for each tensor, because the pages of an open file that were read stay in memory.

    Raises:
        ValueError: no such file, a missing or damaged one, or a tensor that the index lists is missing.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.files: dict[str, Path] = {}
        weight_map = _weight_map(folder)
        for name in sorted(set(weight_map.values())) if weight_map else [SAFETENSORS_FILE]:
            self._add(folder / name)
        if lost := sorted(set(weight_map) - set(self.shapes)):
            raise ValueError(
                f"{folder}: {INDEX_FILE} lists {', '.join(lost)}, but {weight_map[lost[0]]} lacks it: copy or download "
                "the files again."
            )

    def _add(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  not a mapping
                    part = file.get_slice(name)
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = DTYPES[part.get_dtype()]
                    self.files[name] = path
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): copy or download it again.") from None
        except KeyError as error:
            raise ValueError(f"{path} has tensors of type {error.args[0]}; allowed: {', '.join(DTYPES)}.") from None

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        with safe_open(self.files[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _weight_map(folder: Path) -> dict[str, str]:
    """The file of each tensor, from the index; empty if all are in one file."""
    index = folder / INDEX_FILE
    if not index.exists():
        if not (folder / SAFETENSORS_FILE).exists():
            raise ValueError(f"{folder} {without_weights(folder)}")
        return {}
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged ({error}): copy or download it again.") from None
    if absent := [name for name in files if not (folder / name).exists()]:
        raise ValueError(f"{folder}: {INDEX_FILE} lists {', '.join(absent)}, which is missing: copy or download it.")
    return dict(weight_map)


def without_weights(folder: Path) -> str:
    """Why a folder has no weights that can be read, as the end of a sentence."""
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"has its weights in a pickle ({pickles[0]}), which can run any code when it is read. If you trust it, "
            "rewrite it with AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )
    return f"has no weights: {SAFETENSORS_FILE} is missing."
