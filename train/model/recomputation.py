"""What a layer keeps for its backward pass: all activations, most results of its matrix products, or only its input."""

import warnings
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.addmm.default}
ATTENTION = {
    operation: [argument.name for argument in operation._schema.arguments].index("dropout_p")
    for operation in (
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    )
}  # and the position of its dropout among the arguments


def set_gradient_checkpointing(model: PreTrainedModel, how: str) -> None:
    """Choose what the layers of a model keep for the backward pass; they recompute the rest.

    Args:
        how: "false": everything. "selective": their inputs and most results of matrix products and of attention; the
            rest takes little time to compute (https://huggingface.co/papers/2205.05198, section 5). "true": their
            inputs only (https://huggingface.co/papers/1604.06174), which takes a second forward pass.
    """
    if how == "false":
        return
    kwargs: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        kwargs["context_fn"] = partial(create_selective_checkpoint_contexts, keep_products)
    with warnings.catch_warnings():  # the only name that transformers before 5.23 knows too
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(kwargs)


def keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the results of matrix products and of attention, with two exceptions.

    - Products that are narrower than their input: the backward pass does not need that of an MLP's last matrix, and
      grouped keys and values are cheap to compute.
    - Attention with dropout: it must run again to draw its random numbers, or later dropout would draw different ones.
    """
    is_kept = False
    if operation in PRODUCTS:
        width_in, width_out = args[-1].shape
        is_kept = width_out >= width_in
    elif operation in ATTENTION:
        is_kept = not kwargs.get("dropout_p", (*args[ATTENTION[operation] :], 0.0)[0])
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
