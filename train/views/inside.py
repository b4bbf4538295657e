"""One text through a model, with everything that can be looked at afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .lens import Readout, find_readout


@dataclass(frozen=True)
class Inside:
    """What a model computed for the tokens of one text. All tensors are on the CPU.

    Attributes:
        ids: the tokens.
        logits: (seq, vocab), row i predicts token i + 1.
        residuals: (layers + 1, seq, hidden), the residual stream before the first layer and after each layer, without
            the final norm.
        attentions: (layers, heads, query_seq, key_seq), the weights of eager attention; None if the architecture has
            no attention maps.
        lens: the model's own way from a residual to logits; None if it is not known.
    """

    ids: list[int]
    logits: Tensor
    residuals: Tensor
    attentions: Tensor | None
    lens: Readout | None

    @property
    def probabilities(self) -> Tensor:
        """(seq, vocab), the softmax of the logits."""
        return self.logits.softmax(dim=-1)


@torch.no_grad()
def look_inside(model: Any, ids: Sequence[int], *, attentions: bool = True) -> Inside:
    """Run a causal model over a text.

    The logits are those of the model as it is. The attention maps come from a second pass with eager attention, since
    faster kernels never hold the weights; afterwards the model has its own attention again.

    Args:
        ids: at least one token.
        attentions: whether to compute the attention maps.

    Raises:
        ValueError: there is no token, or the outputs are not finite.
    """
    if not ids:
        raise ValueError("there is no token to look at: give a text.")
    input_ids = torch.tensor([list(ids)], device=model.device)  # (1, seq)
    readout = find_readout(model)
    with last_residual(readout) as found:
        output = model(input_ids, output_hidden_states=True, use_cache=False)
    if not output.logits.isfinite().all():
        raise ValueError("the outputs of the model are not finite: its weights are damaged.")
    # transformers lists the last residual after the final norm
    residuals = [*output.hidden_states[:-1], found[-1] if found else output.hidden_states[-1]]
    logits = output.logits[0]
    return Inside(
        ids=[int(number) for number in ids],
        logits=logits.cpu(),
        residuals=torch.stack([one[0].cpu() for one in residuals]),
        attentions=attention_maps(model, input_ids) if attentions else None,
        lens=readout if readout is not None and readout.explains(residuals[-1][0], logits) else None,
    )


@contextmanager
def last_residual(readout: Readout | None) -> Iterator[list[Tensor]]:
    """Collects what the final norm is given during the block, (batch, seq, hidden)."""
    found: list[Tensor] = []
    if readout is None:
        yield found
        return
    handle = readout.norm.register_forward_pre_hook(lambda norm, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def attention_maps(model: Any, input_ids: Tensor) -> Tensor | None:
    """(layers, heads, query_seq, key_seq) of one text, (1, seq), with eager attention; None if there are none."""
    with eager_attention(model):
        output = model(input_ids, output_attentions=True, use_cache=False)
    found = [one for one in getattr(output, "attentions", None) or () if one is not None]
    if not found or any(one.shape != found[0].shape for one in found):
        return None
    return torch.stack([one[0].float().cpu() for one in found])


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """The model with attention that holds its weights. Others must not use the model during the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
