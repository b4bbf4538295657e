"""AdamW, and Muon for the matrices of the layers."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from ..distributed.parallel import local, own_part, whole

# Coefficients of the quintic of https://kellerjordan.github.io/posts/muon: it is so steep at 0 that a few rounds bring
# most singular values near 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def build_optimizers(
    model: nn.Module,
    *,
    optimizer: str,
    learning_rate: float,
    matrix_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    momentum: float = 0.95,
    matrix_dtype: torch.dtype = torch.float32,
) -> list[Optimizer]:
    """AdamW, and with `optimizer="muon"` also Muon for the matrices of the layers.

    Weight decay applies to parameters with two or more dimensions, not to norms and biases. Every group has a
    `peak_learning_rate`, from which the loop sets `lr` at each step.

    Args:
        matrix_learning_rate: peak learning rate of Muon; None: `learning_rate`, because Muon's updates have the size of
            AdamW's.
        momentum: of Muon.
        matrix_dtype: number format in which Muon orthogonalizes.
    """
    matrices = layer_matrices(model) if optimizer == "muon" else []
    in_muon = set(matrices)
    rest = [p for p in model.parameters() if p.requires_grad and p not in in_muon]
    groups = defaultdict(list)  # one fused call cannot update tensors that are split in different ways
    for parameter in rest:
        groups[parameter.ndim >= 2, getattr(parameter, "device_mesh", None)].append(parameter)
    decays = [{"params": group, "weight_decay": weight_decay * is_matrix} for (is_matrix, _), group in groups.items()]
    optimizers: list[Optimizer] = [AdamW(decays, lr=learning_rate, betas=betas, fused=True)]
    if matrices:
        rate = learning_rate if matrix_learning_rate is None else matrix_learning_rate
        optimizers.append(Muon(matrices, rate, momentum=momentum, weight_decay=weight_decay, dtype=matrix_dtype))
    for group in (group for one in optimizers for group in one.param_groups):
        group["peak_learning_rate"] = group["lr"]
    return optimizers


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices of the layers: everything in an `nn.ModuleList`.

    Embeddings and the output head are matrices too, but each of their rows belongs to one token and is trained like a
    vector.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    tables = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    found = dict.fromkeys(p for stack in stacks for p in stack.parameters())
    return [p for p in found if p.ndim == 2 and p.requires_grad and p not in tables]


class Muon(Optimizer):
    """SGD with momentum and orthogonalized updates: W <- (1 - lr * decay) W - lr * 0.2 sqrt(max(n, m)) O.

    O is the orthogonal matrix nearest to the Nesterov momentum (https://kellerjordan.github.io/posts/muon). The factor
    0.2 sqrt(max(n, m)) gives the update the root mean square of AdamW's, so both use the same learning rate
    (https://huggingface.co/papers/2502.16982). The update is that of torch.optim.Muon with
    adjust_lr_fn="match_rms_adamw", except for O: `orthogonalize` comes near to it in its own way, for all matrices of
    equal shape together, and in `dtype`. torch always uses bfloat16, which takes 3 times as long on CPUs without
    bfloat16 units.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        self.found_inf: Tensor | None = None  # 1.0: the next steps change nothing, as in torch's fused optimizers
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim != 2:
                raise ValueError(f"Muon trains matrices, not a tensor of shape {tuple(parameter.shape)}.")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient. `closure` must be None."""
        if closure is not None:
            raise ValueError("Muon does not support a closure.")
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:  # whole matrices of one shape can be split into parts of several
                    same_shape[parameter.shape, local(parameter).shape].append(parameter)
            for parameters in same_shape.values():
                self._update(parameters, group)
        return None

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [local(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        gradients = [local(p.grad) for p in parameters if p.grad is not None]  # all have one
        self._move(buffers, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
        matrices = [whole(_like(part, p)) for part, p in zip(nesterov, parameters, strict=True)]
        updates = orthogonalize(torch.stack(matrices).to(self.dtype)).to(
            parameters[0].dtype
        )  # (matrices, rows, columns)
        size = 0.2 * max(parameters[0].shape) ** 0.5
        decay: float | Tensor = 1 - group["lr"] * group["weight_decay"]
        if self.found_inf is not None:
            is_skipped = self.found_inf.bool()
            updates = updates.masked_fill(is_skipped, 0.0)
            decay = torch.where(is_skipped, 1.0, decay)
        weights = [local(parameter) for parameter in parameters]
        parts = [own_part(update, p) for update, p in zip(updates, parameters, strict=True)]
        torch._foreach_mul_(weights, decay)
        torch._foreach_add_(weights, parts, alpha=-group["lr"] * size)

    def _move(self, buffers: list[Tensor], gradients: list[Tensor], weight: float) -> None:
        """Move momentum towards gradients of one shape, unless the step is skipped."""
        if self.found_inf is None:
            torch._foreach_lerp_(buffers, gradients, weight)
            return
        moved = torch.stack(torch._foreach_lerp(buffers, gradients, weight))
        torch._foreach_copy_(buffers, list(torch.where(self.found_inf.bool(), torch.stack(buffers), moved)))


def _like(part: Tensor, parameter: Tensor) -> Tensor:
    """The part of a tensor that this process has, as a tensor that is split like `parameter`."""
    if not isinstance(parameter, DTensor):
        return part
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )


def orthogonalize(matrices: Tensor, rounds: int = 3) -> Tensor:
    """Bring most singular values near 1 (0.7 to 1.2) by Newton-Schulz iterations; (batch, rows, columns).

    A round is X <- (a + b G + c G^2) X with the Gram matrix G = X X^T. It multiplies small singular values by 3.4, so a
    tight upper bound at the start saves rounds. The usual bound is the Frobenius norm of X, the square root of the sum
    of s^2 over all singular values s. The first round needs the Gram matrix X X^T anyway, and the root of its norm is
    the fourth root of the sum of s^4: for 128 equal values, 3.4 instead of 11.3 times their size.
    """
    is_tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if is_tall else matrices
    gram = x @ x.mT
    bound = gram.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-14)
    x, gram = x * bound.rsqrt(), gram / bound
    # in bfloat16, products of Gram matrices would double the rounding errors
    is_precise = torch.finfo(x.dtype).bits >= 32
    if is_precise and x.size(-1) >= 2 * x.size(-2):
        x = _newton_schulz_of(gram, rounds) @ x
    else:
        linear, cubic, quintic = NEWTON_SCHULZ
        for number in range(rounds):
            gram = x @ x.mT if number else gram
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x.mT if is_tall else x


def _newton_schulz_of(gram: Tensor, rounds: int) -> Tensor:
    """The product of the factors P = a + b G + c G^2 of all rounds, (batch, rows, rows).

    The Gram matrix of P X is P G P, so the rounds do without X: for 128 x 344, three quarters of the operations.
    """
    product = factor = _factor(gram)
    for _ in range(rounds - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    return product


def _factor(gram: Tensor) -> Tensor:
    linear, cubic, quintic = NEWTON_SCHULZ
    factor = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
    factor.diagonal(dim1=-2, dim2=-1).add_(linear)
    return factor
