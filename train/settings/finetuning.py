"""Options of fine-tuning: the base model, the parameters to train, the rows, and for how long."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from .checks import check_bounds, check_fraction, requires
from .defaults import FEWEST_UPDATES, batch_size_for, epochs_for, micro_batch_size_for, tuning_rate_for
from .reading import COLUMNS, ENCODING, KEEP_CRLF, Reading, require_files
from .recipe import option, option_list, required, required_list
from .training import LoopArguments, TrainArguments

DEFAULT_FRACTION = 0.1  # of the rows, held out for validation and for the test
NUM_EVALUATIONS = 10  # per run, unless --eval_steps is given
# options that require one value of --trainable
REQUIRED_TRAINABLE = {
    "num_trainable_layers": "layers",
    "lora_r": "lora",
    "lora_alpha": "lora",
    "lora_dropout": "lora",
}


@dataclass
class BaseArguments:
    """The model to start from, and which of its parameters are trained."""

    model: str = required("Pretrained model: a folder, or a name on the Hugging Face Hub.", is_path=True)
    tokenizer: str | None = option("Folder or name of its tokenizer (default: that of --model).", is_path=True)
    random_weights: bool = option("Take only the shape and tokenizer of --model, and start from new weights.", False)
    config_overrides: str | None = option('Changes to the config of --model, such as "residual_dropout=0.1".')
    trainable: Literal["all", "layers", "head", "lora"] = option(
        "all: every weight; layers: the last --num_trainable_layers layers and everything after them; head: the "
        "new head of a classifier; lora: low-rank adapters for all matrices (requires peft).",
        "all",
    )
    num_trainable_layers: int | None = option("Number of layers to train with --trainable layers (default: 1).")
    lora_r: int | None = option("Rank of the adapters (default: 8).")
    lora_alpha: float | None = option("Adapters are scaled by lora_alpha / lora_r (default: twice the rank).")
    lora_dropout: float | None = option("Dropout before the adapters (default: 0).")

    def __post_init__(self) -> None:
        check_bounds(self, {"num_trainable_layers": 1, "lora_r": 1, "lora_alpha": 0, "lora_dropout": 0})
        for name, trainable in REQUIRED_TRAINABLE.items():
            if getattr(self, name) is not None and self.trainable != trainable:
                raise ValueError(requires(name, getattr(self, name), f"--trainable {trainable}"))
        if self.lora_dropout is not None and self.lora_dropout >= 1:
            raise ValueError(f"--lora_dropout is {self.lora_dropout}: it must be below 1.")
        if self.random_weights and self.trainable != "all":
            raise ValueError(f"--random_weights with --trainable {self.trainable} would leave most weights random.")

    def check_engine(self, arguments: LoopArguments) -> None:
        """Refuse adapters in a split model.

        Raises:
            ValueError: the settings that exclude each other.
        """
        for name in ("dp_shard_size", "tp_size"):
            if self.trainable == "lora" and getattr(arguments, name) > 1:
                raise ValueError(
                    f"--trainable lora does not work with --{name} {getattr(arguments, name)} yet: use DDP."
                )


@dataclass
class TuneArguments(LoopArguments):
    """How a pretrained model is fine-tuned, and for how long."""

    num_train_epochs: float | None = option(
        "Passes over the training examples (default: 3, or up to 10 if there are few of them; none with --max_steps)."
    )
    max_steps: int | None = option("Optimizer steps of the whole run, instead of --num_train_epochs.")
    global_batch_size: int | None = option(
        "Conversations or texts per step, over all processes (default: by their number, from 4 to 64)."
    )
    micro_batch_size: int | None = option(
        "Conversations or texts per forward pass of one process (default: by the longest one)."
    )
    optimizer: Literal["muon", "adamw"] = option(
        "muon: Muon for the matrices of the layers, AdamW for the rest; adamw: AdamW for all.", "adamw"
    )
    learning_rate: float | None = option(
        "Peak learning rate (default: by optimizer, trained parameters, number of examples and width of the model)."
    )
    weight_decay: float = option("Decoupled weight decay of matrices and embeddings.", 0.01)
    adam_beta2: float = option("AdamW's beta2.", 0.98)
    eval_steps: int | None = option(
        "Steps between evaluations (default: a tenth of the run); 0: only before the first and after the last step."
    )
    save_steps: int | None = option("Steps between checkpoints (default: --eval_steps, so that the best is saved).")
    logging_steps: int | None = option("Steps between log lines (default: a tenth of the run, at most 10).")
    max_eval_samples: int = option("Validation examples per evaluation; 0: all.", 0)
    load_best_model_at_end: bool = option(
        "Finish with the weights with the lowest validation loss instead of the last ones.", True
    )

    def __post_init__(self) -> None:
        if self.num_train_epochs is not None and self.max_steps is not None:
            raise ValueError(
                f"--num_train_epochs ({self.num_train_epochs}) and --max_steps ({self.max_steps}) exclude each other: "
                "remove one of them."
            )
        if self.num_train_epochs is not None and not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"--num_train_epochs is {self.num_train_epochs}: it must be a positive number.")
        check_bounds(self, {"max_steps": 1, "eval_steps": 0, "save_steps": 0})
        super().__post_init__()
        self.check_processes(num_processes=1)
        if self.max_steps is not None:
            self.check_schedule(self.max_steps)

    def continued(self, recorded: Mapping[str, Any]) -> "TuneArguments":
        """With the values that an earlier start of this run has chosen, where none are given.

        Args:
            recorded: the settings in its checkpoint; empty for a new run.
        """
        chosen = ["global_batch_size", "micro_batch_size", "learning_rate"]
        chosen += ["max_steps"] if self.num_train_epochs is None else []
        return replace(
            self, **{name: recorded[name] for name in chosen if name in recorded and not getattr(self, name)}
        )

    def for_examples(
        self, num_examples: int, longest: int, config: Any, trainable: str = "all", num_processes: int = 1
    ) -> "FinetuneArguments":
        """The settings of the run, with everything that follows from the training examples and the model.

        Args:
            longest: tokens of the longest example.
            config: of the model.
            trainable: the parameters that are trained, as in `BaseArguments`.
            num_processes: that read different examples.

        Raises:
            ValueError: a warmup that is longer than the run.
        """
        at_once = (self.micro_batch_size or 1) * num_processes
        batch_size = self.global_batch_size or batch_size_for(num_examples, at_once)
        epochs = self.num_train_epochs or epochs_for(num_examples, batch_size)
        steps = self.max_steps or max(1, math.ceil(epochs * num_examples / batch_size))
        eval_steps = math.ceil(steps / NUM_EVALUATIONS) if self.eval_steps is None else self.eval_steps
        shared: dict[str, Any] = {entry.name: getattr(self, entry.name) for entry in fields(LoopArguments)}
        chosen = {
            "global_batch_size": batch_size,
            "micro_batch_size": self.micro_batch_size or micro_batch_size_for(batch_size, longest, num_processes),
            "learning_rate": self.learning_rate or tuning_rate_for(self.optimizer, trainable, num_examples, config),
            "max_steps": steps,
            "eval_steps": eval_steps,
            "save_steps": eval_steps if self.save_steps is None else self.save_steps,
            "logging_steps": self.logging_steps or min(10, max(1, steps // 10)),
            "load_best_model_at_end": self.load_best_model_at_end,
        }
        arguments = FinetuneArguments(**shared | chosen)
        arguments.check_schedule(steps)
        return arguments


@dataclass
class TuneClassifierArguments(TuneArguments):
    """`TuneArguments` with the optimizer that suits classifiers."""

    optimizer: Literal["muon", "adamw"] = option(
        "muon: Muon for the matrices of the layers, AdamW for the rest; adamw: AdamW for all.", "muon"
    )


@dataclass
class FinetuneArguments(TrainArguments):
    """`TuneArguments` after the number of examples is known: the settings that the loop reads."""

    is_finetuning: ClassVar[bool] = True

    load_best_model_at_end: bool = True

    def describe(self, num_examples: int, name: str) -> list[str]:
        """What was chosen, for the terminal; the second line is a warning, if there is one.

        Args:
            name: of the examples, in the plural.
        """
        epochs = self.max_steps * self.global_batch_size / num_examples
        lines = [
            f"{num_examples:,} {name} x {epochs:.3g} epochs = {self.max_steps:,} updates of {self.global_batch_size} "
            f"{name}, peak learning rate {self.learning_rate:g} ({self.optimizer})"
        ]
        if self.max_steps < FEWEST_UPDATES:
            lines.append(
                f"WARNING: {self.max_steps} updates are too few to learn much: aim at {FEWEST_UPDATES} or more, with "
                f"more {name}, a higher --num_train_epochs or a lower --global_batch_size."
            )
        return lines


@dataclass
class RowsArguments:
    """The training and validation rows."""

    train_file: list[str] = required_list(
        "Tables to train on: .jsonl, .json, .csv, .tsv or .parquet files; the text may be compressed (.gz).",
        is_path=True,
        unless=("dataset_name",),
    )
    dataset_name: str | None = option(
        "Instead of --train_file: a dataset on the Hugging Face Hub, or a saved one on disk.", is_path=True
    )
    dataset_config_name: str | None = option("Configuration of --dataset_name.")
    dataset_split: str = option("Split of --dataset_name to train on.", "train")
    validation_file: list[str] = option_list(
        "Tables to validate on (default: a held-out part of the rows).", is_path=True
    )
    validation_split: str | None = option("Split of --dataset_name to validate on.")
    validation_fraction: float | None = option("Fraction of the rows held out for validation (default: 0.1).")
    encoding: str | None = option(ENCODING)
    keep_crlf: bool = option(KEEP_CRLF, False)
    columns: list[str] = option_list(COLUMNS)

    @property
    def reading(self) -> Reading:
        """How the tables are read."""
        return Reading(self.encoding or "utf-8", self.keep_crlf, tuple(self.columns))

    def __post_init__(self) -> None:
        if bool(self.train_file) == bool(self.dataset_name):
            raise ValueError(
                f"--train_file ({' '.join(self.train_file) or 'not set'}) and --dataset_name "
                f"({self.dataset_name or 'not set'}): exactly one of them is required."
            )
        for name in ("dataset_config_name", "validation_split"):
            if getattr(self, name) and not self.dataset_name:
                raise ValueError(requires(name, getattr(self, name), "--dataset_name"))
        self.check_part("validation")
        if not any(getattr(self, f"{part}_file", None) for part in ("train", "validation", "test")):
            require_files(self, ("encoding", "columns"), "--train_file")
        _ = self.reading  # which checks the values

    def check_part(self, part: str) -> None:
        """Refuse several sources for one part, or a fraction out of range.

        Raises:
            ValueError: the settings that exclude each other.
        """
        sources = [f"{part}_file", f"{part}_split", f"{part}_fraction"]
        given = [name for name in sources if getattr(self, name) not in (None, [])]
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} exclude each other: remove one of them.")
        check_fraction(f"{part}_fraction", getattr(self, f"{part}_fraction"))


def checked_max_length(max_length: int | None, longest: int) -> int:
    """`max_length`, or by default `longest`, what the model reads.

    Raises:
        ValueError: the model cannot read that many tokens.
    """
    if max_length is not None and max_length > longest:
        raise ValueError(f"--max_length is {max_length}, but the model reads at most {longest} tokens: lower it.")
    return max_length or longest


@dataclass
class ConversationArguments(RowsArguments):
    """The conversations, and how they become rows of tokens."""

    max_length: int | None = option("Maximum tokens per row (default: the maximum length of the model).")
    too_long: Literal["error", "truncate", "skip"] = option(
        "Conversations longer than --max_length. error: refuse; truncate: shorten, ending with a complete answer; "
        "skip: omit them.",
        "error",
    )
    packing: bool = option("Put several conversations into one row; they do not see each other.", True)
    chat_template: Literal["model", "own"] = option(
        "model: that of the tokenizer, if it has one; own: ours, with its control tokens.", "model"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, {"max_length": 2})


@dataclass
class LabelArguments(RowsArguments):
    """The labelled texts."""

    text_column: str = option("Column with the text.", "text")
    label_column: str = option("Column with the label.", "label")
    test_file: list[str] = option_list(
        "Tables to test the finished model on (default: a held-out part of the rows).", is_path=True
    )
    test_split: str | None = option("Split of --dataset_name to test the finished model on.")
    test_fraction: float | None = option("Fraction of the rows held out for the test (default: 0.1).")
    max_length: int | None = option("Maximum tokens per text (default: the maximum length of the model).")
    bpe_dropout: float = option(
        "Fraction of BPE merges to drop when encoding training texts, again in each epoch; helps if texts are few.",
        0.0,
    )
    class_weights: Literal["none", "balanced"] = option(
        "balanced: each label has the same total weight in the loss, however rare it is.", "none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_part("test")
        if self.test_split and not self.dataset_name:
            raise ValueError(requires("test_split", self.test_split, "--dataset_name"))
        check_bounds(self, {"max_length": 1, "bpe_dropout": 0})
        if self.bpe_dropout >= 1:
            raise ValueError(f"--bpe_dropout is {self.bpe_dropout}: it must be below 1.")
