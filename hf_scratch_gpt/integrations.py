"""What PEFT and vLLM must know about our models.

PEFT may be imported before this package, after it, or never. It has no function to register a model, only dictionaries:
one per adapter type with its default target modules, and one with the functions of AdaptionPrompt. Importing PEFT here
would add more than a second to the import of this package, so an import hook waits for the modules that define these
dictionaries.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from .modeling_scratch_gpt import (
    ScratchGPTAttention,
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
    rotate,
)


def register_with_peft() -> None:
    """Add our entries to PEFT's dictionaries: now if PEFT is loaded, else when it is imported."""
    for name, add_entries in PEFT_MODULES.items():
        if name in sys.modules:
            add_entries(sys.modules[name])
        else:
            sys.meta_path.insert(0, _PeftHook(name, add_entries))


def _add_targets(peft_defaults: ModuleType) -> None:
    """Copy the targets of Llama, whose projections have the same names."""
    for name, targets in vars(peft_defaults).items():
        if name.endswith("_MODULES_MAPPING") and "llama" in targets:
            targets.setdefault("scratch_gpt", targets["llama"])


def _add_adaption_prompt(adaption_prompt: ModuleType) -> None:
    """Copy the names of Llama's projections, but compute queries as our attention does."""
    entries = adaption_prompt.TRANSFORMERS_MODEL_CONFIG
    entries.setdefault("scratch_gpt", entries["llama"]._replace(compute_query_states=compute_query_states))


def compute_query_states(
    model: ScratchGPTAttention,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """The queries of an attention module, (batch, heads, seq, head_dim), from its input, (batch, seq, hidden).

    Raises:
        ValueError: the module has biases; PEFT would add that of the output projection twice, even before training.
    """
    if model.o_proj.bias is not None:
        raise ValueError("AdaptionPrompt requires a model with attention_bias=False; use another adapter, such as LoRA")
    batch, seq, _ = hidden_states.shape
    query: torch.Tensor = model.q_norm(model.q_proj(hidden_states).view(batch, seq, -1, model.head_dim))
    if position_embeddings is not None:
        query = rotate(query, *position_embeddings)
    return query.transpose(1, 2)


PEFT_MODULES: dict[str, Callable[[ModuleType], None]] = {
    "peft.utils.constants": _add_targets,
    "peft.tuners.adaption_prompt.config": _add_adaption_prompt,
}


class _PeftHook(MetaPathFinder, Loader):
    """Loads one module as usual, then adds our entries; the hook removes itself before that."""

    def __init__(self, name: str, add_entries: Callable[[ModuleType], None]) -> None:
        self.name, self.add_entries = name, add_entries

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.add_entries(module)


def register_with_vllm() -> None:
    """Put our classes where vLLM's Transformers backend looks for them: into the module `transformers`.

    This is the entry point in the group `vllm.general_plugins`, which vLLM calls in each of its processes. With it,
    vLLM needs no `--trust-remote-code`.
    """
    importlib.import_module("transformers.processing_utils")  # replaces the module `transformers`, so it comes first
    for model_class in (ScratchGPTModel, ScratchGPTForCausalLM, ScratchGPTForSequenceClassification):
        setattr(sys.modules["transformers"], model_class.__name__, model_class)
