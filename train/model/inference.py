"""Load a trained model to generate text with it, to evaluate it, or to classify texts."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from ..settings.run_folder import ADAPTER_CONFIG_FILE
from .adapters import base_of_adapter, check_adapter_kind, labels_of_adapter, merge_adapter
from .find import find_model, tokenizer_folder
from .load import check_vocabulary_size, load_config, load_model, load_tokenizer, memory_errors


def load_for_inference(name: str, auto_class: Any = AutoModelForCausalLM) -> tuple[PreTrainedModel, Tokenizer]:
    """The model `name` in evaluation mode, on the GPU if there is one, and its tokenizer.

    An adapter is merged into its base model. A checkpoint of a run has the tokenizer of the run.

    Args:
        auto_class: AutoModelForCausalLM or AutoModelForSequenceClassification.

    Raises:
        ValueError: no such model, another kind of model, missing or damaged weights, an adapter for another model,
            no tokenizer or that of another model, or too little memory.
        OSError: the Hub cannot be reached, or a file cannot be read.
    """
    place, folder = f"--model {name}", find_model("--model", name)
    if (folder / ADAPTER_CONFIG_FILE).exists():
        model = _load_adapted(place, folder, auto_class)
    else:
        model = load_model(place, folder, auto_class, config=load_config(place, folder, as_ours=True))
    tokenizer = load_tokenizer(place, tokenizer_folder(folder))
    check_vocabulary_size(place, tokenizer, model.config)
    with memory_errors(place):
        return on_best_device(model).eval(), tokenizer


def _load_adapted(place: str, folder: Path, auto_class: Any) -> PreTrainedModel:
    check_adapter_kind(place, folder, auto_class)
    base = base_of_adapter(folder)
    is_classifier = auto_class is AutoModelForSequenceClassification
    config = load_config(place, base, **(labels_of_adapter(folder) if is_classifier else {}))
    whose = f"{place} is an adapter whose base model {base}"
    model = load_model(whose, base, auto_class, config=config, new_head=is_classifier)
    merged: PreTrainedModel = merge_adapter(model, folder)
    return merged


def on_best_device(model: Any) -> Any:
    """The model on the GPU, if there is one."""
    return model.cuda() if torch.cuda.is_available() else model
