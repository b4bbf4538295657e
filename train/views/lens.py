"""The logit lens: what the model would predict if it stopped after an earlier layer.

nostalgebraist, "interpreting GPT: the logit lens" (2020),
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "embedding_norm")
NO_LENS = "The logit lens is not available: where this architecture has its final norm and its head is not known."
TOLERANCE = 1e-3  # of logits that were computed in another order


@dataclass(frozen=True)
class Readout:
    """How a model makes logits of its last residual.

    Attributes:
        norm: the final norm.
        head: the output embedding.
        softcap: logits are squeezed to +-softcap; None: they are not.
    """

    norm: torch.nn.Module
    head: torch.nn.Module
    softcap: float | None

    @torch.no_grad()
    def logits(self, residuals: Tensor) -> Tensor:
        """(..., vocab) of residuals, (..., hidden)."""
        parameter = next(self.head.parameters())
        logits: Any = self.head(self.norm(residuals.to(parameter.device)))
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        found: Tensor = logits.cpu()
        return found

    def explains(self, last: Tensor, logits: Tensor) -> bool:
        """Whether the last residual, (seq, hidden), gives the logits of the model, (seq, vocab)."""
        mine = self.logits(last)
        return mine.shape == logits.shape and torch.allclose(mine, logits.cpu(), atol=TOLERANCE, rtol=TOLERANCE)


def find_readout(model: Any) -> Readout | None:
    """The norm and head of a causal model; None if its architecture names them in an unknown way."""
    head = model.get_output_embeddings()
    base = getattr(model, model.base_model_prefix, model)
    places = [base, getattr(base, "decoder", None)]
    norms = [
        found for place in places for name in NORMS if isinstance(found := getattr(place, name, None), torch.nn.Module)
    ]
    if head is None or not norms:
        return None
    return Readout(norms[0], head, getattr(model.config, "final_logit_softcapping", None))


def residual_norms(residuals: Tensor) -> Tensor:
    """(layers + 1, seq), the length of each residual, (layers + 1, seq, hidden)."""
    norms: Tensor = torch.linalg.vector_norm(residuals.float(), dim=-1)
    return norms
