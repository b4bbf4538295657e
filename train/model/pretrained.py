"""The pretrained model that fine-tuning starts from: load it, choose its trained parameters, write the result."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..checkpoint.weights import is_adapter
from ..settings.finetuning import REQUIRED_TRAINABLE, BaseArguments
from ..settings.run_folder import ADAPTER_CONFIG_FILE
from ..settings.seeds import seed_at
from .adapters import add_adapter, base_of_adapter, merge_adapter, write_adapter
from .find import find_model, weights_sha256
from .new import new_model, parse_overrides


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
        vocabulary = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return {"base": self.fingerprint, "tokenizer_sha256": hashlib.sha256(vocabulary.encode()).hexdigest()}


def load_base(arguments: BaseArguments, seed: int, auto_class: Any, **config: Any) -> BaseModel:
    """Load the base model with float32 weights. New weights, such as a head, depend only on `seed`.

    An adapter is merged into its base model.

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
    tokenizer = load_base_tokenizer(arguments.tokenizer or str(folder))
    source = base_of_adapter(folder) if is_adapted else folder
    overrides = parse_overrides(arguments.config_overrides or "")
    settings = AutoConfig.from_pretrained(source, trust_remote_code=False)
    for key in overrides:
        if not hasattr(settings, key):
            raise ValueError(f"--config_overrides sets {key}, which the config of {source} does not have.")
    settings = AutoConfig.from_pretrained(source, trust_remote_code=False, **overrides, **config)
    check_vocabulary(tokenizer, settings, arguments)
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    if arguments.random_weights:
        return BaseModel(new_model(settings, seed, auto_class), tokenizer, name, "random weights")
    model = load_weights(source, settings, seed, auto_class)
    fingerprint = weights_sha256(source)
    if is_adapted:
        model = merge_adapter(model, folder).requires_grad_(True)
        fingerprint += weights_sha256(folder)
    return BaseModel(model, tokenizer, name, fingerprint)


def load_base_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or on the Hub. If it has no pad_token, eos_token is used for padding.

    Raises:
        ValueError: no tokenizer, or one with neither of these tokens.
    """
    path = Path(name)
    if path.is_dir() and not (path / "tokenizer_config.json").exists():
        raise ValueError(f"{name} has no tokenizer: give its folder with --tokenizer.")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {name} has neither a pad_token nor an eos_token: add one.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, arguments: BaseArguments) -> None:
    """Refuse a tokenizer that belongs to another model.

    Raises:
        ValueError: it has more tokens than the model, or other special tokens.
    """
    name = arguments.tokenizer or arguments.model
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, but the model {arguments.model} has only "
            f"{config.vocab_size}: it is another model's tokenizer. Give the right one with --tokenizer."
        )
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        theirs, ours = getattr(tokenizer, token), getattr(config, token, None)
        if isinstance(ours, int) and theirs is not None and theirs != ours and arguments.tokenizer:
            raise ValueError(
                f"{token} is {theirs} in the tokenizer of {name}, but {ours} in {arguments.model}: "
                "it is another model's tokenizer. Give the right one with --tokenizer."
            )


def load_weights(folder: Path, config: PreTrainedConfig, seed: int, auto_class: Any) -> PreTrainedModel:
    """The model in `folder` with float32 weights and the given config.

    Raises:
        ValueError: weights are missing or do not fit the config.
    """
    torch.manual_seed(seed_at(seed, "model"))  # for the weights of a new head
    transformers_logging.disable_progress_bar()
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # no warning that a new head has no weights
    try:
        model, loading_info = auto_class.from_pretrained(
            folder, config=config, trust_remote_code=False, dtype=torch.float32, use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
    except RuntimeError as error:  # sizes differ
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"--model {folder}: the weights do not fit its config ({reason}).") from None
    finally:
        transformers_logging.set_verbosity(before)
    prefix = model.base_model_prefix + "."
    missing = sorted(key for key in loading_info["missing_keys"] if key.startswith(prefix))
    if missing:
        raise ValueError(
            f"--model {folder}: {len(missing)} weights are missing, such as {missing[0]}: it is not a "
            f"{type(model).__name__}, or its files are incomplete."
        )
    loaded: PreTrainedModel = model
    return loaded


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
        base.tokenizer.save_pretrained(adapter)
        model.merge_and_unload().save_pretrained(folder)
    else:
        model.save_pretrained(folder, state_dict=weights)
    base.tokenizer.save_pretrained(folder)
