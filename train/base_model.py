"""The pretrained model that a fine-tuning run starts from: found, checked, loaded, and what of it is trained."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from .build import new_model, parse_overrides
from .checkpoint import ADAPTER_FILE, is_adapter, safetensors_names
from .download import pull_or_cached
from .hub import HubName
from .manifest import read_json, sha256_of
from .run import Run
from .schedule import seed_at
from .tuning import OF_TRAINABLE, BaseArguments

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FOLDER = "adapter"
BASE_FILE = "base_model.json"  # beside an adapter of ours: the fingerprint of the weights that it was trained on


@dataclass
class BaseModel:
    """A model with its tokenizer, and the name and fingerprint of what it was loaded from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str

    @property
    def facts(self) -> dict[str, Any]:
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
    is_adapted = (folder / ADAPTER_CONFIG).exists()
    if is_adapted and (arguments.random_weights or arguments.trainable == "lora"):
        raise ValueError(
            f"--model {name} is an adapter: it takes neither --random_weights nor another adapter. "
            "Give the model that it was merged into."
        )
    tokenizer = load_tokenizer(arguments.tokenizer or str(folder))
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


def find_model(option: str, name: str, needs_weights: bool = True) -> Path:
    """The folder of a model: as named, or where a model of the Hub was downloaded to and verified.

    Raises:
        ValueError: what is missing.
        OSError: the Hub cannot be reached, the disk is full.
    """
    folder = Path(name)
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ValueError(f"{option} {name} does not exist; train.quickstart makes runs/quickstart/run/model.")
        folder = pull_or_cached(HubName.parse(name))
    found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    shown = ", ".join(found[:8]) or "nothing"
    if ADAPTER_CONFIG in found:
        return folder
    if "config.json" not in found:
        raise ValueError(f"{option} {name} is no model folder: it holds no config.json (but {shown}).")
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{option} {name} is of the type {model_type}, which neither this project nor transformers knows; "
            "code that lies beside the weights is not run."
        )
    if needs_weights and not any(entry.endswith(".safetensors") for entry in found):
        raise ValueError(
            f"{option} {name} holds no weights (*.safetensors, but {shown}): give the folder of a trained model. "
            "(Fine-tuning can also begin with new weights: --random_weights true.)"
        )
    return folder


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a token to pad with.

    Raises:
        ValueError: the folder has none.
    """
    path = Path(name)
    if path.is_dir() and not (path / "tokenizer_config.json").exists():
        raise ValueError(f"{name} holds no tokenizer: name its folder with --tokenizer.")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {name} has neither a pad_token nor an eos_token: give it one.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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


def weights_sha256(folder: Path) -> str:
    """Identity of the weights in a folder: of each file its name and hash."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


# What is trained


def trained_facts(arguments: BaseArguments) -> dict[str, Any]:
    """The settings that decide what is trained: they must not change when a run continues."""
    return {name: getattr(arguments, name) for name in ("trainable", *OF_TRAINABLE)}


def choose_trained(base: BaseModel, arguments: BaseArguments, new_tokens: list[int]) -> PreTrainedModel:
    """The model in which only what `--trainable` names requires gradients.

    Args:
        new_tokens: ids that pretraining has never seen; adapters learn their embeddings too.

    Raises:
        ValueError: more blocks than there are, or nothing to train.
    """
    model = base.model
    if arguments.trainable == "lora":
        return _with_adapters(base, arguments, new_tokens)
    if arguments.trainable == "all":
        return model
    model.base_model.requires_grad_(False)
    if arguments.trainable == "blocks":
        blocks: Any = model.base_model.layers
        count = arguments.num_blocks or 1
        if count > len(blocks):
            raise ValueError(f"--num_blocks is {count}, but the model has {len(blocks)} blocks.")
        for part in [*blocks[len(blocks) - count :], model.base_model.norm]:
            part.requires_grad_(True)
    elif not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("--trainable head: the head of this model is its embedding table; train blocks, lora or all.")
    return model


def _with_adapters(base: BaseModel, arguments: BaseArguments, new_tokens: list[int]) -> Any:
    """https://huggingface.co/papers/2106.09685, from `peft`."""
    from peft import LoraConfig, get_peft_model  # takes a second

    is_classifier = "SequenceClassification" in type(base.model).__name__
    rank = arguments.lora_rank or 8
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


@contextmanager
def outdated_names() -> Iterator[None]:
    """PEFT asks transformers for `is_gradient_checkpointing`, which is called differently since 5.23."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


# What is written


def write_weights(run: Run, base: BaseModel, folder: Path, weights: dict[str, Tensor]) -> None:
    """Writes the tuned model; of adapters, the model that they are merged into, and the adapters beside the run."""
    model = run.bare_model
    if is_adapter(model):
        write_adapter(model, base, run.folder / ADAPTER_FOLDER)
        model.merge_and_unload().save_pretrained(folder)
    else:
        model.save_pretrained(folder, state_dict=weights)
    run.tokenizer.save_pretrained(folder)


def write_adapter(model: Any, base: BaseModel, folder: Path) -> None:
    """Writes an adapter, its tokenizer, and which weights it belongs to."""
    model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    text = json.dumps({"name": base.name, "weights_sha256": base.fingerprint}, indent=2)
    (folder / BASE_FILE).write_text(text + "\n", encoding="utf-8")


def base_of_adapter(folder: Path) -> Path:
    """Where the base model of an adapter lies.

    Raises:
        ValueError: it is gone, or no longer has the weights that the adapter was trained on.
        OSError: as `find_model`.
    """
    settings = read_json(folder / ADAPTER_CONFIG)
    name = settings.get("base_model_name_or_path") or ""
    revision = settings.get("revision")
    found = find_model(f"{folder} is an adapter for another model:", f"{name}@{revision}" if revision else name)
    noted = folder / BASE_FILE
    expected = read_json(noted)["weights_sha256"] if noted.exists() else None
    if expected is not None and weights_sha256(found) != expected:
        raise ValueError(
            f"{folder} is an adapter for other weights than those in {name}: set base_model_name_or_path in its "
            f"{ADAPTER_CONFIG} to the model that it was trained on."
        )
    return found


def put_adapter_on(model: nn.Module, folder: Path) -> Any:
    """The model with an adapter.

    Raises:
        ValueError: it is an adapter for another model.
    """
    from peft import PeftModel, get_peft_model_state_dict  # takes a second

    if not (folder / ADAPTER_FILE).exists():
        raise ValueError(f"{folder} is an adapter without its weights ({ADAPTER_FILE}); pickles are not loaded.")
    try:
        with outdated_names():
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError) as error:  # sizes differ; no module of that name
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{folder} is an adapter for another model ({reason}).") from None
    saved, there = set(safetensors_names(folder / ADAPTER_FILE)), set(get_peft_model_state_dict(adapted))
    if saved != there:  # PEFT leaves out weights that the model has no place for, and makes new ones where it has more
        raise ValueError(
            f"{folder} is an adapter for another model: {len(saved - there)} of its weights have no place in this one, "
            f"such as {min(saved ^ there)}, and {len(there - saved)} are missing."
        )
    return adapted
