"""Pretrain a model from scratch on prepared data; the same command again continues the run.

    python -m train.pretrain recipe.yaml --max_steps 2000
    accelerate launch -m train.pretrain recipe.yaml

The run folder then holds recipe.yaml, metrics.jsonl, samples.jsonl, checkpoint-*/ and, when all
steps are done, model/ with the trained model and its tokenizer.
"""

import inspect
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from hf_scratch_gpt import PRESETS, ScratchGPTConfig, ScratchGPTTokenizer

from . import checkpoint, loop
from .arguments import (
    DataArguments,
    ModelArguments,
    TrainArguments,
    parse_recipe,
    recipe_text,
    run_script,
)
from .data import TOKENIZER_FOLDER, PreparedData, StepSampler, open_data
from .device import build_accelerator, keep_freed_memory
from .heartbeat import heartbeat
from .metrics import LOG_FILES, JsonLines, token_byte_lengths
from .model_card import CARD_NAME, PICTURE_NAME, draw_loss_curve, model_card, run_figures
from .optimizer import build_optimizers
from .parallel import Grid, build_grid, split_model, whole
from .resume import resume
from .run import Run, TrainState
from .status import write_status

# Settings that may differ when a run continues: what is shown and kept, and over how many processes the same work is
# spread. All others are frozen, also those that change no more than dropout masks and rounding.
MAY_CHANGE = {
    *("output_dir", "gradient_checkpointing", "report_to", "fsdp_size", "tp_size", "process_timeout"),
    *("log_every", "eval_every", "save_every", "eval_sequences", "keep_checkpoints", "allow_change", "max_skipped"),
    *("sample_prompts", "sample_tokens"),
}
MODEL_FOLDER = "model"
RECIPE_FILE = "recipe.yaml"
PLACES = ("data_dir:", "output_dir:")  # entries of a recipe that hold only on this machine
STOPPED = 130  # exit code


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 130 when a signal has stopped it."""
    kinds = (ModelArguments, DataArguments, TrainArguments)
    model_arguments, data_arguments, arguments = parse_recipe(kinds, argv, description=__doc__ or "")
    check_allowed(arguments.allow_change)
    keep_freed_memory()
    transformers_logging.disable_progress_bar()  # of each save
    folder = open_run_folder(arguments.output_dir)
    accelerator = build_accelerator(
        arguments.precision, arguments.report_to, arguments.output_dir, arguments.process_timeout
    )
    grid = build_grid(accelerator, arguments.fsdp_size, arguments.tp_size)
    arguments.check_processes(grid.data_size)
    # one process claims the folder; the lock ends with it
    claim = checkpoint.lock(folder) if accelerator.is_main_process else nullcontext()
    with claim, told_in_status(folder, accelerator), heartbeat(folder, accelerator):
        is_complete = pretrain(model_arguments, data_arguments, arguments, accelerator, grid)
    # in this order: a model that outlives the group of processes can hang in its destructor
    accelerator.free_memory()
    accelerator.end_training()
    return 0 if is_complete else STOPPED


@contextmanager
def told_in_status(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Writes to status.json that the run goes on, and why it failed if it does."""
    tell = partial(write_status, folder) if accelerator.is_main_process else lambda state, **facts: None
    tell("running")
    try:
        yield
    except BaseException as error:
        tell("failed", reason=str(error) or type(error).__name__)
        raise


def pretrain(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainArguments,
    accelerator: Accelerator,
    grid: Grid,
) -> bool:
    """Starts, continues or finds complete the run of these settings; returns whether it is complete."""
    data = open_data(data_arguments.data_dir)
    tokenizer = ScratchGPTTokenizer.from_pretrained(Path(data_arguments.data_dir) / TOKENIZER_FOLDER)
    run = build_run(model_arguments, arguments, data, tokenizer, accelerator, grid)
    state = resume(run)
    model_folder = run.folder / MODEL_FOLDER
    accelerator.print(describe(run, state, data))
    if model_folder.exists() and state.step == arguments.max_steps:
        accelerator.print(f"already complete: the model is in {model_folder}")
        tell_progress(run, state, "complete")
        return True
    if accelerator.is_main_process:
        recipe = recipe_text(model_arguments, data_arguments, arguments)
        (run.folder / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    if arguments.report_to:
        accelerator.init_trackers("hf_scratch_gpt")
    state = loop.train(run, state)
    if state.step < arguments.max_steps:
        tell_progress(run, state, "stopped")
        return False
    weights = {name: whole(tensor).cpu() for name, tensor in checkpoint.named_weights(run.bare_model).items()}
    if accelerator.is_main_process:
        recipe = (run.folder / RECIPE_FILE).read_text(encoding="utf-8")
        save_model(run, model_folder, data, recipe, weights)
    accelerator.wait_for_everyone()
    tell_progress(run, state, "complete")
    accelerator.print(f"complete: the model is in {model_folder}")
    return True


def tell_progress(run: Run, state: TrainState, what: str) -> None:
    """Writes to status.json how far the run is."""
    if run.accelerator.is_main_process:
        saved = checkpoint.checkpoint_paths(run.folder)
        last = saved[-1].name if saved else None
        write_status(run.folder, what, step=state.step, max_steps=run.arguments.max_steps, checkpoint=last)


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
        split_model(model.to(accelerator.device), grid, torch.bfloat16 if precision == "bf16" else torch.float32)
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
    return ScratchGPTConfig.from_values(_read_config(arguments.config) | overrides | from_tokenizer)


def _read_config(name: str) -> dict[str, Any]:
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
    torch.manual_seed(loop.seed_at(arguments.seed, "model"))
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


def open_run_folder(output_dir: str) -> Path:
    """The folder of the run, made or known as one, and writable.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be written.
    """
    folder = Path(output_dir)
    if folder.is_dir() and not (folder / checkpoint.LOCK_FILE).exists() and any(folder.iterdir()):
        raise ValueError(f"--output_dir {folder} is not empty and holds no run: name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / checkpoint.LOCK_FILE).touch()
    return folder


def describe(run: Run, state: TrainState, data: PreparedData) -> str:
    """The table of what follows from the settings."""
    arguments, accelerator = run.arguments, run.accelerator
    block_size, num_rows = data.train.block_size, len(data.train)
    tokens = arguments.batch_size * block_size
    epochs = arguments.max_steps * arguments.batch_size / num_rows
    rows = {
        "model": f"{run.bare_model.num_parameters():,} parameters",
        "tokens per step": f"{tokens:,} ({arguments.batch_size} sequences of {block_size})",
        "micro-batches per step": f"{arguments.batch_size // arguments.micro_batch_size} of "
        f"{arguments.micro_batch_size} sequences",
        "processes": f"{accelerator.num_processes}{engine(arguments, run.grid)}",
        "tokens in total": f"{tokens * arguments.max_steps:,} ({epochs:.2f} epochs)",
        "steps": f"{state.step} of {arguments.max_steps} done",
        "optimizer": arguments.optimizer,
        "precision": run.frozen["precision"],
        "device": str(accelerator.device),
        "run folder": str(run.folder),
    }
    return "\n".join(f"{name:<24}{value}" for name, value in rows.items())


def engine(arguments: TrainArguments, grid: Grid) -> str:
    """How processes share the model, in words."""
    if grid.mesh is None:
        return ""
    replicas = grid.data_size // arguments.fsdp_size
    return f": {replicas} replicas x {arguments.fsdp_size} shards (FSDP2) x {arguments.tp_size} (tensor parallel)"


def save_model(run: Run, folder: Path, data: PreparedData, recipe: str, weights: dict[str, Tensor]) -> None:
    """Writes the trained model, its tokenizer, card and loss curve; the folder appears when it is whole."""
    unfinished = folder.with_name(f".tmp-{folder.name}")
    run.bare_model.save_pretrained(unfinished, state_dict=weights)
    run.tokenizer.save_pretrained(unfinished)
    corpus = data.manifest["corpus"]["train"]["description"]
    metrics, samples = (JsonLines(run.folder / name).read() for name in LOG_FILES)
    parameters = run.bare_model.num_parameters()
    title = f"{parameters / 1e6:.1f} million parameters, trained on {corpus}"
    draw_loss_curve(metrics, unfinished / PICTURE_NAME, title=title, vocab_size=run.bare_model.config.vocab_size)
    lines = recipe.splitlines(keepends=True)
    recipe = "".join(line for line in lines if not line.startswith(PLACES))  # where it lay is nobody's business
    facts = {"name": f"scratch-gpt-{parameters / 1e6:.1f}M", "corpus": corpus, "recipe": recipe}
    figures = {"parameters": f"{parameters:,}"} | run_figures(metrics)
    last = [sample for sample in samples if sample["step"] == run.arguments.max_steps]
    (unfinished / CARD_NAME).write_text(model_card(facts, figures, last), encoding="utf-8")
    unfinished.rename(folder)


if __name__ == "__main__":
    sys.exit(run_script(main))
