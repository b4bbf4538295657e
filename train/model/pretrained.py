"""The pretrained model that fine-tuning starts from: load it, choose its trained parameters, write the result."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..checkpoint.weights import is_adapter
from ..data.tokens import save_tokenizer
from ..settings.finetuning import REQUIRED_TRAINABLE, BaseArguments
from ..settings.run_folder import ADAPTER_CONFIG_FILE
from ..settings.seeds import seed_at
from .adapters import add_adapter, base_of_adapter, check_adapter_kind, merge_adapter, write_adapter
from .find import find_model, find_tokenizer, tokenizer_folder, weights_sha256
from .load import check_vocabulary_size, has_tokenizer, load_config, load_model, load_tokenizer, refuse_quantized
from .new import new_model, parse_overrides
from .vocabulary import num_different_ids, vocabulary_sha256


@dataclass
class BaseModel:
    """A pretrained model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str  # its folder, or its name on the Hub
    fingerprint: str  # of its weights

    @property
    def identity(self) -> dict[str, Any]:
        """Hashes of weights and vocabulary, which must not change when a run continues."""
        return {"base": self.fingerprint, "tokenizer_sha256": vocabulary_sha256(self.tokenizer.get_vocab())}


def load_base(arguments: BaseArguments, seed: int, auto_class: Any, **config: Any) -> BaseModel:
    """Load the base model with float32 weights. New weights, such as a head, depend only on `seed`.

    An adapter is merged into its base model. A GPT-2, Llama, Qwen2 or Qwen3 model becomes one of ours, unless it gets
    an adapter: an adapter has to fit the model that others load.

    Args:
        auto_class: AutoModelForCausalLM, AutoModelForSequenceClassification ...
        config: entries for the model's config, such as `num_labels`.

    Raises:
        ValueError: no such model, no weights, or weights or a tokenizer of another model.
        OSError: the Hub cannot be reached, or a file cannot be read.
    """
    name = arguments.model
    folder = find_model("--model", name, needs_weights=not arguments.random_weights)
    is_adapted = (folder / ADAPTER_CONFIG_FILE).exists()
    if is_adapted and (arguments.random_weights or arguments.trainable == "lora"):
        raise ValueError(
            f"--model {name} is an adapter: it takes neither --random_weights nor another adapter. "
            "Give the model that it was merged into."
        )
    tokenizer = load_base_tokenizer(arguments, folder)
    source_name, source = base_of_adapter(f"--model {name}", folder) if is_adapted else (name, folder)
    refuse_quantized(f"--model {name}", source, "fine-tuned")
    overrides = parse_overrides(arguments.config_overrides or "")
    as_ours = not is_adapted and arguments.trainable != "lora"
    settings = load_config(f"--model {name}", source, as_ours=as_ours)
    for key in overrides:
        if not hasattr(settings, key):
            raise ValueError(f"--config_overrides sets {key}, which the config of {source_name} does not have.")
    settings = load_config(f"--model {name}", source, as_ours=as_ours, **overrides, **config)
    check_vocabulary(tokenizer, settings, arguments)
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    if arguments.random_weights:
        return BaseModel(new_model(settings, seed, auto_class), tokenizer, name, "random weights")
    torch.manual_seed(seed_at(seed, "model"))  # for the weights of a new head
    needs_head = auto_class is AutoModelForSequenceClassification
    if is_adapted and not needs_head:
        check_adapter_kind(f"--model {name}", folder, auto_class)
    model = load_model(
        f"--model {name}" if source == folder else f"the base model {source_name}", source, auto_class, config=settings,
        dtype=torch.float32, new_head=needs_head, all_used=not overrides,
    )  # fmt: skip
    fingerprint = weights_sha256(source)
    if is_adapted:
        model = merge_adapter(model, f"--model {name}", folder).requires_grad_(True)
        fingerprint += weights_sha256(folder)
    return BaseModel(model, tokenizer, name, fingerprint)


def load_base_tokenizer(arguments: BaseArguments, folder: Path) -> PreTrainedTokenizerBase:
    """`--tokenizer`, or the tokenizer in the folder of the model. Without a pad_token, eos_token is used for padding.

    Raises:
        ValueError: no tokenizer, one of another model, or one with neither of these tokens.
    """
    name = arguments.tokenizer or arguments.model
    own = tokenizer_folder(folder)
    if arguments.tokenizer:
        found = find_tokenizer("--tokenizer", name)
        tokenizer = load_tokenizer(f"--tokenizer {name}", found, any_format=True)
        if has_tokenizer(own) and not arguments.random_weights:
            check_same_ids(arguments, tokenizer, load_tokenizer(f"--model {arguments.model}", own))
    else:
        tokenizer = load_tokenizer(f"--model {name}", own, "give its folder with --tokenizer.")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {name} has neither a pad_token nor an eos_token: add one.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_same_ids(arguments: BaseArguments, tokenizer: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer in which a token of the model's own tokenizer has another id. More tokens are allowed.

    Raises:
        ValueError: the number of such tokens.
    """
    num_different = num_different_ids(tokenizer, own)
    if num_different:
        raise ValueError(
            f"--tokenizer {arguments.tokenizer}: {num_different:,} of the {len(own):,} tokens of "
            f"{arguments.model} are missing or have another id: it is another model's tokenizer. Leave out --tokenizer."
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, arguments: BaseArguments) -> None:
    """Refuse a tokenizer that belongs to another model.

    Raises:
        ValueError: it has more tokens than the model, or other special tokens.
    """
    name = arguments.tokenizer or arguments.model
    check_vocabulary_size(name, tokenizer, config)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        theirs, ours = getattr(tokenizer, token), getattr(config, token, None)
        if isinstance(ours, int) and theirs is not None and theirs != ours and arguments.tokenizer:
            raise ValueError(
                f"{token} is {theirs} in the tokenizer of {name}, but {ours} in {arguments.model}: "
                "it is another model's tokenizer. Give the right one with --tokenizer."
            )


def trained_settings(arguments: BaseArguments) -> dict[str, Any]:
    """The settings that select the trained parameters, which must not change when a run continues."""
    return {name: getattr(arguments, name) for name in ("trainable", *REQUIRED_TRAINABLE)}


def choose_trained(base: BaseModel, arguments: BaseArguments, new_tokens: list[int]) -> PreTrainedModel:
    """The model in which only the parameters selected by `--trainable` require gradients.

    It is taken out of `base`: nothing but the run may have it, because it must not outlive the process group.

    Args:
        new_tokens: ids that the base model was not trained on; with adapters their embeddings are trained too.

    Raises:
        ValueError: more layers than the model has, or nothing to train.
    """
    model = base.model
    del base.model
    if arguments.trainable == "lora":
        adapted: PreTrainedModel = add_adapter(model, base.name, arguments, new_tokens)
        return adapted
    if arguments.trainable == "all":
        return model
    model.base_model.requires_grad_(False)
    if arguments.trainable == "layers":
        layers: Any = model.base_model.layers
        count = arguments.num_trainable_layers or 1
        if count > len(layers):
            raise ValueError(f"--num_trainable_layers is {count}, but the model has {len(layers)} layers.")
        for part in [*layers[len(layers) - count :], model.base_model.norm]:
            part.requires_grad_(True)
    elif not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("--trainable head: the head of this model is its embedding table; train layers, lora or all.")
    return model


def write_tuned_model(model: Any, base: BaseModel, folder: Path, weights: dict[str, Tensor], adapter: Path) -> None:
    """Write a fine-tuned model and its tokenizer.

    Args:
        model: the trained model; if it has an adapter, the merged model is written.
        folder: where to write.
        weights: all weights of a model without an adapter, by name.
        adapter: where to write an adapter on its own.
    """
    if is_adapter(model):
        write_adapter(model, adapter, base.name, base.fingerprint)
        save_tokenizer(base.tokenizer, adapter)
        model.merge_and_unload().save_pretrained(folder)
    else:
        model.save_pretrained(folder, state_dict=weights)
    save_tokenizer(base.tokenizer, folder)
