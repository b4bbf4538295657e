"""Build a new model from a preset or a config.json."""

import difflib
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch_gpt import PRESETS, ScratchGPTConfig

from ..settings.json_files import read_json
from ..settings.run_folder import CONFIG_FILE
from ..settings.seeds import seed_at
from ..settings.training import ModelArguments

LADDER = (
    (2, 64),
    (2, 128),
    (3, 128),
    (3, 192),
    (4, 256),
    (6, 384),
    (8, 512),
    (12, 768),
)  # layers and width of the models that a budget chooses from
FAMILY = "laptop"  # the preset that they change
HEAD_DIM = 64


def build_config(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> ScratchGPTConfig:
    """The config of the model, with the vocabulary size and special tokens of the tokenizer.

    Raises:
        ValueError: no such preset, unknown keys, or values that do not fit together.
        OSError: config.json cannot be read.
    """
    overrides = parse_overrides(arguments.config_overrides or "")
    from_tokenizer = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name in overrides.keys() & from_tokenizer.keys():
        raise ValueError(f"--config_overrides sets {name}, which comes from the tokenizer: remove it.")
    name = arguments.config or ""
    if name in PRESETS:
        return ScratchGPTConfig.from_preset(name, **overrides, **from_tokenizer)
    return ScratchGPTConfig.from_values(read_config(name), **overrides, **from_tokenizer)


def read_config(name: str) -> dict[str, Any]:
    """The values of a config.json, given by its path or its folder.

    Raises:
        ValueError: `name` is neither, or the file does not contain a JSON object (`DamagedFileError`).
        OSError: the file cannot be read.
    """
    path = Path(name)
    path = path / CONFIG_FILE if path.is_dir() else path
    if path.suffix != ".json":
        nearest = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"--config {name} is neither a preset ({', '.join(PRESETS)}) nor a config.json.{hint}")
    if not path.exists():
        inside = sorted(str(found.parent) for found in path.parent.glob(f"*/{CONFIG_FILE}"))
        hint = f"did you mean {inside[-1]}?" if inside else "give a preset, a config.json, or the folder of a model."
        raise ValueError(f"--config {name}: {path} does not exist; {hint}")
    values: dict[str, Any] = read_json(path, remedy="Give another --config.")
    return values


def parse_overrides(text: str) -> dict[str, Any]:
    """`"num_hidden_layers=4,qk_norm=false"` as a dictionary; values are read as YAML.

    Raises:
        ValueError: the text has another form.
    """
    try:
        values = yaml.load("{" + text.replace("=", ": ") + "}", _OverrideLoader)
    except yaml.YAMLError:
        raise ValueError(f'--config_overrides {text!r} must look like "name=value,name=value".') from None
    return {str(name): _numbers_or_same(value) for name, value in values.items()}


class _OverrideLoader(yaml.SafeLoader):
    """Reads mappings in which each name has a value and occurs once; no aliases."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"--config_overrides sets {name} twice: remove one of them.")
        if any(isinstance(value, yaml.ScalarNode) and not value.value and not value.style for _, value in node.value):
            raise yaml.YAMLError("a name without a value")
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def _numbers_or_same(value: Any) -> Any:
    """The value with all numbers as numbers, at any depth: YAML reads 1e6 as text."""
    if isinstance(value, dict):
        return {key: _numbers_or_same(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_numbers_or_same(entry) for entry in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def ladder(tokenizer: PreTrainedTokenizerBase, overrides: str | None = None) -> list[ScratchGPTConfig]:
    """Models of the family of the preset laptop, from small to large, with one key/value head per layer.

    Args:
        overrides: further changes to each model, as in `--config_overrides`. A model is left out if the changes make
            its config invalid.

    Raises:
        ValueError: the changes make every config invalid; see `build_config`.
    """
    fixed = parse_overrides(overrides or "")
    configs: list[ScratchGPTConfig] = []
    errors: list[ValueError] = []
    for shape in LADDER:
        given = (fixed.get(name) for name in ("num_hidden_layers", "hidden_size"))
        layers, width = (value if isinstance(value, int) else own for value, own in zip(given, shape, strict=True))
        text = with_overrides(changes_of(layers, width), overrides)
        try:
            config = build_config(ModelArguments(config=FAMILY, config_overrides=text), tokenizer)
        except ValueError as error:
            errors.append(error)
            continue
        if not configs or config.to_dict() != configs[-1].to_dict():
            configs.append(config)
    if not configs:
        raise errors[0]
    return configs


def changes_of(layers: int, width: int) -> str:
    """The changes to the preset laptop that make a shape, as in `--config_overrides`."""
    heads = {"num_attention_heads": max(1, width // HEAD_DIM), "num_key_value_heads": 1}
    changes = {"num_hidden_layers": layers, "hidden_size": width, **heads}
    return ",".join(f"{name}={value}" for name, value in changes.items())


def with_overrides(changes: str, overrides: str | None) -> str:
    """`changes` and `overrides`, which win, as one text."""
    fixed = parse_overrides(overrides or "")
    kept = [f"{name}={value}" for name, value in parse_overrides(changes).items() if name not in fixed]
    return ",".join([*kept, *([overrides] if overrides else [])])


def check_block_size(config: PreTrainedConfig, block_size: int) -> None:
    """Refuse sequences longer than the model can process.

    Raises:
        ValueError: both lengths, and how to raise the model's.
    """
    longest = config.max_position_embeddings
    if block_size > longest:
        raise ValueError(
            f"the data has sequences of {block_size} tokens, but max_position_embeddings is "
            f"{longest}: raise it with --config_overrides max_position_embeddings={block_size}, "
            "or prepare the data with a smaller --block_size."
        )


def new_model(config: PreTrainedConfig, seed: int, auto_class: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """A model with new float32 weights, which depend only on the seed."""
    torch.manual_seed(seed_at(seed, "model"))
    model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    return model
