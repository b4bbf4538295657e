"""The settings of a run: small dataclasses, and `parse_recipe`, which reads them from YAML and the command line.

A recipe is nothing but arguments written down in a file: each entry becomes `--name=value` in front of the real
command line, so argparse does types, choices, unknown names and `--help`, and the command line wins.
Every option is described once, in the help of its field.
"""

import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser


def option(help: str, default: Any = None) -> Any:
    """A dataclass field with its `--help` text."""
    return field(default=default, metadata={"help": help})


def required(help: str) -> Any:
    """A dataclass field that a recipe or the command line must set."""
    return field(metadata={"help": help})


def option_list(help: str) -> Any:
    """A dataclass field that takes several values; empty when not set."""
    return field(default_factory=list, metadata={"help": help})


@dataclass
class CorpusArguments:
    """Where text comes from; with neither text nor dataset, from Python's own library."""

    text: list[str] = option_list("Your own text: .txt, .md, .jsonl, .csv, .tsv, .parquet files or folders.")
    dataset: str | None = option("Name of a dataset on the Hugging Face Hub.")
    dataset_config: str | None = option("Configuration of --dataset.")
    dataset_split: str = option("Split of --dataset to read.", "train")
    text_column: str = option("Column that holds the text in tables and datasets.", "text")
    streaming: bool = option("Read --dataset while it downloads, without a copy on disk.", False)
    validation_text: list[str] = option_list("Text for validation; without it a part of the corpus is held out.")
    validation_fraction: float = option("Share of the documents held out for validation.", 0.05)

    def __post_init__(self) -> None:
        if self.text and self.dataset:
            raise ValueError(
                f"--text ({' '.join(self.text)}) and --dataset ({self.dataset}) are two corpora: give one of them."
            )
        for name in ("dataset_config", "streaming"):
            if getattr(self, name) and not self.dataset:
                raise ValueError(without_effect(name, getattr(self, name), "with --dataset"))
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"--validation_fraction is {self.validation_fraction}: it must lie between 0 and 1, both excluded."
            )


@dataclass
class TokenizerArguments:
    """The tokenizer to train."""

    vocab_size: int = option("Number of tokens, the 256 bytes and special tokens included.", 8192)
    model_max_length: int = option("Longest text in tokens that the tokenizer announces.", 1024)

    def __post_init__(self) -> None:
        check_at_least(self, {"vocab_size": 1, "model_max_length": 1})


@dataclass
class ModelArguments:
    """The model to build."""

    config: str = required("Shape of the model: name of a preset, config.json, or its folder.")
    config_overrides: str | None = option('Changes to --config, such as "num_hidden_layers=4,qk_norm=false".')


@dataclass
class DataArguments:
    """The data to train on."""

    data_dir: str = required("Folder that train.prepare_data has written.")


@dataclass
class TrainArguments:
    """How a model is trained."""

    output_dir: str = required("Folder of the run; a run that lies there is continued.")
    seed: int = option("Decides the initial weights, the order of examples and dropout.", 0)
    max_steps: int = option("Optimizer steps of the whole run.", 1000)
    batch_size: int = option("Sequences per step, over all processes.", 32)
    micro_batch_size: int = option("Sequences per forward pass of one process.", 8)
    optimizer: Literal["muon", "adamw"] = option(
        "muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: AdamW for all.",
        "muon",
    )
    learning_rate: float = option("Peak learning rate.", 1e-3)
    matrix_learning_rate: float | None = option("Peak learning rate of Muon; without it --learning_rate.")
    weight_decay: float = option("Decoupled weight decay of matrices and embeddings.", 0.1)
    adam_beta1: float = option("Decay of AdamW's mean of gradients.", 0.9)
    adam_beta2: float = option("Decay of AdamW's mean of squared gradients.", 0.95)
    schedule: Literal["cosine", "wsd"] = option(
        "After warm-up: cosine decay, or stable and then linear decay (wsd).", "cosine"
    )
    warmup_steps: int | None = option(
        "Steps in which the learning rate rises from 0 to its peak; without it a tenth of all, at most 100."
    )
    decay_fraction: float | None = option("Share of the steps that decay in wsd; without it 0.2.")
    final_learning_rate_ratio: float = option("Last learning rate, as a share of its peak.", 0.1)
    max_grad_norm: float = option("Longer gradients are cut to this norm; 0: never.", 1.0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "Number format of the forward pass; auto: what accelerate launch says, "
        "else bf16 where the hardware has it, else fp32.",
        "auto",
    )
    compile: bool = option("Compile the model with torch.compile.", False)
    gradient_checkpointing: bool = option(
        "Compute activations again in the backward pass instead of keeping them.", False
    )
    fsdp_size: int = option("Processes over which FSDP2 splits weights, gradients and optimizer state; 1: none.", 1)
    fsdp_keep_weights: bool = option(
        "Let FSDP2 keep gathered weights from the forward to the backward pass (ZeRO-2 instead of ZeRO-3).", False
    )
    tp_size: int = option("Processes over which each matrix of a block is split (tensor parallelism); 1: none.", 1)
    process_timeout: float = option("Seconds after which a process that others wait for counts as hung.", 600.0)
    spike_sigmas: float = option(
        "Leave out updates whose loss or gradient norm lies more standard deviations above the usual; 0: none. "
        "Those that are not finite are always left out.",
        6.0,
    )
    max_skipped: int = option("Updates left out in a row that end the run.", 5)
    log_every: int = option("Steps between two log lines.", 10)
    eval_every: int = option("Steps between two evaluations; 0: only after the last step.", 250)
    save_every: int = option("Steps between two checkpoints; 0: only after the last step.", 250)
    async_save: bool = option("Write checkpoints in the background, from a copy in memory.", False)
    eval_sequences: int = option("Validation sequences per evaluation; 0: all.", 256)
    keep_checkpoints: int = option("Newest checkpoints to keep, beside the one with the lowest validation loss.", 2)
    allow_change: list[str] = option_list("Settings that may differ from those a run was started with.")
    sample_prompts: list[str] = option_list("Prompts to complete at each evaluation.")
    sample_tokens: int = option("Tokens per completion.", 64)
    report_to: str | None = option("Tracker beside metrics.jsonl, such as tensorboard, trackio, wandb.")

    def __post_init__(self) -> None:
        check_at_least(self, TRAIN_LOWER_BOUNDS)
        _check_at_most(self, TRAIN_UPPER_BOUNDS)
        if self.learning_rate == 0 or self.matrix_learning_rate == 0:
            raise ValueError("A learning rate of 0 trains nothing: give a positive one.")
        if self.optimizer == "adamw" and self.matrix_learning_rate is not None:
            raise ValueError(without_effect("matrix_learning_rate", self.matrix_learning_rate, "with --optimizer muon"))
        if self.fsdp_keep_weights and self.fsdp_size == 1:
            raise ValueError(without_effect("fsdp_keep_weights", True, "with --fsdp_size above 1"))
        if self.schedule == "cosine" and self.decay_fraction is not None:
            raise ValueError(without_effect("decay_fraction", self.decay_fraction, "with --schedule wsd"))
        self._check_steps_and_batch()

    @property
    def wsd_decay_fraction(self) -> float:
        """`decay_fraction` or its default; None stays None in a recipe, so that cosine can refuse it."""
        return 0.2 if self.decay_fraction is None else self.decay_fraction

    @property
    def num_warmup_steps(self) -> int:
        """`warmup_steps` or its default."""
        return min(100, self.max_steps // 10) if self.warmup_steps is None else self.warmup_steps

    def _check_steps_and_batch(self) -> None:
        decay_steps = round(self.wsd_decay_fraction * self.max_steps) if self.schedule == "wsd" else 0
        if self.num_warmup_steps + decay_steps > self.max_steps:
            raise ValueError(
                f"--warmup_steps ({self.num_warmup_steps}) and the decay ({decay_steps} steps) are "
                f"longer than --max_steps ({self.max_steps}): lower them or train longer."
            )
        self.check_processes(num_processes=1)

    def check_processes(self, num_processes: int) -> None:
        """Refuses a batch that `num_processes` cannot share out equally.

        Raises:
            ValueError: batch_size is no multiple of micro_batch_size x processes.
        """
        if self.batch_size % (self.micro_batch_size * num_processes):
            raise ValueError(
                f"--batch_size ({self.batch_size}) must be a multiple of --micro_batch_size "
                f"({self.micro_batch_size}) x processes ({num_processes}) = "
                f"{self.micro_batch_size * num_processes}: change one of them."
            )


AT_LEAST_ONE = (
    *("max_steps", "batch_size", "micro_batch_size"),
    *("log_every", "keep_checkpoints", "sample_tokens", "fsdp_size", "tp_size", "max_skipped", "process_timeout"),
)
AT_LEAST_ZERO = (
    *("seed", "learning_rate", "matrix_learning_rate", "weight_decay", "adam_beta1", "adam_beta2"),
    *("warmup_steps", "decay_fraction", "final_learning_rate_ratio", "max_grad_norm"),
    *("eval_every", "save_every", "eval_sequences", "spike_sigmas"),
)
TRAIN_LOWER_BOUNDS = dict.fromkeys(AT_LEAST_ONE, 1) | dict.fromkeys(AT_LEAST_ZERO, 0)
TRAIN_UPPER_BOUNDS = {
    "adam_beta1": 0.9999,
    "adam_beta2": 0.999999,
    "decay_fraction": 1,
    "final_learning_rate_ratio": 1,
}


def parse_recipe(
    dataclasses: Sequence[Any], argv: Sequence[str] | None = None, *, description: str = ""
) -> tuple[Any, ...]:
    """Reads `[recipe.yaml ...] [--name value ...]` into one instance per dataclass; the last wins.

    Args:
        dataclasses: the settings of the script, such as `(ModelArguments, TrainArguments)`.
        argv: the command line without the program; None stands for the real one.
        description: what `--help` says first.

    Raises:
        ValueError: unknown name (with the nearest known one), wrong type, value out of range,
            settings that contradict each other.
        OSError: a recipe cannot be read.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    recipes = []
    while arguments and not arguments[0].startswith("-"):
        recipes.append(Path(arguments.pop(0)))
    parser = _RecipeParser(
        list(dataclasses),
        usage="%(prog)s [recipe.yaml ...] [--name value ...]",
        description=description,
        allow_abbrev=False,
    )
    known = {entry.name: entry.type for kind in dataclasses for entry in fields(kind)}
    from_recipes = [argument for path in recipes for argument in _recipe_arguments(path, known)]
    *values, unknown = parser.parse_args_into_dataclasses(
        [*from_recipes, *arguments], return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ValueError(_unknown_name(unknown[0], known, prefix="--"))
    return tuple(values)


def recipe_text(*arguments: Any) -> str:
    """The YAML recipe that `parse_recipe` reads back as the same `arguments`."""
    entries = {name: value for part in arguments for name, value in asdict(part).items()}
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)


def run_script(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a script's `main` and returns its exit code.

    A user's mistake is one line on stderr and exit code 2; `python -X dev` shows its traceback.
    """
    try:
        return main(argv) or 0
    except KeyboardInterrupt:
        print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    # safetensors reports a full disk as its own error, which is no OSError
    except (ValueError, OSError, SafetensorError, StrictDataclassError) as error:
        if sys.flags.dev_mode:
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        return 2


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


class _RecipeParser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(re.sub(r"argument (--\w+)(/\S+)?: ", r"\1: ", message))


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error; plain YAML keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name!r} is set twice")
        return super().construct_mapping(node, deep)


def _recipe_arguments(path: Path, known: dict[str, Any]) -> list[str]:
    """The entries of a recipe as command-line arguments; null stands for "not set"."""
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{str(path)!r} is neither a recipe (*.yaml) nor an option (--name value).")
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(entries or {}, dict):
        raise ValueError(f"recipe {path} must hold lines of 'name: value', not {entries!r}.")
    arguments = []
    for name, value in (entries or {}).items():
        if name not in known:
            raise ValueError(f"recipe {path}: {_unknown_name(str(name), known)}")
        try:
            arguments += _as_arguments(name, value, known[name])
        except ValueError as error:
            raise ValueError(f"recipe {path}: {error}") from None
    return arguments


def _as_arguments(name: str, value: Any, kind: Any) -> list[str]:
    if value is None or value == []:
        return []
    is_list = getattr(kind, "__origin__", None) is list
    values = value if isinstance(value, list) else [value]
    for one in values:
        # yaml reads yes, no, on, off as booleans
        if isinstance(one, (dict, list)) or (isinstance(one, bool) and kind is not bool):
            raise ValueError(f"{name} does not take {one!r}; text needs quotation marks.")
    if not is_list and isinstance(value, list):
        raise ValueError(f"{name} takes one value, not the list {value!r}.")
    if len(values) == 1:
        return [f"--{name}={values[0]}"]
    for one in values:
        if str(one).startswith("-") and " " not in str(one):
            raise ValueError(f"{name}: {one!r} starts with '-' and would be read as an option.")
    return [f"--{name}", *(str(one) for one in values)]


def _unknown_name(name: str, known: Iterable[str], prefix: str = "") -> str:
    bare = name.partition("=")[0].lstrip("-").replace("-", "_")
    nearest = difflib.get_close_matches(bare, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{nearest[0]}?" if nearest else "--help lists the settings."
    return f"unknown setting {name!r}: {hint}"


def without_effect(name: str, value: Any, where: str) -> str:
    """The message for a setting that nothing would read."""
    return f"--{name} ({value}) only has an effect {where}: remove it or change that."


def check_at_least(arguments: Any, bounds: Mapping[str, float]) -> None:
    """Refuses settings below their lowest value; None stands for "not set".

    Raises:
        ValueError: the setting and its lowest value.
    """
    for name, lowest in bounds.items():
        value = getattr(arguments, name)
        if value is not None and not (value >= lowest and math.isfinite(value)):
            raise ValueError(f"--{name} is {value}: it must be a number of at least {lowest}.")


def _check_at_most(arguments: Any, bounds: Mapping[str, float]) -> None:
    for name, highest in bounds.items():
        value = getattr(arguments, name)
        if value is not None and value > highest:
            raise ValueError(f"--{name} is {value}: it must be at most {highest}.")
