"""Load a model for one use, and refuse a folder with another kind of model or without some of its weights.

Every command loads models with `load_model`: transformers itself fills missing weights with random numbers.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from hf_scratch_gpt import ScratchGPTConfig
from hf_scratch_gpt.conversion import UnsupportedModelError, load_imported, our_config
from hf_scratch_gpt.tokenizer_formats import is_tokenizer, open_tokenizer

from ..checkpoint.weights import safetensors_names
from ..distributed.device import is_out_of_memory
from ..settings.json_files import read_json
from ..settings.run_folder import CONFIG_FILE, MODEL_INDEX_FILE
from ..settings.words import counted, shown_names

USES = {AutoModelForCausalLM: "language model", AutoModelForSequenceClassification: "classifier"}
LANGUAGE_MODEL_SUFFIXES = ("ForCausalLM", "LMHeadModel")
CLASSIFIER_SUFFIX = "ForSequenceClassification"
# a tokenizer has at least one of these; tokenizer.json alone does not say which tokens are special
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")

QUANTIZERS = ("bitsandbytes", "torchao")  # quant_method in config.json, and the name of the package

COPY_TOKENIZER = "copy tokenizer.json and tokenizer_config.json of the model into this folder."


def load_model(
    place: str,
    folder: Path,
    auto_class: Any,
    *,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype | None = None,
    new_head: bool = False,
    all_used: bool = True,
) -> PreTrainedModel:
    """The model in `folder`, with all its weights.

    Args:
        place: the option and its value, for error messages, such as "--model runs/tiny/model".
        auto_class: AutoModelForCausalLM or AutoModelForSequenceClassification.
        config: instead of that in the folder.
        dtype: of the weights (default: as they are stored).
        new_head: whether weights outside of the base model may be missing, except in a classifier. Then they are
            random.
        all_used: whether to refuse weights of the base model that the config has no place for.

    Raises:
        ValueError: another kind of model, a damaged file, weights that are missing or do not fit the config, or more
            of them than this machine has memory.
    """
    if config is None:
        config = load_config(place, folder)
    check_kind(place, config, auto_class, new_head)
    new_head = new_head and not _architecture(config).endswith(CLASSIFIER_SUFFIX)  # whose head is kept
    check_files(place, folder, dtype)
    with _quiet_transformers(), memory_errors(place):
        if isinstance(config, ScratchGPTConfig) and stored_type(folder) != ScratchGPTConfig.model_type:
            model_class = auto_class._model_mapping[type(config)]
            model, loading_info = _imported(place, folder, config, model_class.__name__, dtype)
        else:
            model, loading_info = auto_class.from_pretrained(
                folder, config=config, trust_remote_code=False, use_safetensors=True, ignore_mismatched_sizes=True,
                output_loading_info=True, **({} if dtype is None else {"dtype": dtype}),
            )  # fmt: skip
    _check_loaded(place, model, loading_info, new_head, all_used)
    loaded: PreTrainedModel = model
    return loaded


def _imported(
    place: str, folder: Path, config: ScratchGPTConfig, our_class: str, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, Any]:
    """The model of another family in a folder, as one of ours, and what `from_pretrained` says of its weights."""
    try:
        loaded = load_imported(folder, config, our_class, dtype)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if os.environ.get("RANK", "0") == "0":
        kind = stored_type(folder)
        print(f"{place} is a {kind} model: its weights were imported into a {our_class}", file=sys.stderr)
    return loaded


def stored_type(folder: Path) -> str:
    """The model_type in the config.json of a folder."""
    return str(read_json(folder / CONFIG_FILE).get("model_type"))


def check_model(place: str, folder: Path) -> None:
    """Refuse a folder that does not contain the whole model that its config names.

    Raises:
        ValueError: as `load_model`.
    """
    config = load_config(place, folder)
    architecture = _architecture(config)
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise ValueError(f"{place}: the architecture in its config.json is {architecture!r}, which transformers lacks.")
    check_files(place, folder)
    with _quiet_transformers(), memory_errors(place):
        model, loading_info = model_class.from_pretrained(
            folder, config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    _check_loaded(place, model, loading_info, new_head=False, all_used=True)


def load_config(place: str, folder: Path, *, as_ours: bool = False, **changes: Any) -> PreTrainedConfig:
    """The config in `folder`, with some values changed.

    Args:
        as_ours: whether that of a GPT-2, Llama, Qwen2 or Qwen3 model becomes a `ScratchGPTConfig`, if one can express
            the model. `load_model` then imports its weights.

    Raises:
        ValueError: values that are not valid for this type of model, or quantized weights whose library is missing.
    """
    config: PreTrainedConfig
    check_quantization(place, folder)
    try:
        if as_ours and (ours := _as_ours(folder)):
            config = ScratchGPTConfig.from_dict(ours.to_dict(), **changes)
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **changes)
    except (StrictDataclassError, ValueError, KeyError, TypeError, AttributeError) as error:
        if changes:  # a mistake in --config_overrides, which the message names
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{place}: its config.json is not valid ({reason}).") from None
    return config


def quantization_of(folder: Path) -> str | None:
    """The library that the weights in a folder were quantized with, such as bitsandbytes; None: they are not."""
    settings = read_json(folder / CONFIG_FILE).get("quantization_config") if (folder / CONFIG_FILE).exists() else None
    return str(settings.get("quant_method", "an unknown method")) if isinstance(settings, dict) else None


def check_quantization(place: str, folder: Path) -> None:
    """Refuse weights that were quantized with a library that is not installed.

    Raises:
        ValueError: the library is missing.
    """
    method = quantization_of(folder)
    if method == "bitsandbytes":  # which else says at every layer of every step that it casts the inputs
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if method in QUANTIZERS and importlib.util.find_spec(method) is None:
        raise ValueError(f"{place} was quantized with {method}, which is not installed: pip install {method}")


def refuse_quantized(place: str, folder: Path, use: str) -> None:
    """Refuse quantized weights where only the original ones are of use.

    Args:
        use: what cannot be done with them.

    Raises:
        ValueError: the weights are quantized.
    """
    if method := quantization_of(folder):
        raise ValueError(f"{place} was quantized with {method} and cannot be {use}: give the model it was made from.")


def _as_ours(folder: Path) -> ScratchGPTConfig | None:
    """Our config for the model of another family in a folder, if it can express the model."""
    try:
        return our_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except UnsupportedModelError:
        return None


def check_kind(place: str, config: PreTrainedConfig, auto_class: Any, new_head: bool = False) -> None:
    """Refuse a model of another kind, whose head would be random.

    Raises:
        ValueError: the kind of model that it is, and the command for it.
    """
    name = place.rpartition(" ")[2]
    architecture = _architecture(config)
    shown = architecture or config.model_type
    if type(config) not in auto_class._model_mapping:
        raise ValueError(f"{place} is not a {USES[auto_class]}: {shown} is another kind of model. Choose another one.")
    if new_head or not architecture or architecture == auto_class._model_mapping[type(config)].__name__:
        return
    if auto_class is AutoModelForSequenceClassification:
        if architecture.endswith(LANGUAGE_MODEL_SUFFIXES):
            raise ValueError(
                f"{place} is a language model ({shown}), not a classifier: make one with "
                f"scratch-gpt finetune_classifier --model {name}."
            )
    elif architecture.endswith(CLASSIFIER_SUFFIX):
        raise ValueError(
            f"{place} is a classifier ({shown}), not a language model: use it with scratch-gpt classify --model {name}."
        )
    if not architecture.endswith(("Model", *LANGUAGE_MODEL_SUFFIXES, CLASSIFIER_SUFFIX)):
        raise ValueError(f"{place} is not a {USES[auto_class]}: {shown} is another kind of model. Choose another one.")


def _architecture(config: PreTrainedConfig) -> str:
    """The class of the model; empty if the config does not name it."""
    return str((config.architectures or [""])[0])


def check_files(place: str, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Refuse damaged or missing weights files, and more weights than this machine has memory.

    Raises:
        ValueError: the file, or both sizes.
    """
    index = folder / MODEL_INDEX_FILE
    if index.exists():
        names = sorted(set(read_json(index, {"weight_map": {str: str}})["weight_map"].values()))
    else:
        names = sorted(path.name for path in folder.glob("model*.safetensors"))
    for name in names:
        if not (folder / name).exists():
            raise ValueError(f"{place}: {name} is missing, which {MODEL_INDEX_FILE} lists: copy or download it again.")
        try:
            safetensors_names(folder / name)
        except SafetensorError as error:
            raise ValueError(f"{place}: {name} is damaged ({error}): copy or download it again.") from None
    num_bytes = sum((folder / name).stat().st_size for name in names)
    stored = read_json(folder / CONFIG_FILE).get("dtype")
    if dtype is torch.float32 and stored in ("bfloat16", "float16"):
        num_bytes *= 2
    if num_bytes > memory_bytes():
        raise ValueError(
            f"{place} needs {num_bytes / 1e9:.1f} GB of memory for its weights, but this machine has "
            f"{memory_bytes() / 1e9:.1f} GB: choose a smaller model."
        )


def memory_bytes() -> int:
    """The main memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_loaded(place: str, model: PreTrainedModel, info: Any, new_head: bool, all_used: bool) -> None:
    prefix = model.base_model_prefix + "."
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise ValueError(
            f"{place} has {counted(len(mismatched), 'weight')} of another size than its config says, such as "
            f"{name}: found {tuple(found)}, expected {tuple(expected)}."
        )
    absent, tied = set(info["missing_keys"]), model.all_tied_weights_keys
    missing = sorted(key for key in absent if tied.get(key) not in absent and (not new_head or key.startswith(prefix)))
    if missing:
        raise ValueError(
            f"{place} lacks {counted(len(missing), 'weight')} ({shown_names(missing)}). Its files are "
            f"incomplete, or it is not a {type(model).__name__}."
        )
    unused = sorted(key for key in info["unexpected_keys"] if key.startswith(prefix))
    if unused and all_used:
        raise ValueError(
            f"{place}: its config.json has no place for {counted(len(unused), 'weight')} ({shown_names(unused)}): "
            "it is the config of another model."
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars, and no report on weights: `load_model` checks them itself."""
    before = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@contextmanager
def memory_errors(place: str) -> Iterator[None]:
    """Turn the errors of a full memory into one sentence.

    Raises:
        ValueError: there is not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"{place} does not fit into memory: choose a smaller model.") from None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def load_tokenizer(
    place: str, folder: Path, remedy: str = COPY_TOKENIZER, any_format: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Args:
        remedy: what to do if there is none.
        any_format: whether it may be one of another library, or a tokenizer.json alone. Its special tokens are known by
            their names only, so that of a model must not be.

    Raises:
        ValueError: there is none, or its files are damaged.
    """
    if not has_tokenizer(folder):
        if any_format and is_tokenizer(folder):
            return open_tokenizer(folder)
        raise ValueError(f"{place} has no tokenizer: {remedy}")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises a plain Exception for a damaged file
        raise ValueError(f"{place}: its tokenizer cannot be loaded ({' '.join(str(error).split())}).") from None
    return tokenizer


def check_vocabulary_size(place: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Refuse a tokenizer with more tokens than the model.

    Raises:
        ValueError: both numbers.
    """
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {place} has {len(tokenizer)} tokens, but the model has only {config.vocab_size}: "
            "it is another model's tokenizer. Use the one that the model was trained with."
        )
