"""From settings to the parts of a run: config, model, optimizers, batches, and what must not change later."""

import inspect
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch_gpt import PRESETS, ScratchGPTConfig

from .arguments import ModelArguments, TrainArguments
from .cost import flops_per_token
from .data import PreparedData
from .device import matmul_rate
from .language_modelling import SAMPLING, LanguageModelling, Prompt
from .metrics import token_byte_lengths
from .optimizer import build_optimizers
from .order import StepSampler
from .parallel import Grid, split_model
from .run import Examples, Objective, Run
from .schedule import seed_at

# Settings that may differ when a run continues: what is shown and kept, and over how many processes the same work is
# spread. All others are frozen, also those that change no more than dropout masks and rounding.
MAY_CHANGE = {
    *("output_dir", "report_to", "log_every", "eval_every", "eval_sequences", "sample_prompts", "sample_tokens"),
    *("save_every", "keep_checkpoints", "async_save", "allow_change", "max_skipped", "process_timeout"),
    "final_weights",
    *("fsdp_size", "fsdp_keep_weights", "tp_size", "gradient_checkpointing"),
}


NOT_OF_THE_MODEL = {"transformers_version", "auto_map", "_name_or_path"}  # entries of a config


def build_run(
    arguments: TrainArguments,
    model: PreTrainedModel,
    objective: Objective,
    examples: tuple[Examples, Examples],
    tokenizer: PreTrainedTokenizerBase,
    place: tuple[Accelerator, Grid],
    facts: dict[str, Any],
    is_tuning: bool = False,
) -> Run:
    """Puts a run together: splits or wraps the model, makes optimizers and batches.

    Args:
        model: with float32 weights, equal in every process; what is not to be trained does not require gradients.
        examples: for training and for validation.
        place: this process, from `build_accelerator` and `build_grid`.
        facts: what else decides the result, such as the data; frozen with the settings.

    Raises:
        ValueError: settings that do not fit each other or the data.
    """
    accelerator, grid = place
    config = model.config
    prepare_model(model, arguments)
    precision = accelerator.mixed_precision.replace("no", "fp32")
    if grid.mesh is not None:
        check_split(arguments, precision)
        split_model(
            model.to(accelerator.device),
            grid,
            torch.bfloat16 if precision == "bf16" else torch.float32,
            keep_weights=arguments.fsdp_keep_weights,
        )
    optimizers = _build_optimizers(model, arguments, precision)
    if grid.mesh is None:
        model, *optimizers = accelerator.prepare(model, *optimizers)
    all_devices = accelerator.num_processes * matmul_rate(accelerator.device, precision)
    flops = 0.0
    if isinstance(config, ScratchGPTConfig) and not is_tuning:  # the formula knows no frozen weights
        flops = flops_per_token(config, round(examples[0].mean_length))
    return Run(
        arguments=arguments,
        accelerator=accelerator,
        model=model,
        optimizers=optimizers,
        batches=_build_batches(examples[0], arguments, grid),
        validation=examples[1],
        objective=objective,
        tokenizer=tokenizer,
        grid=grid,
        frozen=frozen_settings(arguments, precision, config) | facts,
        peak_tokens_per_second=all_devices / flops if flops else math.inf,
        is_tuning=is_tuning,
    )


def next_token_objective(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: TrainArguments
) -> LanguageModelling:
    """What pretraining learns; samples continue `sample_prompts`.

    Raises:
        ValueError: a prompt that leaves no room for its continuation.
    """
    prompts = [Prompt(text, tokenizer(text)["input_ids"] or [bos_id(tokenizer)]) for text in arguments.sample_prompts]
    check_prompts(model.config, prompts, arguments)
    return LanguageModelling(
        tokenizer,
        token_byte_lengths(tokenizer),
        prompts,
        SAMPLING | {"max_new_tokens": arguments.sample_tokens},
        arguments.seed,
        skips_logits(model),
    )


def bos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token from which a text is begun."""
    found: Any = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return int(found)


def skips_logits(model: PreTrainedModel) -> dict[str, bool]:
    """Asks a model that can for a loss without the logits, which are most of the memory."""
    return {"skip_logits": True} if "skip_logits" in inspect.signature(model.forward).parameters else {}


def check_split(arguments: TrainArguments, precision: str) -> None:
    """Refuses what cannot be done with a split model.

    Raises:
        ValueError: the setting, and what to do instead.
    """
    sizes = f"--fsdp_size {arguments.fsdp_size} --tp_size {arguments.tp_size}"
    if precision == "fp16":
        raise ValueError(f"--precision fp16 does not go with {sizes}: use bf16 or fp32.")
    if arguments.async_save:
        raise ValueError(f"--async_save does not go with {sizes} yet: leave one of them out.")
    if arguments.compile:
        raise ValueError(f"--compile does not go with {sizes} yet: leave one of them out.")


def _build_optimizers(model: PreTrainedModel, arguments: TrainArguments, precision: str) -> list[Optimizer]:
    return build_optimizers(
        model,
        optimizer=arguments.optimizer,
        learning_rate=arguments.learning_rate,
        matrix_learning_rate=arguments.matrix_learning_rate,
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        matrix_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )


def _build_batches(examples: Examples, arguments: TrainArguments, grid: Grid) -> StepSampler:
    return StepSampler(
        examples,
        batch_size=arguments.batch_size,
        micro_batch_size=arguments.micro_batch_size,
        seed=arguments.seed,
        process_index=grid.data_index,
        num_processes=grid.data_size,
    )


def build_config(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> ScratchGPTConfig:
    """The model's config; vocabulary size and special tokens are those of the tokenizer.

    Raises:
        ValueError: no such preset, unknown keys, values that do not fit each other.
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
    if arguments.config in PRESETS:
        return ScratchGPTConfig.from_preset(arguments.config, **overrides, **from_tokenizer)
    return ScratchGPTConfig.from_values(read_config(arguments.config) | overrides | from_tokenizer)


def read_config(name: str) -> dict[str, Any]:
    """The values of a config.json, given by its path or its folder.

    Raises:
        ValueError: `name` is neither, or holds no JSON object.
        OSError: it cannot be read.
    """
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if path.suffix != ".json":
        raise ValueError(f"--config {name} is neither a preset ({', '.join(PRESETS)}) nor a config.json.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} must hold a JSON object, not {values!r:.80}")
    return values


def parse_overrides(text: str) -> dict[str, Any]:
    """`"num_hidden_layers=4,qk_norm=false"` as a dictionary; values as in YAML.

    Raises:
        ValueError: the text has another form.
    """
    try:
        values = yaml.safe_load("{" + text.replace("=", ": ") + "}")
    except yaml.YAMLError:
        values = {None: None}
    if None in values.values() and "null" not in text:
        raise ValueError(f'--config_overrides {text!r} must look like "name=value,name=value".')
    return {name: _number_or_same(value) for name, value in values.items()}


def _number_or_same(value: Any) -> Any:
    try:  # YAML takes 1e-6 for text
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def check_block(config: PreTrainedConfig, block_size: int) -> None:
    """Refuses sequences for which the model has no positions.

    Raises:
        ValueError: both lengths, and how to raise the model's.
    """
    longest = config.max_position_embeddings
    if block_size > longest:
        raise ValueError(
            f"the data has sequences of {block_size} tokens, but max_position_embeddings is "
            f"{longest}: raise it with --config_overrides max_position_embeddings={block_size}, "
            "or prepare the data with a shorter block."
        )


def check_prompts(config: PreTrainedConfig, prompts: Sequence[Prompt], arguments: TrainArguments) -> None:
    """Refuses prompts whose continuation has no positions in the model.

    Raises:
        ValueError: the prompt and both lengths.
    """
    longest = config.max_position_embeddings
    for prompt in prompts:
        length = len(prompt.ids) + arguments.sample_tokens
        if length > longest:
            raise ValueError(
                f"--sample_prompts: {prompt.shown[:40]!r} and {arguments.sample_tokens} sample_tokens "
                f"are {length} tokens, but max_position_embeddings is {longest}: shorten them."
            )


def new_model(config: PreTrainedConfig, seed: int, auto_class: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """A model with new weights in float32, which depend on the seed alone."""
    torch.manual_seed(seed_at(seed, "model"))
    model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    return model


def prepare_model(model: PreTrainedModel, arguments: TrainArguments) -> None:
    """Switches on what the settings ask for, and training mode."""
    if arguments.gradient_checkpointing:
        with warnings.catch_warnings():  # the name that transformers before 5.23 knows too
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable()
    if arguments.compile:
        model.compile()
    model.train()


def check_allowed(names: Sequence[str], kind: type[TrainArguments]) -> None:
    """Refuses names of no setting.

    Raises:
        ValueError: the name, and those there are.
    """
    known = sorted({entry.name for entry in fields(kind)} - MAY_CHANGE | {"precision", "model", "data"})
    for name in names:
        if name in MAY_CHANGE:
            raise ValueError(f"--allow_change {name} has no effect: this setting may always change.")
        if name not in known:
            raise ValueError(f"--allow_change {name} is no setting of a run. There are: {', '.join(known)}.")


def frozen_settings(arguments: TrainArguments, precision: str, config: PreTrainedConfig) -> dict[str, Any]:
    """What decides the result of a run beside its data: it must not change when the run continues."""
    settings = {name: v for name, v in asdict(arguments).items() if name not in MAY_CHANGE}
    shape = {name: v for name, v in config.to_dict().items() if name not in NOT_OF_THE_MODEL}
    return settings | {"precision": precision, "model": shape}


def data_facts(data: PreparedData) -> dict[str, Any]:
    """The identity of prepared data."""
    tokens = {split: facts["tokens_sha256"] for split, facts in data.manifest["splits"].items()}
    facts = {name: data.manifest[name] for name in ("block_size", "tokenizer_sha256")}
    return {"data": facts | {"tokens_sha256": tokens}}
