"""The origin of a model, as a card names it: text, base model and recipe, without paths of this machine."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from ...settings.finetuning import DEFAULT_FRACTION, BaseArguments, RowsArguments
from ...settings.json_files import read_json
from ...settings.run_folder import ADAPTER_CONFIG_FILE
from ..client import HubName

PATHS = {"data_dir", "output_dir", "train_file", "validation_file", "test_file"}  # settings that are always paths
PATHS_OR_HUB_NAMES = {"model", "tokenizer", "dataset_name"}
MAX_IDENTIFIER_LENGTH = 96  # the Hub's limit for the name of a dataset


@dataclass(frozen=True)
class Source:
    """Text to train or evaluate on. `dataset`, `config` and `split` are set if it is a dataset on the Hub."""

    description: str
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    language: Sequence[str] = ()

    @property
    def markdown(self) -> str:
        """The description, with a link to the dataset."""
        link = f" ([{self.dataset}](https://huggingface.co/datasets/{self.dataset}))" if self.dataset else ""
        return self.description + link

    @property
    def identifier(self) -> str:
        """The dataset, or a name unique to this text: the Hub compares results that have the same identifier."""
        slug = re.sub(r"[^\w.]+", "-", self.description.lower()).strip("-")
        return self.dataset or slug[:MAX_IDENTIFIER_LENGTH]


@dataclass(frozen=True)
class Recipe:
    """The settings of a run without local paths, and the command that runs them."""

    text: str
    command: str


@dataclass(frozen=True)
class Origin:
    """The base model (a name on the Hub, if any), data and recipe of a fine-tuned model."""

    recipe: Recipe
    base_model: str | None
    is_random: bool  # only the shape and tokenizer of the base model were used
    trained_on: Source
    measured_on: Source

    @property
    def base_markdown(self) -> str:
        """The base model, with a link if it is on the Hub."""
        if self.base_model:
            return f"[{self.base_model}](https://huggingface.co/{self.base_model})"
        return "none (random weights)" if self.is_random else "not on the Hub"


def hub_name(name: str | None) -> str | None:
    """The name of a repository, without its revision; None for a local path."""
    if not name or name.startswith((".", "/", "~")) or Path(name).exists():
        return None
    try:
        return HubName.parse(name).repo_id
    except ValueError:
        return None


def base_on_hub(name: str) -> str | None:
    """The name on the Hub of a model; for the folder of an adapter, that of its base model."""
    adapter = Path(name) / ADAPTER_CONFIG_FILE
    if adapter.exists():
        name = read_json(adapter, {"base_model_name_or_path?": str | None}).get("base_model_name_or_path")
    return hub_name(name)


def row_source(settings: RowsArguments, part: str) -> Source:
    """The source of the rows of a part: "train", "validation" or "test"."""
    is_train = part == "train"
    tables = settings.train_file if is_train else getattr(settings, f"{part}_file")
    split = settings.dataset_split if is_train else getattr(settings, f"{part}_split")
    if tables:
        return Source(", ".join(sorted(Path(table).name for table in tables)))
    if split:
        name, config = hub_name(settings.dataset_name), settings.dataset_config_name
        shown = f"dataset {name or Path(settings.dataset_name or '').name} {config or ''} ({split})"
        return Source(" ".join(shown.split()), name, config, split)
    fraction = getattr(settings, f"{part}_fraction") or DEFAULT_FRACTION
    train = row_source(settings, "train")
    return replace(train, description=f"{fraction:g} of the rows of {train.description}, held out at random")


def public_recipe(command: str, recipe: str) -> Recipe:
    """A recipe without local paths; the command line shows which settings were removed."""
    entries = yaml.safe_load(recipe)
    local = PATHS | {name for name in PATHS_OR_HUB_NAMES if not hub_name(entries.get(name))}
    removed = [name for name, value in entries.items() if name in local and value]
    public = {name: value for name, value in entries.items() if name not in local}
    if (config := public.get("config")) and (Path(config).is_absolute() or config.startswith(("..", "~"))):
        public["config"] = Path(config).name
    text = yaml.safe_dump(public, sort_keys=False, allow_unicode=True)
    return Recipe(text, " ".join([f"scratch-gpt {command} recipe.yaml", *(f"--{name} ..." for name in removed)]))


def origin_of(command: str, recipe: str, base: BaseArguments, rows: RowsArguments, measured: str) -> Origin:
    """The origin of a fine-tuning run. Call it before training: local files may be gone afterwards.

    Args:
        command: "finetune" or "finetune_classifier".
        recipe: its settings, as YAML.
        measured: the part of the rows that the metrics are computed on.
    """
    base_model = None if base.random_weights else base_on_hub(base.model)
    sources = row_source(rows, "train"), row_source(rows, measured)
    return Origin(public_recipe(command, recipe), base_model, base.random_weights, *sources)
