"""Load a trained model to generate text with it, to evaluate it, or to classify texts."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from ..settings.run_folder import ADAPTER_CONFIG_FILE
from .adapters import base_of_adapter, check_adapter_kind, labels_of_adapter, merge_adapter
from .find import find_model, tokenizer_folder
from .int8 import quantize_model
from .load import (
    check_vocabulary_size,
    load_config,
    load_model,
    load_tokenizer,
    memory_errors,
    quantization_of,
    refuse_quantized,
)


def load_for_inference(
    name: str,
    auto_class: Any = AutoModelForCausalLM,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
) -> tuple[PreTrainedModel, Tokenizer]:
    """As `load_found`, for the model with the name or folder that --model gives.

    Raises:
        ValueError: no such model, or as `load_found`.
        OSError: the Hub cannot be reached, or a file cannot be read.
    """
    folder = find_model("--model", name)
    return load_found(f"--model {name}", folder, auto_class, device=device, dtype=dtype, quantization=quantization)


def load_found(
    place: str,
    folder: Path,
    auto_class: Any = AutoModelForCausalLM,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
) -> tuple[PreTrainedModel, Tokenizer]:
    """The model in `folder` in evaluation mode, and its tokenizer.

    An adapter is merged into its base model. A checkpoint of a run has the tokenizer of the run.

    Args:
        place: the option and its value, for error messages; the folder of a model on the Hub is in the cache.
        auto_class: AutoModelForCausalLM or AutoModelForSequenceClassification.
        device: such as "cpu" (default: the GPU if there is one).
        dtype: such as "bfloat16" (default: that of the stored weights).
        quantization: "int8", or None.

    Raises:
        ValueError: another kind of model, missing or damaged weights, weights that are quantized already, an adapter
            for another model, no tokenizer or that of another model, no such device, or too little memory.
        OSError: a file cannot be read.
    """
    method = quantization_of(folder)
    if quantization and method:
        raise ValueError(f"--quantization {quantization}: {place} was quantized with {method} already. Remove it.")
    if (folder / ADAPTER_CONFIG_FILE).exists():
        model = _load_adapted(place, folder, auto_class)
    else:
        model = load_model(place, folder, auto_class, config=load_config(place, folder, as_ours=True))
    tokenizer = load_tokenizer(place, tokenizer_folder(folder))
    check_vocabulary_size(place, tokenizer, model.config)
    with memory_errors(place):
        model = model if dtype is None else model.to(getattr(torch, dtype))
        if quantization:
            quantize_model(model)
        placed: PreTrainedModel = on_best_device(model) if device is None else on_device(model, device)
        return placed.eval(), tokenizer


def _load_adapted(place: str, folder: Path, auto_class: Any) -> PreTrainedModel:
    check_adapter_kind(place, folder, auto_class)
    base_name, base = base_of_adapter(place, folder)
    is_classifier = auto_class is AutoModelForSequenceClassification
    config = load_config(place, base, **(labels_of_adapter(place, folder) if is_classifier else {}))
    whose = f"{place} is an adapter whose base model {base_name}"
    refuse_quantized(whose, base, "merged with it")
    model = load_model(whose, base, auto_class, config=config, new_head=is_classifier)
    merged: PreTrainedModel = merge_adapter(model, place, folder)
    return merged


def on_best_device(model: Any) -> Any:
    """The model on the GPU, if there is one."""
    return model.cuda() if torch.cuda.is_available() else model


def on_device(model: Any, device: str) -> Any:
    """The model on a device.

    Raises:
        ValueError: this machine has no such device.
    """
    try:
        return model.to(device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from None
