"""Optimizer state as named tensors, and back, however the model is split."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .read import Checkpoint


def optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The state of all optimizers as `{parameter name}.{state name}` -> tensor."""
    name_of: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{name_of[parameter]}.{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizers(model: nn.Module, optimizers: Iterable[Optimizer], checkpoint: Checkpoint) -> None:
    """Restore the optimizer state of a checkpoint.

    Raises:
        ValueError: the checkpoint has state for parameters that no optimizer trains.
    """
    parameter_of = dict(model.named_parameters())
    states: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for full_name, shape in checkpoint.optimizer_shapes().items():
        name, _, key = full_name.rpartition(".")
        parameter = parameter_of.get(name)
        is_same_shape = parameter is not None and parameter.shape == shape
        states[name][key] = torch.zeros_like(parameter) if is_same_shape else torch.zeros(shape)  # type: ignore[arg-type]
    tensors = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    checkpoint.load_optimizer(tensors)
    name_of: dict[Tensor, str] = {parameter: name for name, parameter in parameter_of.items()}
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        names = [name_of[parameter] for parameter in parameters]
        found = {i: states.pop(name) for i, name in enumerate(names) if name in states}
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": found, "param_groups": groups})
    if states:
        raise ValueError(
            f"the checkpoint has optimizer state for {', '.join(sorted(states))}, which this run does not train: "
            "the model or the optimizer differs."
        )
