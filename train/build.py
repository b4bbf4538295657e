"""From settings to the parts of a run: config, model, optimizers, batches, and what must not change later."""

import inspect
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_scratch_gpt import PRESETS, ScratchGPTConfig

from .arguments import ModelArguments, TrainArguments
from .cost import flops_per_token
from .data import PreparedData, StepSampler
from .device import matmul_rate
from .metrics import token_byte_lengths
from .optimizer import build_optimizers
from .parallel import Grid, split_model
from .run import Run
from .schedule import seed_at

# Settings that may differ when a run continues: what is shown and kept, and over how many processes the same work is
# spread. All others are frozen, also those that change no more than dropout masks and rounding.
MAY_CHANGE = {
    *("output_dir", "report_to", "log_every", "eval_every", "eval_sequences", "sample_prompts", "sample_tokens"),
    *("save_every", "keep_checkpoints", "async_save", "allow_change", "max_skipped", "process_timeout"),
    *("fsdp_size", "fsdp_keep_weights", "tp_size", "gradient_checkpointing"),
}


def build_run(
    model_arguments: ModelArguments,
    arguments: TrainArguments,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    grid: Grid,
) -> Run:
    """Builds model, optimizers and batches of a run from its settings.

    Raises:
        ValueError: settings that do not fit each other or the data.
    """
    config = build_config(model_arguments, tokenizer)
    check_lengths(config, data.train.block_size, tokenizer, arguments)
    model = build_model(config, arguments)
    precision = accelerator.mixed_precision.replace("no", "fp32")
    if grid.mesh is not None:
        check_split(arguments, precision)
        split_model(
            model.to(accelerator.device),
            grid,
            torch.bfloat16 if precision == "bf16" else torch.float32,
            keep_weights=arguments.fsdp_keep_weights,
        )
    optimizers = build_optimizers(
        model,
        optimizer=arguments.optimizer,
        learning_rate=arguments.learning_rate,
        matrix_learning_rate=arguments.matrix_learning_rate,
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        matrix_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    frozen = frozen_settings(arguments, precision, config, data)
    takes_skip_logits = "skip_logits" in inspect.signature(model.forward).parameters
    if grid.mesh is None:
        model, *optimizers = accelerator.prepare(model, *optimizers)
    all_devices = accelerator.num_processes * matmul_rate(accelerator.device, precision)
    return Run(
        arguments=arguments,
        accelerator=accelerator,
        model=model,
        optimizers=optimizers,
        batches=_build_batches(data, arguments, grid),
        validation=data.validation,
        tokenizer=tokenizer,
        token_bytes=token_byte_lengths(tokenizer),
        grid=grid,
        frozen=frozen,
        peak_tokens_per_second=all_devices / flops_per_token(config, data.train.block_size),
        forward_kwargs={"skip_logits": True} if takes_skip_logits else {},
    )


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


def _build_batches(data: PreparedData, arguments: TrainArguments, grid: Grid) -> StepSampler:
    return StepSampler(
        data.train,
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


def check_lengths(
    config: PreTrainedConfig,
    block_size: int,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainArguments,
) -> None:
    """Refuses sequences and prompts for which the model has no positions."""
    longest = config.max_position_embeddings
    if block_size > longest:
        raise ValueError(
            f"the data has sequences of {block_size} tokens, but max_position_embeddings is "
            f"{longest}: raise it with --config_overrides max_position_embeddings={block_size}, "
            "or prepare the data with a shorter block."
        )
    for prompt in arguments.sample_prompts:
        length = max(1, len(tokenizer(prompt)["input_ids"])) + arguments.sample_tokens
        if length > longest:
            raise ValueError(
                f"--sample_prompts: {prompt[:40]!r} and {arguments.sample_tokens} sample_tokens "
                f"are {length} tokens, but max_position_embeddings is {longest}: shorten them."
            )


def build_model(config: PreTrainedConfig, arguments: TrainArguments) -> PreTrainedModel:
    """A model with new weights in float32, which depend on the seed alone."""
    torch.manual_seed(seed_at(arguments.seed, "model"))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if arguments.gradient_checkpointing:
        with warnings.catch_warnings():  # the name that transformers before 5.23 knows too
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable()
    if arguments.compile:
        model.compile()
    return model.train()


def check_allowed(names: Sequence[str]) -> None:
    """Refuses names of no setting.

    Raises:
        ValueError: the name, and those there are.
    """
    known = sorted({entry.name for entry in fields(TrainArguments)} - MAY_CHANGE | {"precision", "model", "data"})
    for name in names:
        if name in MAY_CHANGE:
            raise ValueError(f"--allow_change {name} has no effect: this setting may always change.")
        if name not in known:
            raise ValueError(f"--allow_change {name} is no setting of a run. There are: {', '.join(known)}.")


def frozen_settings(
    arguments: TrainArguments, precision: str, config: PreTrainedConfig, data: PreparedData
) -> dict[str, Any]:
    """What decides the result of a run: it must not change when the run continues."""
    settings = {name: v for name, v in asdict(arguments).items() if name not in MAY_CHANGE}
    shape = {n: v for n, v in config.to_dict().items() if n not in ("transformers_version", "auto_map")}
    tokens = {split: facts["tokens_sha256"] for split, facts in data.manifest["splits"].items()}
    facts = {name: data.manifest[name] for name in ("block_size", "tokenizer_sha256")}
    return settings | {"precision": precision, "model": shape, "data": facts | {"tokens_sha256": tokens}}
