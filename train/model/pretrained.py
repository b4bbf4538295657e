"""The pretrained model that a fine-tuning run starts from: found, checked, loaded, and what of it is trained."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

import hf_scratch_gpt  # noqa: F401  registers the model's classes

from ..checkpoint.weights import is_adapter
from ..hub.client import HubName
from ..settings.finetuning import REQUIRED_TRAINABLE, BaseArguments
from ..settings.run_folder import ADAPTER_CONFIG_FILE, BASE_MODEL_FILE
from ..settings.seeds import seed_at
from .adapters import base_of_adapter, outdated_names, put_adapter_on, weights_sha256
from .find import find_model, load_model_tokenizer
from .new import new_model, parse_overrides


@dataclass
class BaseModel:
    """A model with its tokenizer, and the name and fingerprint of what it was loaded from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result of a run: it must not change when the run continues."""
        vocabulary = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return {"base": self.fingerprint, "tokenizer_sha256": hashlib.sha256(vocabulary.encode()).hexdigest()}


def load_base(arguments: BaseArguments, seed: int, auto_class: Any, **config: Any) -> BaseModel:
    """Loads the base model with float32 weights; what it lacks, such as a new head, depends on `seed` alone.

    An adapter is merged into the model that it was trained on.

    Args:
        auto_class: AutoModelForCausalLM, AutoModelForSequenceClassification ...
        config: entries for the model's config, such as `num_labels`.

    Raises:
        ValueError: no model, no weights, weights of another model, a tokenizer of another model.
        OSError: a file cannot be read.
    """
    name = arguments.model
    folder = find_model("--model", name, needs_weights=not arguments.random_weights)
    is_adapted = (folder / ADAPTER_CONFIG_FILE).exists()
    if is_adapted and (arguments.random_weights or arguments.trainable == "lora"):
        raise ValueError(
            f"--model {name} is an adapter: it takes neither --random_weights nor another adapter. "
            "Give the model that it was merged into."
        )
    tokenizer = load_model_tokenizer(arguments.tokenizer or str(folder))
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
    model = _load_weights(source, settings, seed, auto_class)
    fingerprint = weights_sha256(source)
    if is_adapted:
        model = put_adapter_on(model, folder).merge_and_unload().requires_grad_(True)
        fingerprint += weights_sha256(folder)
    return BaseModel(model, tokenizer, name, fingerprint)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, arguments: BaseArguments) -> None:
    """Refuses a tokenizer that is not the model's.

    Raises:
        ValueError: it has more tokens than the model, or other special tokens.
    """
    name = arguments.tokenizer or arguments.model
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, but the model {arguments.model} only "
            f"{config.vocab_size}: it is another model's tokenizer. Name the right one with --tokenizer."
        )
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        theirs, ours = getattr(tokenizer, token), getattr(config, token, None)
        if isinstance(ours, int) and theirs is not None and theirs != ours and arguments.tokenizer:
            raise ValueError(
                f"{token} is {theirs} in the tokenizer of {name}, but {ours} in {arguments.model}: "
                "it is another model's tokenizer. Name the right one with --tokenizer."
            )


def _load_weights(folder: Path, config: PreTrainedConfig, seed: int, auto_class: Any) -> PreTrainedModel:
    torch.manual_seed(seed_at(seed, "model"))  # for the weights of a new head
    transformers_logging.disable_progress_bar()
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that a new head has no weights is what we want
    try:
        model, told = auto_class.from_pretrained(
            folder, config=config, trust_remote_code=False, dtype=torch.float32, use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
    except RuntimeError as error:  # sizes differ
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"--model {folder}: the weights do not fit its config ({reason}).") from None
    finally:
        transformers_logging.set_verbosity(before)
    prefix = model.base_model_prefix + "."
    lacking = sorted(key for key in told["missing_keys"] if key.startswith(prefix))
    if lacking:
        raise ValueError(
            f"--model {folder}: {len(lacking)} weights are missing, such as {lacking[0]}: it is not a "
            f"{type(model).__name__}, or its files are not complete."
        )
    loaded: PreTrainedModel = model
    return loaded


# What is trained
def trained_settings(arguments: BaseArguments) -> dict[str, Any]:
    """The settings that decide what is trained: they must not change when a run continues."""
    return {name: getattr(arguments, name) for name in ("trainable", *REQUIRED_TRAINABLE)}


def choose_trained(base: BaseModel, arguments: BaseArguments, new_tokens: list[int]) -> PreTrainedModel:
    """The model in which only what `--trainable` names requires gradients.

    Args:
        new_tokens: ids that pretraining has never seen; adapters learn their embeddings too.

    Raises:
        ValueError: more layers than there are, or nothing to train.
    """
    model = base.model
    if arguments.trainable == "lora":
        return _with_adapters(base, arguments, new_tokens)
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


def _with_adapters(base: BaseModel, arguments: BaseArguments, new_tokens: list[int]) -> Any:
    """https://huggingface.co/papers/2106.09685, from `peft`."""
    from peft import LoraConfig, get_peft_model  # takes a second

    is_classifier = "SequenceClassification" in type(base.model).__name__
    rank = arguments.lora_r or 8
    source = HubName(base.name) if Path(base.name).exists() else HubName.parse(base.name)
    config = LoraConfig(
        task_type="SEQ_CLS" if is_classifier else "CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank if arguments.lora_alpha is None else arguments.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=arguments.lora_dropout or 0.0,
        target_modules="all-linear",
        trainable_token_indices={"embed_tokens": new_tokens} if new_tokens else None,
        revision=source.revision,
    )
    base.model.name_or_path = source.repo_id
    with outdated_names():
        return get_peft_model(base.model, config)


# What is written
def write_adapter(model: Any, base: BaseModel, folder: Path) -> None:
    """Writes an adapter, its tokenizer, and which weights it belongs to."""
    model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    text = json.dumps({"name": base.name, "weights_sha256": base.fingerprint}, indent=2)
    (folder / BASE_MODEL_FILE).write_text(text + "\n", encoding="utf-8")


def write_tuned_model(model: Any, base: BaseModel, folder: Path, weights: dict[str, Tensor], adapter: Path) -> None:
    """Write a fine-tuned model and its tokenizer.

    Args:
        model: with an adapter, it is merged.
        weights: of the whole model, by name.
        adapter: the folder to which an adapter is written too.
    """
    if is_adapter(model):
        write_adapter(model, base, adapter)
        model.merge_and_unload().save_pretrained(folder)
    else:
        model.save_pretrained(folder, state_dict=weights)
    base.tokenizer.save_pretrained(folder)


def load_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the causal language model and the tokenizer that lie in one folder or Hub repository.

    An adapter is put on its base model.

    Raises:
        ValueError: the folder does not exist or holds no model, or an adapter for another one.
    """
    folder = find_model("--model", name)
    is_adapter = (folder / ADAPTER_CONFIG_FILE).exists()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    source = base_of_adapter(folder) if is_adapter else folder
    model: Any = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
    if is_adapter:
        model = put_adapter_on(model, folder).merge_and_unload()
    if torch.cuda.is_available():
        model = model.cuda()
    return model.eval(), tokenizer
