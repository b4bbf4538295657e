"""Load a trained model to generate text with it or to evaluate it."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..settings.run_folder import ADAPTER_CONFIG_FILE
from .adapters import base_of_adapter, merge_adapter
from .find import find_model


def load_for_inference(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model `name` in evaluation mode, on the GPU if there is one, and its tokenizer.

    An adapter is merged into its base model.

    Raises:
        ValueError: no such model, or an adapter for another model.
        OSError: the Hub cannot be reached, or a file cannot be read.
    """
    folder = find_model("--model", name)
    is_adapted = (folder / ADAPTER_CONFIG_FILE).exists()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    source = base_of_adapter(folder) if is_adapted else folder
    model: Any = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
    if is_adapted:
        model = merge_adapter(model, folder)
    if torch.cuda.is_available():
        model = model.cuda()
    return model.eval(), tokenizer
