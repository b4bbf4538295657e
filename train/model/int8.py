"""Weights of 8 bits for inference: half the memory of bfloat16, and on CPUs nearly half its time per token.

To generate a token of one sequence, a CPU reads every weight once and does little else, so the time is that of reading
them. Every row of a matrix is divided by its largest magnitude and rounded to whole numbers of 8 bits
(https://huggingface.co/papers/2208.07339, the vector-wise quantization of weights). Activations are not quantized.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..distributed.device import has_bfloat16_hardware

LARGEST = 127
ROWS_AT_ONCE = 4096  # rows that are quantized together, in float32
FEW_ROWS = 16  # for more, it is faster to convert the weights and multiply in floating point
KERNEL_BLOCK = 32  # the kernel reads beyond the end of rows of another length
HAS_BFLOAT16 = has_bfloat16_hardware(torch.device("cpu"))


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to 8 bits per number.

    Args:
        weight: (rows, columns).

    Returns:
        Whole numbers, (rows, columns), and the scale of each row in the dtype of `weight`, (rows,): their product is
        the matrix, up to half a scale per number.
    """
    numbers = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    scales = torch.empty_like(weight[:, 0])
    for start in range(0, len(weight), ROWS_AT_ONCE):
        block = weight[start : start + ROWS_AT_ONCE].float()  # (block, columns)
        scale = (block.abs().amax(dim=1) / LARGEST).to(weight.dtype)  # (block,)
        scale = scale.where(scale != 0, 1)  # 1 for a row of zeros; NaN stays, and shows that weights are damaged
        numbers[start : start + ROWS_AT_ONCE] = (block / scale[:, None]).round_().clamp_(-LARGEST, LARGEST)
        scales[start : start + ROWS_AT_ONCE] = scale
    return numbers, scales


class Int8Weight(nn.Module):
    """A matrix of 8 bits per number, from which a layer computes.

    Args:
        weight: whole numbers, (rows, columns).
        scale: of each row, (rows,), in the dtype of the results.
    """

    def __init__(self, weight: nn.Parameter, scale: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale

    def extra_repr(self) -> str:
        """The shape, for `print(model)`."""
        return f"{tuple(self.weight.shape)}, {self.scale.dtype}"


class Int8Embedding(Int8Weight):
    """As nn.Embedding."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows with these ids, (..., columns)."""
        return self.weight[ids] * self.scale[ids][..., None]


class Int8Linear(Int8Weight):
    """As nn.Linear.

    For a few rows on a CPU, torch multiplies bfloat16 with 8 bits and adds in float32. Otherwise the weights are
    converted first, which costs time and memory, but little of the product with many rows.
    """

    kernel_scale: torch.Tensor

    def __init__(self, weight: nn.Parameter, scale: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__(weight, scale)
        self.bias = bias
        self.has_kernel = weight.shape[1] % KERNEL_BLOCK == 0
        self.register_buffer("kernel_scale", scale.detach().to(torch.bfloat16), persistent=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., columns) to (..., rows)."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        is_few = self.has_kernel and rows.shape[0] <= FEW_ROWS and rows.is_cpu
        product = self._multiply_few(rows) if is_few else self._multiply_many(rows)
        return product.view(*hidden_states.shape[:-1], -1)

    def _multiply_few(self, rows: torch.Tensor) -> torch.Tensor:
        few = torch._weight_int8pack_mm(rows.bfloat16().contiguous(), self.weight, self.kernel_scale)
        product = few.type_as(rows)
        return product if self.bias is None else product + self.bias

    def _multiply_many(self, rows: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if rows.is_cpu and not HAS_BFLOAT16 else rows.dtype
        weight = self.weight.to(dtype) * self.scale[:, None].to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(rows.to(dtype), weight, bias).to(rows.dtype)


class Int8Quantizer(HfQuantizer):
    """Tells transformers that a model is quantized, so that it refuses to save or train it."""

    def __init__(self) -> None:
        super().__init__(QuantizationConfigMixin(quant_method="int8"), pre_quantized=False)  # type: ignore[arg-type]

    def is_serializable(self) -> bool:
        """Only the original weights are saved."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Whole numbers have no gradient."""
        return False

    @property
    def is_compileable(self) -> bool:
        """All operations can be compiled."""
        return True


def quantize_model(model: PreTrainedModel) -> None:
    """Round the token embedding and the matrices of all linear layers to 8 bits, in place.

    One matrix after another, each freed before the next, so the peak of memory is that of loading the model. A head
    that is tied to the embedding stays so. Norms, biases and position embeddings keep their type.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is nn.Embedding:
        table = quantized(embedding.weight)
        if type(head) is nn.Linear and head.weight is embedding.weight:
            model.set_output_embeddings(Int8Linear(*table, head.bias))
        model.set_input_embeddings(Int8Embedding(*table))
    del embedding, head
    for name in [name for name, module in model.named_modules() if type(module) is nn.Linear]:
        linear: Any = model.get_submodule(name)
        model.set_submodule(name, Int8Linear(*quantized(linear.weight), linear.bias))
    model.hf_quantizer = Int8Quantizer()  # type: ignore[assignment]


def quantized(weight: torch.Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """`quantize_rows` as parameters, which are counted and moved with the model."""
    numbers, scales = quantize_rows(weight.detach())
    return nn.Parameter(numbers, requires_grad=False), nn.Parameter(scales, requires_grad=False)
