"""The dial of pretraining: choose what `--minutes` or `--flops` leave open, and say how right the choice was."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from ..data.blocks import PreparedData, TokenBlocks
from ..distributed.device import is_out_of_memory
from ..model.new import FAMILY, build_config, changes_of, check_block_size, ladder, new_model, with_overrides
from ..model.recomputation import set_gradient_checkpointing
from ..settings.defaults import learning_rates_for
from ..settings.durable import replace_text
from ..settings.json_files import read_json
from ..settings.run_folder import BUDGET_FILE
from ..settings.training import BudgetArguments, ModelArguments, TrainArguments
from . import budget
from .budget import Limits, Text, Training
from .compilation import compiles
from .forecast import Speed, format_duration, free_memory, measure_speed
from .run import precision_of

TIMING_SECONDS = 0.3  # for each measured part of a step
LARGEST_MICRO_BATCH = 32  # sequences
SPARE = 0.02  # of the time, for checkpoints and for what else the machine does
FINISH_SECONDS = 4.0  # to write the model, its card and its loss curve
SHAPE = {"budget": dict, "settings": dict, "expected_loss": float, "expected_seconds": float}
REMEDY = "Choose another --output_dir, or delete the run folder to start over."
FEW_STEPS = 200
ACCURACY = "usually within 0.1 for Python's text, 0.2 for others"
ACCURACY_OF_FEW = "after so few steps it can be off by 1"
SHAPE_OPTION = "config_overrides"  # its chosen value is completed by the given one
LENGTH_OPTIONS = ("max_steps", "model")  # that a budget replaces


@dataclass
class Choice:
    """What was chosen for a budget. It is saved in the run folder, so that a continued run keeps it.

    Args:
        budget: minutes or FLOPs.
        settings: the chosen options of `pretrain`.
        expected_loss: nats per token on the validation split.
        expected_seconds: of the whole command; 0 if unknown.
    """

    budget: dict[str, float]
    settings: dict[str, Any]
    expected_loss: float
    expected_seconds: float

    def applied(
        self, model: ModelArguments, training: TrainArguments, given: Mapping[str, Any]
    ) -> tuple[ModelArguments, TrainArguments]:
        """The settings with the chosen ones in their places.

        Args:
            given: the options that the user has set; they win.

        Raises:
            ValueError: given options that do not fit the chosen ones.
        """
        chosen = {name: value for name, value in self.settings.items() if name not in given}
        if training.optimizer == "adamw":  # now: the run is then refused as a changed one
            chosen.pop("matrix_learning_rate", None)
        if SHAPE_OPTION in self.settings:
            chosen[SHAPE_OPTION] = with_overrides(self.settings[SHAPE_OPTION], model.config_overrides)
        of_model = {name: value for name, value in chosen.items() if hasattr(model, name)}
        rest = {name: value for name, value in chosen.items() if name not in of_model}
        training = replace(training, **rest)
        training.check_lengths()
        return replace(model, **of_model), training


def choose(
    asked: BudgetArguments,
    model_arguments: ModelArguments,
    arguments: TrainArguments,
    given: Mapping[str, Any],
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
) -> Choice:
    """The choice of an earlier start of the run, or a new one, which is printed and saved.

    Args:
        given: the options that the user has set; they are kept.

    Raises:
        ValueError: options that contradict a budget, several processes, a run with another budget, sequences that are
            too long for the models, or no memory for any of them.
    """
    started = time.perf_counter()
    check(asked, given, accelerator.num_processes)
    path = Path(arguments.output_dir) / BUDGET_FILE
    wanted = {name: value for name, value in asdict(asked).items() if value is not None}
    if path.exists():
        return earlier_choice(path, wanted, given)
    if model_arguments.config:
        candidates = [build_config(model_arguments, tokenizer)]
    else:
        candidates = ladder(tokenizer, model_arguments.config_overrides)
    for config in candidates:
        check_block_size(config, data.train.block_size)
    text = describe(data)
    trainings = trainings_within(asked, candidates, text, arguments, given, data, accelerator, started)
    training = budget.best_of(trainings)
    largest = largest_micro_batch(text, accelerator.device)
    settings = settings_of(training, arguments, given, largest, is_ladder=not model_arguments.config)
    is_compiled = compiles(arguments.torch_compile, accelerator.device, training.seconds)
    if training.seconds:
        settings["torch_compile"] = "true" if is_compiled else "false"
    seconds = training.seconds and training.seconds / (1 - SPARE) + FINISH_SECONDS + time.perf_counter() - started
    choice = Choice(wanted, settings, training.expected_loss, seconds)
    replace_text(path, json.dumps(asdict(choice), indent=2) + "\n")
    accelerator.print(explanation(trainings, text, choice, is_compiled=is_compiled))
    return choice


def check(asked: BudgetArguments, given: Mapping[str, Any], num_processes: int) -> None:
    """Refuse what a budget cannot be combined with.

    Raises:
        ValueError: the option, and what to do.
    """
    name = "minutes" if asked.minutes else "flops"
    for other in LENGTH_OPTIONS:
        if given.get(other) is not None:
            raise ValueError(f"--{other} and --{name} exclude each other: remove one of them.")
    if num_processes > 1:
        raise ValueError(
            f"--{name} works with one process, but {num_processes} were started: choose --config and --max_steps "
            "yourself, with the help of scratch-gpt plan."
        )


def earlier_choice(path: Path, wanted: dict[str, float], given: Mapping[str, Any]) -> Choice:
    """The choice that was saved when the run was started.

    Raises:
        ValueError: it was made for another budget or with another use of --config, or the file is damaged
            (`DamagedFileError`).
    """
    saved = read_json(path, SHAPE, REMEDY)
    if saved["budget"] != wanted:
        ((name, value),), ((new_name, new_value),) = saved["budget"].items(), wanted.items()
        raise ValueError(
            f"{path.parent} was started with --{name} {value:g}, not --{new_name} {new_value:g}. Choose another "
            "--output_dir for another budget."
        )
    was_given, is_given = "config" not in saved["settings"], given.get("config") is not None
    if was_given != is_given:
        started, remedy = ("with", "give it again") if was_given else ("without", "remove it")
        raise ValueError(f"{path.parent} was started {started} --config: {remedy}, or choose another --output_dir.")
    return Choice(**{name: saved[name] for name in SHAPE})


def describe(data: PreparedData) -> Text:
    """What the rule needs to know of the data."""
    train, validation = data.train, data.validation
    loss = budget.ngram_loss(
        tokens_of(train, budget.NGRAM_TOKENS), tokens_of(validation, budget.NGRAM_TEST_TOKENS), train.vocab_size
    )
    return Text(len(train) * train.block_size, train.block_size, loss)


def tokens_of(blocks: TokenBlocks, limit: int) -> Any:
    """About `limit` tokens from blocks spread evenly over a split, (tokens,)."""
    count = min(len(blocks), max(1, limit // blocks.block_size))
    return blocks.rows([number * len(blocks) // count for number in range(count)])[:, 1:].flatten().numpy()


def trainings_within(
    asked: BudgetArguments,
    candidates: list[Any],
    text: Text,
    arguments: TrainArguments,
    given: Mapping[str, Any],
    data: PreparedData,
    accelerator: Accelerator,
    started: float,
) -> list[Training]:
    """Trainings to choose from. For minutes, models are timed until a larger one would be worse."""
    batch_size, micro_batch_size = (given.get(f"{name}_batch_size") for name in ("global", "micro"))
    if asked.flops:
        return budget.trainings_for_flops(candidates, text, asked.flops, batch_size, micro_batch_size or 1)
    num_evaluated = min(len(data.validation), arguments.max_eval_samples or len(data.validation))
    size = micro_batch_size or largest_micro_batch(text, accelerator.device)
    limits = Limits(
        seconds=0.0,
        micro_batch_size=size,
        batch_size=batch_size,
        multiple_of=micro_batch_size or 1,
        eval_micro_batches=math.ceil(num_evaluated / size),
        sampled_tokens=arguments.max_new_tokens if arguments.sample_prompts else 0,
    )

    def left() -> Limits:  # the measurements take time too
        seconds = (asked.minutes or 0.0) * 60 - FINISH_SECONDS - (time.perf_counter() - started)
        return replace(limits, seconds=max(0.0, seconds * (1 - SPARE)))

    def measure(config: Any) -> Speed | None:
        return speed_of(config, arguments, size, text.block_size, accelerator)

    found = budget.trainings_for_seconds(candidates, text, left, measure)
    free_memory()
    if not found:
        raise ValueError(
            f"out of memory: {size} sequences of {text.block_size} tokens do not fit on {accelerator.device}. Choose a "
            "smaller --micro_batch_size, or add --gradient_checkpointing."
        )
    return found


def speed_of(
    config: Any, arguments: TrainArguments, micro_batch_size: int, block_size: int, accelerator: Accelerator
) -> Speed | None:
    """The speed of training a model as the run will train it; None if it does not fit into memory."""
    try:
        model = new_model(config, arguments.seed)
        set_gradient_checkpointing(model, arguments.gradient_checkpointing)
        return measure_speed(
            model,
            optimizer=arguments.optimizer,
            micro_batch_size=micro_batch_size,
            block_size=block_size,
            precision=precision_of(accelerator),
            device=accelerator.device,
            num_prompts=len(arguments.sample_prompts),
            enough_seconds=TIMING_SECONDS,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def largest_micro_batch(text: Text, device: torch.device) -> int:
    """Sequences of the micro-batches that are timed, and at most of those that train."""
    if device.type != "cpu":
        return LARGEST_MICRO_BATCH
    return min(max(1, budget.SMALLEST_BATCH // text.block_size), LARGEST_MICRO_BATCH)


def settings_of(
    training: Training, arguments: TrainArguments, given: Mapping[str, Any], largest: int, *, is_ladder: bool
) -> dict[str, Any]:
    """The options of `pretrain` that a training stands for, without those that are given.

    Args:
        largest: number of sequences of a micro-batch.
    """
    config, steps = training.config, training.max_steps
    every = math.ceil(steps / training.num_evaluations)
    chosen: dict[str, Any] = {
        "global_batch_size": training.batch_size,
        "micro_batch_size": max(size for size in range(1, largest + 1) if training.batch_size % size == 0),
        "max_steps": steps,
        "min_lr_ratio": 0.0,
        "eval_steps": every,
        "save_steps": every,
        "logging_steps": max(1, steps // 100),
        "load_best_model_at_end": True,
    }
    if "learning_rate" not in given:  # Muon follows a given one
        rates = learning_rates_for(arguments.optimizer, config)
        chosen |= dict(zip(("learning_rate", "matrix_learning_rate"), rates, strict=True))
    chosen = {name: value for name, value in chosen.items() if name not in given}
    if is_ladder:
        shape = changes_of(config.num_hidden_layers, config.hidden_size)
        chosen = {"config": FAMILY, SHAPE_OPTION: shape} | chosen
    return chosen


def explanation(trainings: list[Training], text: Text, choice: Choice, *, is_compiled: bool) -> str:
    """Lines for the terminal: what was chosen and why, and what is expected."""
    training = budget.best_of(trainings)
    config = training.config
    ((name, value),), tokens = choice.budget.items(), training.num_tokens
    epochs = tokens / text.num_tokens
    accuracy = ACCURACY if training.max_steps >= FEW_STEPS else ACCURACY_OF_FEW
    rows = {
        "budget": f"{value:g} FLOPs" if name == "flops" else f"{value:g} minute{'s' * (value != 1)} on this machine",
        "model": f"{config.num_hidden_layers} layers, {config.hidden_size} wide: {config.parameter_count:,} parameters",
        "steps": f"{training.max_steps:,} of {training.batch_size} sequences: {tokens:,} tokens, {epochs:.2g} epochs",
        "expected loss": f"{choice.expected_loss:.2f} nats per token on the validation text ({accuracy})",
    }
    if neighbors := neighbors_of(training, trainings):
        same = "in the same time" if name == "minutes" else "for the same FLOPs"
        rows["other models"] = f"{same}, {', '.join(map(outcome, neighbors))}"
    if choice.expected_seconds:
        rows["expected time"] = f"{format_duration(choice.expected_seconds)}, measured on this machine"
        if is_compiled:
            rows["expected time"] += " without torch.compile, which makes the run shorter"
    if epochs > 0.99 * budget.MAX_EPOCHS:
        rows["note"] = (
            f"the text is too short for the budget: more than {budget.MAX_EPOCHS} passes over it would teach the model "
            "little, so training ends earlier"
        )
    elif training.max_steps < FEW_STEPS:
        rows["WARNING"] = (
            f"only {training.max_steps} steps fit into the budget (is the machine busy?). After so few steps a model "
            "writes hardly a word: stop with Ctrl-C, and start again with a larger budget and another --output_dir"
        )
    return "\n".join(f"{title:<24}{row}" for title, row in rows.items())


def neighbors_of(training: Training, trainings: list[Training]) -> list[Training]:
    """The trainings of the next smaller and the next larger model, as far as there are any."""
    place = trainings.index(training)
    return [*trainings[:place][-1:], *trainings[place + 1 :][:1]]


def outcome(training: Training) -> str:
    """The expected loss of a model, as text."""
    config = training.config
    return f"{config.num_hidden_layers} layers, {config.hidden_size} wide would reach {training.expected_loss:.2f}"


def verdict(choice: Choice, loss: float, seconds: float | None) -> str:
    """One line that compares the outcome with the forecast.

    Args:
        loss: of the final weights on the validation split, nats per token.
        seconds: that the command took; None if the run was interrupted.
    """
    parts = [f"loss {loss:.2f} (expected {choice.expected_loss:.2f}, {loss - choice.expected_loss:+.2f})"]
    if choice.expected_seconds and seconds is not None:
        difference = seconds / choice.expected_seconds - 1
        parts.append(
            f"time {format_duration(seconds)} (expected {format_duration(choice.expected_seconds)}, {difference:+.0%})"
        )
    return f"{'forecast':<24}{', '.join(parts)}"
