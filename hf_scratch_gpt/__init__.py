"""A GPT written from scratch that is a transformers model like any other.

Importing this package registers its classes with transformers' Auto classes (and with PEFT's default LoRA targets), so
that `AutoModelForCausalLM.from_pretrained` and `pipeline` know `model_type = "scratch_gpt"`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ._version import __version__
from .configuration_scratch_gpt import PRESETS, ScratchGPTConfig
from .integrations import on_import, register_adapter_targets
from .modeling_scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForQuestionAnswering,
    ScratchGPTForSequenceClassification,
    ScratchGPTForTokenClassification,
    ScratchGPTModel,
    ScratchGPTPreTrainedModel,
)
from .tokenization_scratch_gpt import ScratchGPTTokenizer, register_for_auto_tokenizer

AutoConfig.register(ScratchGPTConfig.model_type, ScratchGPTConfig, exist_ok=True)
register_for_auto_tokenizer(ScratchGPTConfig)
for _auto_class, _model_class in (
    (AutoModel, ScratchGPTModel),
    (AutoModelForCausalLM, ScratchGPTForCausalLM),
    (AutoModelForSequenceClassification, ScratchGPTForSequenceClassification),
    (AutoModelForTokenClassification, ScratchGPTForTokenClassification),
    (AutoModelForQuestionAnswering, ScratchGPTForQuestionAnswering),
):
    _auto_class.register(ScratchGPTConfig, _model_class, exist_ok=True)
    _model_class.register_for_auto_class(_auto_class.__name__)  # save_pretrained then copies the code
ScratchGPTConfig.register_for_auto_class()
on_import("peft.utils.constants", register_adapter_targets)

__all__ = [
    "PRESETS",
    "ScratchGPTConfig",
    "ScratchGPTForCausalLM",
    "ScratchGPTForQuestionAnswering",
    "ScratchGPTForSequenceClassification",
    "ScratchGPTForTokenClassification",
    "ScratchGPTModel",
    "ScratchGPTPreTrainedModel",
    "ScratchGPTTokenizer",
    "__version__",
]
