"""LoRA adapters, from `peft`: add one to a model, write it, and merge it into its base model."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from ..checkpoint.weights import safetensors_names, safetensors_shapes
from ..hub.client import HubName
from ..settings.finetuning import BaseArguments
from ..settings.json_files import read_json
from ..settings.run_folder import ADAPTER_CONFIG_FILE, ADAPTER_FILE, BASE_MODEL_FILE
from .find import find_model, weights_sha256


def add_adapter(model: PreTrainedModel, name: str, arguments: BaseArguments, new_tokens: list[int]) -> Any:
    """The model with a new LoRA adapter (https://huggingface.co/papers/2106.09685) for all matrices.

    Args:
        model: the base model.
        name: its folder or its name on the Hub, which the adapter records.
        arguments: rank, scale and dropout.
        new_tokens: ids whose embeddings are trained too.
    """
    from peft import LoraConfig, get_peft_model  # takes a second to import

    rank = arguments.lora_r or 8
    source = HubName(name) if Path(name).exists() else HubName.parse(name)
    config = LoraConfig(
        task_type="SEQ_CLS" if "SequenceClassification" in type(model).__name__ else "CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank if arguments.lora_alpha is None else arguments.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=arguments.lora_dropout or 0.0,
        target_modules="all-linear",
        trainable_token_indices={"embed_tokens": new_tokens} if new_tokens else None,
        revision=source.revision,
    )
    model.name_or_path = source.repo_id
    with ignored_peft_warning():
        return get_peft_model(model, config)


def write_adapter(model: Any, folder: Path, base: str, base_sha256: str) -> None:
    """Write an adapter, and the name and hash of the weights that it belongs to; of a classifier, also its labels."""
    model.save_pretrained(folder)
    facts: dict[str, Any] = {"name": base, "weights_sha256": base_sha256}
    if is_classifier(folder):
        facts["labels"] = [name for _, name in sorted(model.config.id2label.items())]
    text = json.dumps(facts, indent=2)
    (folder / BASE_MODEL_FILE).write_text(text + "\n", encoding="utf-8")


def base_of_adapter(place: str, folder: Path) -> tuple[str, Path]:
    """The name of the base model of an adapter, and its folder.

    Args:
        place: the option and its value, for error messages.

    Raises:
        ValueError: it does not exist, or its weights are not those that the adapter was trained on.
        OSError: as `find_model`.
    """
    names = {"base_model_name_or_path?": str | None, "revision?": str | None}
    settings = read_json(folder / ADAPTER_CONFIG_FILE, names)
    name = settings.get("base_model_name_or_path") or ""
    if revision := settings.get("revision"):
        name = f"{name}@{revision}"
    found = find_model(f"{place} is an adapter whose base model", name)
    record = folder / BASE_MODEL_FILE
    if record.exists() and weights_sha256(found) != read_json(record, {"weights_sha256": str})["weights_sha256"]:
        raise ValueError(
            f"{place} is an adapter for other weights than those in {name}: set base_model_name_or_path in its "
            f"{ADAPTER_CONFIG_FILE} to the model that it was trained on."
        )
    return name, found


def is_classifier(folder: Path) -> bool:
    """Whether an adapter turns its base model into a classifier."""
    return bool(read_json(folder / ADAPTER_CONFIG_FILE).get("task_type") == "SEQ_CLS")


def check_adapter_kind(place: str, folder: Path, auto_class: Any) -> None:
    """Refuse the adapter of a classifier as a language model, and vice versa.

    Raises:
        ValueError: the kind of the adapter, and the command for it.
    """
    is_wanted = auto_class is AutoModelForSequenceClassification
    if is_classifier(folder) == is_wanted:
        return
    name = place.rpartition(" ")[2]
    if is_wanted:
        raise ValueError(f"{place} is the adapter of a language model, not of a classifier: choose another one.")
    raise ValueError(
        f"{place} is the adapter of a classifier, not of a language model: use it with "
        f"scratch-gpt classify --model {name}."
    )


def labels_of_adapter(place: str, folder: Path) -> dict[str, Any]:
    """The number and names of the labels of a classifier's adapter, as entries of the config.

    Raises:
        ValueError: the adapter has no head.
    """
    record = folder / BASE_MODEL_FILE
    names = read_json(record, {"labels?": [str]}).get("labels") if record.exists() else None
    if names is None:  # an adapter of another program
        heads = [
            shape
            for name, shape in safetensors_shapes(folder / ADAPTER_FILE).items()
            if name.endswith((".score.weight", ".classifier.weight"))
        ]
        if not heads:
            raise ValueError(f"{place} is the adapter of a classifier without its head: its files are incomplete.")
        names = [f"LABEL_{number}" for number in range(heads[0][0])]
    numbered = dict(enumerate(names))
    return {"num_labels": len(names), "id2label": numbered, "label2id": {name: i for i, name in numbered.items()}}


def merge_adapter(model: nn.Module, place: str, folder: Path) -> Any:
    """The model with the adapter in `folder` merged into its weights.

    Raises:
        ValueError: the adapter has no safetensors file, or belongs to another model.
    """
    from peft import PeftModel, get_peft_model_state_dict  # takes a second to import

    if not (folder / ADAPTER_FILE).exists():
        raise ValueError(f"{place} is an adapter without {ADAPTER_FILE}; weights in pickles are not loaded.")
    try:
        with ignored_peft_warning():
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError) as error:  # other sizes, or no module of that name
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{place} is an adapter for another model ({reason}).") from None
    # PEFT ignores weights that do not match a module, and initializes those that are missing
    saved, expected = set(safetensors_names(folder / ADAPTER_FILE)), set(get_peft_model_state_dict(adapted))
    if saved != expected:
        raise ValueError(
            f"{place} is an adapter for another model: {len(saved - expected)} of its weights do not match this one, "
            f"such as {min(saved ^ expected)}, and {len(expected - saved)} are missing."
        )
    return adapted.merge_and_unload()


@contextmanager
def ignored_peft_warning() -> Iterator[None]:
    """Ignore a warning: PEFT uses `is_gradient_checkpointing`, which transformers 5.23 renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
