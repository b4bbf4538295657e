"""Convert a folder with a model of another family into one of ours, and the other way around."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, GPT2Tokenizer, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from .. import modeling_scratch_gpt
from ..configuration_scratch_gpt import ScratchGPTConfig
from .families import HEADS, LANGUAGE_MODEL, Family, UnsupportedModelError
from .gpt2 import GPT2
from .llama import LLAMA, QWEN2, QWEN3
from .openai import ENCODER_FILE, MERGES_FILE, OPENAI_GPT2, OpenAICheckpoint, is_openai_folder, openai_config
from .plan import Recipe, Shape, export_plan, import_plan
from .sources import INDEX_FILE, SafetensorsFolder, Source

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, QWEN2, QWEN3)}
EXPORTS = tuple(name for name, family in FAMILIES.items() if family.export_config)

SHARD_SIZE = "2GB"  # of a weights file; one is in memory at a time
# copied as they are; whatever else a folder has (weights, code, cards, logs) belongs to the old model
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
GENERATION_FILE = "generation_config.json"


def our_config(config: PreTrainedConfig) -> ScratchGPTConfig:
    """The config of ours for a model of another family.

    Raises:
        UnsupportedModelError: another family, or values that we cannot express; all are named.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"model_type {config.model_type} is not supported; supported are {', '.join(FAMILIES)}."
        )
    reasons = [
        f"{name} is {value!r}, but must be {' or '.join(map(repr, allowed))}"
        for name, allowed in family.import_requires.items()
        if (value := getattr(config, name, allowed[0])) not in allowed
    ]
    if reasons:
        raise UnsupportedModelError(f"this {family.model_type} model cannot be converted: {'; '.join(reasons)}.")
    architectures = [our_class_of(config, family)]
    try:
        return ScratchGPTConfig(**family.import_config(config), architectures=architectures)
    except (StrictDataclassError, ValueError) as error:
        reason = error.__cause__ or error
        raise UnsupportedModelError(f"this {family.model_type} model cannot be converted: {reason}.") from None


def their_config(config: ScratchGPTConfig, family: Family) -> PreTrainedConfig:
    """The config of another family for a model of ours.

    Raises:
        UnsupportedModelError: fields that the family cannot express; all are named, and the families that can.
    """
    reasons = limits(config, family)
    if reasons:
        others = [name for name in EXPORTS if not limits(config, FAMILIES[name])]
        remedy = f" It can be converted to {' or '.join(others)}." if others else ""
        raise UnsupportedModelError(f"{family.model_type} cannot express this model: {'; '.join(reasons)}.{remedy}")
    assert family.export_config is not None
    theirs: PreTrainedConfig = CONFIG_MAPPING[family.model_type](**family.export_config(config))
    return theirs


def limits(config: ScratchGPTConfig, family: Family) -> list[str]:
    """Why a family cannot express a config."""
    reasons = [
        f"{name} is {getattr(config, name)!r}, but must be {required!r}"
        for name, required in family.export_requires.items()
        if getattr(config, name) != required
    ]
    return reasons + family.export_limits(config)


def import_model(source: Path, folder: Path, dtype: torch.dtype | None = None, max_shard_size: str = SHARD_SIZE) -> str:
    """Write the model in `source`, of transformers' GPT-2, Llama, Qwen2 or Qwen3 or OpenAI's GPT-2, as one of ours.

    The tensors are read one at a time, and written when a file is full.

    Args:
        folder: new or empty.
        dtype: of the new weights (default: as they are stored).
        max_shard_size: of a weights file, such as "2GB".

    Returns:
        The name of our class.

    Raises:
        ValueError: `folder` is not empty, another kind of model, values of its config that we cannot express, or
            missing, damaged, unknown or wrong tensors.
    """
    config, family, tensors = _opened(source)
    our_class = own_class(config)
    model = empty_model(our_class, config)
    plan = import_plan(family, our_class, config.num_hidden_layers, own_shapes(model), tensors)
    config.dtype = dtype or common_dtype(tensors)
    with new_folder(folder):
        write_weights(plan, tensors, folder, config.dtype if dtype else None, max_shard_size)
        custom_object_save(model, folder)
        config.save_pretrained(folder)
        copy_tokenizer(source, folder)
    return our_class


def export_model(
    source: Path, folder: Path, to: str, dtype: torch.dtype | None = None, max_shard_size: str = SHARD_SIZE
) -> str:
    """Write a model of ours as one that transformers loads without our code.

    Args:
        to: "gpt2", "llama" or "qwen3".

    Others, returns and raises as `import_model`.
    """
    family = FAMILIES[to]
    values = AutoConfig.from_pretrained(source)
    if not isinstance(values, ScratchGPTConfig):
        raise ValueError(f"{source} is not a ScratchGPT model, but has the model_type {values.model_type}.")
    config = their_config(values, family)
    our_class = own_class(values)
    their_class = family.architectures[our_class]
    tensors = SafetensorsFolder(source)
    plan = export_plan(family, our_class, values.num_hidden_layers, own_shapes(empty_model(our_class, values)), tensors)
    config.architectures = [their_class]
    config.dtype = dtype or common_dtype(tensors)
    with new_folder(folder):
        write_weights(plan, tensors, folder, config.dtype if dtype else None, max_shard_size)
        config.save_pretrained(folder)
        copy_tokenizer(source, folder)
    return their_class


def load_imported(
    folder: Path, config: ScratchGPTConfig, our_class: str, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in a folder of another family as one of ours, without writing it.

    Args:
        config: `our_config` of it, perhaps with other values.
        our_class: may have another head; then that of the folder is not read, and the new one is random.

    Returns:
        The model, and the names of weights that are missing, unexpected or mismatched, as `from_pretrained` gives them.

    Raises:
        ValueError: as `import_model`.
    """
    found, family, tensors = _opened(folder)
    stored_class = own_class(found)
    shapes = own_shapes(empty_model(stored_class, found))
    plan = import_plan(family, stored_class, found.num_hidden_layers, shapes, tensors)
    dtype = dtype or common_dtype(tensors)
    # copies: parts of a tensor would share its memory, and a file may change while the model is used
    state = {name: built(recipe, tensors).to(dtype, copy=True).contiguous() for name, recipe in plan.items()}
    model_class = getattr(modeling_scratch_gpt, our_class)
    if our_class != stored_class:
        state = {name: tensor for name, tensor in state.items() if name not in HEADS[stored_class]}
    loaded: tuple[PreTrainedModel, dict[str, Any]] = model_class.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, dtype=dtype
    )
    return loaded


def own_class(config: ScratchGPTConfig) -> str:
    """The name of our class for a config."""
    return str((config.architectures or [LANGUAGE_MODEL])[0])


def _opened(folder: Path) -> tuple[ScratchGPTConfig, Family, Source]:
    """Our config for the model in a folder, its family and its tensors."""
    if is_openai_folder(folder):
        config = ScratchGPTConfig(**openai_config(folder), architectures=[LANGUAGE_MODEL])
        return config, OPENAI_GPT2, OpenAICheckpoint(folder)
    theirs = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return our_config(theirs), FAMILIES[theirs.model_type], SafetensorsFolder(folder)


def our_class_of(theirs: PreTrainedConfig, family: Family) -> str:
    """The name of our class for their architecture.

    Raises:
        UnsupportedModelError: we have no such class.
    """
    name = (theirs.architectures or [family.architectures[LANGUAGE_MODEL]])[0]
    classes = {their_class: our_class for our_class, their_class in family.architectures.items()}
    if name not in classes:
        raise UnsupportedModelError(f"the architecture {name} is not supported; supported are {', '.join(classes)}.")
    return classes[name]


def empty_model(our_class: str, config: ScratchGPTConfig) -> PreTrainedModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        model: PreTrainedModel = getattr(modeling_scratch_gpt, our_class)(config)
    return model


def own_shapes(model: PreTrainedModel) -> dict[str, Shape]:
    """Names and shapes of the tensors that a model saves: tied ones have their first name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def common_dtype(tensors: Source) -> torch.dtype:
    """The type of most tensors."""
    dtypes = list(tensors.dtypes.values())
    return max(set(dtypes), key=dtypes.count)


def built(recipe: Recipe, tensors: Source) -> torch.Tensor:
    """One tensor of the new model."""
    return recipe.build([tensors.read(name) for name in recipe.sources])


def write_weights(
    plan: Mapping[str, Recipe], tensors: Source, folder: Path, dtype: torch.dtype | None, max_shard_size: str
) -> None:
    """Write the weights file of a plan, or several and their index; one is in memory at a time.

    Args:
        dtype: None: each as its source.
    """
    common = common_dtype(tensors)

    def dtype_of(recipe: Recipe) -> torch.dtype:
        return dtype or (tensors.dtypes[recipe.sources[0]] if recipe.sources else common)

    split = split_state_dict_into_shards_factory(
        dict(plan),
        get_storage_size=lambda recipe: torch.Size(recipe.shape).numel() * dtype_of(recipe).itemsize,
        filename_pattern="model{suffix}.safetensors",
        get_storage_id=lambda recipe: None,
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        shard = {name: built(plan[name], tensors).to(dtype_of(plan[name])).contiguous() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        del shard
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer, and the default settings of `generate`.

    Raises:
        ValueError: the tokenizer cannot be read.
    """
    for name in (*TOKENIZER_FILES, GENERATION_FILE):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    if (folder / "tokenizer.json").exists():  # what every runtime reads
        return
    try:
        if (source / ENCODER_FILE).exists():
            GPT2Tokenizer(str(source / ENCODER_FILE), str(source / MERGES_FILE)).save_pretrained(folder)
        elif any((folder / name).exists() for name in TOKENIZER_FILES):
            AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    except Exception as error:  # tokenizers raises a plain Exception for a damaged file
        raise ValueError(f"{source}: its tokenizer cannot be read ({' '.join(str(error).split())}).") from None


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and remove what was written to it after an error.

    Raises:
        ValueError: it has files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder.")
    try:
        yield
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        raise
