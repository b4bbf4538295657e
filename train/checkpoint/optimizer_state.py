"""Optimizer state as named tensors, and back, however the model is split."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .read import Checkpoint

# what an optimizer remembers of each parameter, by its class
STATES = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}


def optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The state of all optimizers as `{parameter name}.{state name}` -> tensor."""
    name_of: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{name_of[parameter]}.{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizers(model: nn.Module, optimizers: Iterable[Optimizer], checkpoint: Checkpoint) -> list[str]:
    """Restore the optimizer state of a checkpoint.

    Returns the names of the parameters whose state was made by another optimizer, and so starts anew.

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
    foreign: list[str] = []
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        names = [name_of[parameter] for parameter in parameters]
        found = {i: states.pop(name) for i, name in enumerate(names) if name in states}
        foreign += [names[i] for i, state in found.items() if not fits(optimizer, state)]
        found = {i: state for i, state in found.items() if fits(optimizer, state)}
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": found, "param_groups": groups})
    if states:
        raise ValueError(
            f"the checkpoint has optimizer state for {', '.join(sorted(states))}, which this run does not train: "
            "the model or the optimizer differs."
        )
    return foreign


def fits(optimizer: Optimizer, state: Mapping[str, Tensor]) -> bool:
    """Whether a parameter's state was made by this kind of optimizer."""
    return set(state) == STATES.get(type(optimizer).__name__, set(state))
