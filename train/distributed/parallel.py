"""How processes share a model: data-parallel replicas x FSDP2 shards x tensor parallelism, by torch.distributed.

    world size = replicas x dp_shard_size x tp_size

    dp_shard_size = tp_size = 1     plain data parallelism (DDP), through Accelerate
    dp_shard_size = world size      FSDP2: weights, gradients and optimizer state are sharded (ZeRO-3, or ZeRO-2 with
                                    reshard_after_forward=False)
    1 < dp_shard_size < world size  HSDP: sharded within a group of processes, replicated between the groups
    tp_size > 1                     the matrices of each layer are split by the model's tensor-parallel plan

All of them train on the same examples and compute the same loss; only the rounding differs.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from .device import wide_dtype


@dataclass(frozen=True)
class Grid:
    """The position of this process among all; processes of one tensor-parallel group read the same examples."""

    mesh: DeviceMesh | None = None  # ("replicate", "shard", "tensor"); None: nothing is split
    data_index: int = 0  # the share of the examples that this process reads
    data_size: int = 1  # number of shares
    tensor_size: int = 1


def build_grid(accelerator: Accelerator, dp_shard_size: int = 1, tp_size: int = 1) -> Grid:
    """Arrange all processes in a mesh. Tensor parallelism uses neighboring ranks, which share a machine.

    Raises:
        ValueError: as `check_grid`.
    """
    world, index = accelerator.num_processes, accelerator.process_index
    check_grid(world, dp_shard_size, tp_size)
    if dp_shard_size == tp_size == 1:
        return Grid(None, index, world)
    shape = (world // (dp_shard_size * tp_size), dp_shard_size, tp_size)
    mesh = init_device_mesh(accelerator.device.type, shape, mesh_dim_names=("replicate", "shard", "tensor"))
    return Grid(mesh, index // tp_size, world // tp_size, tp_size)


def check_grid(num_processes: int, dp_shard_size: int, tp_size: int) -> None:
    """Refuse a number of processes that cannot be arranged.

    Raises:
        ValueError: it is not a multiple of `dp_shard_size * tp_size`.
    """
    if num_processes % (dp_shard_size * tp_size):
        raise ValueError(
            f"--dp_shard_size ({dp_shard_size}) x --tp_size ({tp_size}) = {dp_shard_size * tp_size} must divide the "
            f"number of processes ({num_processes}): change them, or set accelerate launch --num_processes."
        )


def split_model(
    model: PreTrainedModel, grid: Grid, dtype: torch.dtype = torch.float32, *, reshard_after_forward: bool = True
) -> None:
    """Split a model in place. Every process must have the whole model, with equal weights.

    Args:
        dtype: number format in which FSDP2 gathers weights and computes; gradients are summed in float32.
        reshard_after_forward: False: FSDP2 keeps gathered weights until the backward pass.

    Raises:
        ValueError: `tp_size` does not divide the number of heads or the width of the MLP.
    """
    if grid.mesh is None:
        return
    if grid.tensor_size > 1:
        _split_matrices(model, grid.mesh["tensor"])
    if grid.data_size > 1:
        replicas = grid.mesh["replicate"].size()
        data_mesh = grid.mesh["replicate", "shard"] if replicas > 1 else grid.mesh["shard"]
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        layers: Any = model.base_model.layers
        for layer in layers:
            fully_shard(layer, mesh=data_mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
        fully_shard(model, mesh=data_mesh, mp_policy=policy)  # embeddings, last norm and head


def _split_matrices(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Split the layers by `config.base_model_tp_plan`; embeddings and head stay whole on every process."""
    config, size = model.config, mesh.size()
    published: dict[str, str] = config.base_model_tp_plan or {}
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % size:
            raise ValueError(f"--tp_size ({size}) must divide {name} ({getattr(config, name)}): change one of them.")
    if config.attention_dropout:
        raise ValueError(
            f"attention_dropout ({config.attention_dropout}) does not work with --tp_size {size}: all processes "
            "would drop the same entries. Set it to 0 with --config_overrides attention_dropout=0."
        )
    styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    plan = {pattern: styles[style]() for pattern, style in published.items() if style in styles}
    names = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name, _ in model.named_modules()}
    prefix = model.base_model_prefix
    parallelize_module(model.base_model, mesh, {p: style for p, style in plan.items() if f"{prefix}.{p}" in names})
    for name, module in model.base_model.named_modules():
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        if published.get(pattern) == "replicated_with_grad_allreduce":
            module.has_partial_gradients = True  # FSDP2 replaces parameters, not modules


def finish_gradients(model: nn.Module, grid: Grid) -> None:
    """Sum the gradients of weights that each tensor-parallel process has used for its own heads only."""
    if grid.mesh is None or grid.tensor_size == 1:
        return
    group = grid.mesh["tensor"].get_group()
    for module in model.modules():
        if getattr(module, "has_partial_gradients", False):
            for parameter in module.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(local(parameter.grad), group=group)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale split gradients down to a total norm of `max_norm`; returns their norm before, ()."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    squares: dict[Any, Tensor] = defaultdict(lambda: torch.zeros((), device=local(gradients[0]).device))
    for gradient in gradients:
        squares[_shard_groups(gradient)] += local(gradient).float().square().sum()
    for groups, total in squares.items():
        for group in groups:
            dist.all_reduce(total, group=group)
    norm = torch.stack(list(squares.values())).sum().sqrt()
    scale = (max_norm / (norm.to(wide_dtype(norm.device)) + 1e-6)).clamp(max=1).float()
    torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
    return norm


def _shard_groups(tensor: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The process groups over which a tensor is split."""
    if not isinstance(tensor, DTensor):
        return ()
    mesh = tensor.device_mesh
    split = [dim for dim, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    return tuple(mesh.get_group(dim) for dim in split)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered from the processes that have its parts; all of them must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole `tensor` that this process has of `like`."""
    if not isinstance(like, DTensor):
        return tensor
    copies = [Replicate()] * like.device_mesh.ndim
    return (
        DTensor.from_local(tensor, like.device_mesh, copies, run_check=False)
        .redistribute(placements=like.placements)
        .to_local()
    )


def free_gathered(model: nn.Module) -> None:
    """Free the weights that FSDP2 has gathered for a forward pass without a backward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_split(model: nn.Module) -> bool:
    """Whether each process has only a part of the model."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
