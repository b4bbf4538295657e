"""What the Hub reads of a model card: its YAML metadata, made from a run, and joined with that of a published card.

Reading order: where things come from (`Source`, `Origin`, `Recipe`); the metadata (`card_data`, `merged_metadata`); the
parts of the text that all cards share.
"""

import copy
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData

from ...settings.finetuning import DEFAULT_FRACTION, BaseArguments, RowsArguments
from ..client import HubName

PLACE = "path/to/this/folder"  # stands in a card for the name to load from
COMMIT = "hash-of-a-commit"  # and this for the revision to pin
# entries of a recipe that hold only on this machine; where something lay is nobody's business
PLACES = {"data_dir", "output_dir", "train_file", "validation_file", "test_file"}
PLACES_OR_NAMES = {"model", "tokenizer", "dataset_name"}  # these too, but for names on the Hub
PER = {"text-generation": "token", "text-classification": "text"}  # what a loss is a mean over
# name in a run: name on the Hub, name for people, arguments of the metric
METRICS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "loss": ("loss", "Loss (nats per {per})", None),
    "perplexity": ("perplexity", "Perplexity (per token)", None),
    "bits_per_byte": ("bits_per_byte", "Bits per byte", None),
    "accuracy": ("accuracy", "Accuracy", None),
    "f1": ("f1", "F1 (mean over labels)", {"average": "macro"}),
}
LANGUAGE_METRICS, LABEL_METRICS = ("loss", "perplexity", "bits_per_byte"), ("accuracy", "f1", "loss")
OF_THE_FILES = ("library_name", "pipeline_tag", "base_model", "base_model_relation")
COLLECTED = ("tags", "datasets", "language", "metrics")
LONGEST_NAME = 96  # of a dataset


# Where things come from
@dataclass(frozen=True)
class Source:
    """Text that was learned from or measured on: in words, and if it is a dataset of the Hub, its names there."""

    description: str
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    language: Sequence[str] = ()

    @property
    def in_words(self) -> str:
        """The description, with a link to the dataset."""
        link = f" ([{self.dataset}](https://huggingface.co/datasets/{self.dataset}))" if self.dataset else ""
        return self.description + link

    @property
    def identifier(self) -> str:
        """The dataset, or a name that other text does not have: results with one identifier count as comparable."""
        return self.dataset or re.sub(r"[^\w.]+", "-", self.description.lower()).strip("-")[:LONGEST_NAME]


@dataclass(frozen=True)
class Recipe:
    """The settings of a run as others may read them, and the command that runs them."""

    text: str
    command: str


@dataclass(frozen=True)
class Origin:
    """What a tuned model was made from; `base_model` is a name on the Hub."""

    recipe: Recipe
    base_model: str | None
    is_random: bool  # only shape and tokenizer of a model were taken
    trained_on: Source
    measured_on: Source

    @property
    def base_in_words(self) -> str:
        """The base model, with a link if it is on the Hub."""
        if self.base_model:
            return f"[{self.base_model}](https://huggingface.co/{self.base_model})"
        return "random weights" if self.is_random else "a model that is not on the Hub"


def hub_name(name: str | None) -> str | None:
    """The name of a repository, without the revision; None for a path of this machine."""
    if not name or name.startswith((".", "/", "~")) or Path(name).exists():
        return None
    try:
        return HubName.parse(name).repo_id
    except ValueError:
        return None


def base_on_hub(name: str) -> str | None:
    """The name on the Hub of the model in a folder or of that name; of an adapter here, that of its base."""
    adapter = Path(name) / "adapter_config.json"
    if adapter.exists():
        name = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return hub_name(name)


def row_source(settings: RowsArguments, part: str) -> Source:
    """Where the rows of a part come from, such as "train" or "test"."""
    is_train = part == "train"
    tables = settings.train_file if is_train else getattr(settings, f"{part}_file")
    split = settings.dataset_split if is_train else getattr(settings, f"{part}_split")
    if tables:
        return Source(", ".join(sorted(Path(table).name for table in tables)))
    if split:
        name, config = hub_name(settings.dataset_name), settings.dataset_config_name
        shown = f"dataset {name or Path(settings.dataset_name or '').name} {config or ''} ({split})"
        return Source(" ".join(shown.split()), name, config, split)
    share = getattr(settings, f"{part}_fraction") or DEFAULT_FRACTION
    whole = row_source(settings, "train")
    return replace(whole, description=f"{share:g} of the rows of {whole.description}, held out at random")


def public_recipe(script: str, recipe: str) -> Recipe:
    """A recipe without what holds only on this machine: that is left to the command line."""
    entries = yaml.safe_load(recipe)
    places = PLACES | {name for name in PLACES_OR_NAMES if not hub_name(entries.get(name))}
    left_out = [name for name, value in entries.items() if name in places and value]
    public = {name: value for name, value in entries.items() if name not in places}
    if (config := public.get("config")) and (Path(config).is_absolute() or config.startswith(("..", "~"))):
        public["config"] = Path(config).name
    text = yaml.safe_dump(public, sort_keys=False, allow_unicode=True)
    return Recipe(text, " ".join([f"python -m train.{script} recipe.yaml", *(f"--{name} ..." for name in left_out)]))


def origin_of(script: str, recipe: str, base: BaseArguments, rows: RowsArguments, measured: str) -> Origin:
    """What a fine-tuning script starts from. Call it before the training: what lies here now may be gone after it."""
    base_model = None if base.random_weights else base_on_hub(base.model)
    sources = row_source(rows, "train"), row_source(rows, measured)
    return Origin(public_recipe(script, recipe), base_model, base.random_weights, *sources)


# The metadata
def card_data(
    name: str,
    task: str,
    tags: Sequence[str],
    trained_on: Source,
    measured_on: Source,
    figures: Mapping[str, float],
    base_model: str | None = None,
) -> ModelCardData:
    """The metadata of the card of any model that is written here.

    Neither the license nor the language of a text is known to a run, so that publishing asks for them.

    Args:
        name: of the model in lists of results.
        task: pipeline tag.
        figures: by names of METRICS.
        base_model: name on the Hub.
    """
    results = eval_results(task, measured_on, figures)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=list(tags),
        language=list(trained_on.language) or None,
        datasets=[trained_on.dataset] if trained_on.dataset else None,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        metrics=[METRICS[figure][0] for figure in figures],
        model_name=name if results else None,
        eval_results=results or None,
    )


def tuned_data(
    name: str, task: str, tags: Sequence[str], origin: Origin, figures: Mapping[str, float]
) -> ModelCardData:
    """The metadata of a model that was fine-tuned."""
    return card_data(name, task, tags, origin.trained_on, origin.measured_on, figures, origin.base_model)


def named_metrics(names: Sequence[str], record: Mapping[str, Any], prefix: str = "eval_") -> dict[str, float]:
    """The figures of an evaluation that a card lists."""
    return {name: record[prefix + name] for name in names}


def eval_results(task: str, measured_on: Source, figures: Mapping[str, float]) -> list[EvalResult]:
    """The figures as the Hub lists them; those that are not finite are no JSON and left out."""
    results = []
    for figure, value in figures.items():
        metric, title, arguments = METRICS[figure]
        if math.isfinite(value):
            result = EvalResult(
                task_type=task,
                task_name=task.replace("-", " ").capitalize(),
                dataset_type=measured_on.identifier,
                dataset_name=measured_on.description,
                dataset_config=measured_on.config,
                dataset_split=measured_on.split,
                metric_type=metric,
                metric_name=title.format(per=PER[task]),
                metric_value=round(float(value), 6),
                metric_args=arguments,
            )
            results.append(result)
    return results


def adapter_data(data: ModelCardData) -> ModelCardData:
    """The metadata of an adapter, from that of the model it was merged into, which has the same figures."""
    values = vars(data) | {"library_name": "peft", "tags": ["lora", *(tag for tag in data.tags or [] if tag != CODE)]}
    return ModelCardData(**values | {"base_model_relation": "adapter" if data.base_model else None})


def merged_metadata(
    ours: ModelCardData, theirs: ModelCardData, given: Mapping[str, Any]
) -> tuple[ModelCardData, list[str]]:
    """Joins the metadata of a folder with that of the card which lies on the Hub, and which a person may have edited.

    What was `given` wins; OF_THE_FILES are ours; COLLECTED lists and results are joined; for the rest the Hub wins, and
    a sentence says so.

    Args:
        given: values from the command line; None and [] stand for "not given".
    """
    given = {key: value for key, value in given.items() if value not in (None, [])}
    merged, notes = copy.deepcopy(vars(theirs)), []
    for key, value in copy.deepcopy(vars(ours)).items():
        there = theirs.get(key)
        if value is None or key in given or key in ("eval_results", "model_name"):
            continue
        if key in COLLECTED:
            merged[key] = _joined(value, there)
        elif there is None or there == value or key in OF_THE_FILES:
            merged[key] = value
            if there not in (None, value):
                notes.append(f"{key}: {value} of this folder replaces {there} on the Hub")
        else:
            notes.append(f"{key}: {there} is kept from the Hub; this folder says {value} (--{key} sets it)")
    if theirs.base_model and not ours.base_model and "base_model" not in given:
        notes.append(f"base_model: {theirs.base_model} is kept from the Hub; this folder names none")
    merged |= _joined_results(ours, theirs) | given
    if merged.get("language") is not None:
        merged["language"] = _norwegian(merged["language"])
    return ModelCardData(**merged), notes


def _joined(ours: Any, theirs: Any) -> Any:
    both = [*_as_list(ours), *_as_list(theirs)]
    return [one for number, one in enumerate(both) if one not in both[:number]]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _norwegian(language: Any) -> Any:
    """PyYAML reads the code `no` as False, and would write it so."""
    if isinstance(language, list):
        return [_norwegian(one) for one in language]
    return "no" if language is False else language


def _joined_results(ours: ModelCardData, theirs: ModelCardData) -> dict[str, Any]:
    """Our results, and those of theirs that measure something else."""
    measured = [_measure(result) for result in ours.eval_results or []]
    others = [result for result in theirs.eval_results or [] if _measure(result) not in measured]
    results = copy.deepcopy([*(ours.eval_results or []), *others])
    name = ours.model_name if ours.eval_results else theirs.model_name
    return {"eval_results": results or None, "model_name": name}


def _measure(result: EvalResult) -> tuple[Any, ...]:
    """What a result is a value of: task, dataset and metric."""
    dataset = (result.dataset_type, result.dataset_config, result.dataset_split)
    return result.task_type, dataset, (result.metric_type, result.metric_config, result.metric_args)


# The text
CODE = "custom_code"  # the Hub's tag for models that bring Python files
TRUST = f', trust_remote_code=True, revision="{COMMIT}"'
TWO_WAYS = """\
With the package hf_scratch_gpt installed:

{installed}

Without it, by the Python files {where}:

{remote}

`trust_remote_code=True` runs those files with all your rights, so read them first and give as `revision` the hash of
the commit that you have read: what anybody changes later is then not run. (A folder on your disk has no commits: there
it has no effect.)
"""


def front(data: ModelCardData, text: str) -> str:
    """A card: metadata, then text."""
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def model_tags(model_type: str, folder: Path, *more: str) -> list[str]:
    """The tags of the model in a folder, CODE among them where Python files lie beside the weights."""
    return [model_type, *more, *([CODE] if any(folder.glob("*.py")) else [])]


def how_to_load(program: str, data: ModelCardData, where: str = "that lie beside the weights") -> str:
    """A program in all ways that work; `{first}` and `{extra}` in it stand for what makes the difference.

    Args:
        where: the Python files of the model lie.
    """
    if CODE not in (data.tags or []):
        return fenced(program.format(first="", extra=""), "python")
    installed = program.format(first="import hf_scratch_gpt  # registers the model's classes\n", extra="")
    programs = {"installed": installed, "remote": program.format(first="", extra=TRUST)}
    return TWO_WAYS.format(where=where, **{name: fenced(text, "python") for name, text in programs.items()}).rstrip()


def fenced(text: str, language: str = "text") -> str:
    """A block of code, whatever backticks are in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.removesuffix(chr(10))}\n{fence}"


def processor() -> str:
    """The GPU, or else the kind of CPU, that this process computes on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
