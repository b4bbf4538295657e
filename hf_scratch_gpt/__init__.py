"""A GPT written from scratch that works everywhere a Hugging Face model does.

Importing this package registers its classes with transformers' Auto classes, so that for example
`AutoModelForCausalLM.from_pretrained` and `pipeline` load models with `model_type = "scratch_gpt"`. PEFT's adapters get
default target modules.
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
from .integrations import register_with_peft
from .modeling_scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForQuestionAnswering,
    ScratchGPTForSequenceClassification,
    ScratchGPTForTokenClassification,
    ScratchGPTModel,
    ScratchGPTPreTrainedModel,
)
from .tokenization_scratch_gpt import ScratchGPTTokenizer, register_for_auto_tokenizer
from .tokenizer_formats import open_tokenizer

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
    _model_class.register_for_auto_class(_auto_class.__name__)  # makes save_pretrained copy the code
ScratchGPTConfig.register_for_auto_class()
register_with_peft()

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
    "open_tokenizer",
]
