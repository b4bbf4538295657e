"""The weights of a model as named tensors: of a whole model, a split one, or only its adapter."""

from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from ..settings.run_folder import ADAPTER_FILE


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, each once; tied weights have their first name."""
    weights = dict(model.named_parameters())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    return {name: tensor.detach() for name, tensor in (weights | buffers).items()}


def is_adapter(model: nn.Module) -> bool:
    """Whether the model is a `peft` adapter around a base model. Then only the adapter is saved."""
    return hasattr(model, "peft_config")


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Copy the weights of a saved adapter into `model`, in place.

    Raises:
        RuntimeError: names or shapes differ.
    """
    from peft import set_peft_model_state_dict  # takes a second to import

    outcome: Any = set_peft_model_state_dict(model, safetensors.torch.load_file(folder / ADAPTER_FILE))
    if outcome.unexpected_keys:
        raise RuntimeError(f"unknown weights {', '.join(outcome.unexpected_keys[:3])}")


def safetensors_names(path: Path) -> list[str]:
    """The tensor names of a safetensors file."""
    with safetensors.safe_open(path, "pt") as file:
        return list(file.keys())


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file."""
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  not a mapping
