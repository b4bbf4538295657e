"""Pretrain a model on prepared data, from scratch or from the weights of another model.

    scratch-gpt pretrain --minutes 30 --data_dir runs/data --output_dir runs/mine
    scratch-gpt pretrain --config small --data_dir runs/data --output_dir runs/mine
    scratch-gpt pretrain --model runs/mine/model --data_dir runs/other-data --output_dir runs/longer
    scratch-gpt pretrain recipe.yaml --max_steps 2000
    accelerate launch -m train.pretrain recipe.yaml

Run the same command again to continue. The run folder contains recipe.yaml, status.json, metrics.jsonl, samples.jsonl,
checkpoint-*/ and, when all steps are done, model/ with the trained model and its tokenizer.
"""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from hf_scratch_gpt import ScratchGPTTokenizer

from .checkpoint.find import checkpoint_paths
from .data.blocks import TOKENIZER_FOLDER, PreparedData, open_data
from .data.tokens import load_data_tokenizer, save_tokenizer, tokenizer_sha256
from .distributed.device import free_memory_of, is_out_of_memory
from .distributed.parallel import check_grid
from .hub.cards.origin import Recipe, base_on_hub, public_recipe
from .hub.cards.pretrained import corpus_source, write_pretrained_card
from .loop.claim import claimed
from .loop.dial import Choice, choose, verdict
from .loop.finish import COMPLETE, STOPPED, final_evaluation, load_best_weights, report_complete, write_result
from .loop.forecast import format_duration, free_memory, measure_speed, seconds_of_run
from .loop.language_modeling import next_token_objective
from .loop.log import JsonLines
from .loop.resume import is_complete, resume
from .loop.run import Run, build_run, precision_of, prepare_model
from .loop.status import recorded_status
from .loop.train import train
from .metrics.plots import draw_loss_curve
from .metrics.thinning import ShortenedLog
from .model.find import find_model, tokenizer_folder
from .model.new import build_config, check_block_size, new_model
from .model.pretrained import BaseModel, load_base
from .settings.command import run_command
from .settings.finetuning import BaseArguments
from .settings.options import GIVEN_OPTIONS
from .settings.recipe import parse_recipe, recipe_text
from .settings.run_folder import LOSS_CURVE_FILE, METRICS_FILE, MODEL_FOLDER, SAMPLES_FILE
from .settings.training import BudgetArguments, DataArguments, ModelArguments, TrainArguments

BYTES_PER_PARAMETER = 12  # float32 weights, gradients and momentum; AdamW keeps 4 bytes more


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 130 when a signal has stopped it."""
    started = time.perf_counter()
    kinds = (ModelArguments, DataArguments, TrainArguments, BudgetArguments)
    model_arguments, data_arguments, arguments, budget = parse_recipe(kinds, argv, description=__doc__ or "")
    given = GIVEN_OPTIONS.get()
    if not budget.is_given:
        arguments.check_lengths()
    data = open_data(data_arguments.data_dir)
    tokenizer = ScratchGPTTokenizer.from_pretrained(Path(data_arguments.data_dir) / TOKENIZER_FOLDER)
    with claimed(arguments) as accelerator:
        choice = None
        if budget.is_given:
            choice = choose(budget, model_arguments, arguments, given, data, tokenizer, accelerator)
            model_arguments, arguments = choice.applied(model_arguments, arguments, given)
        recipe = recipe_text(model_arguments, data_arguments, arguments)
        return pretrain(model_arguments, arguments, data, tokenizer, accelerator, recipe, choice, started)


def pretrain(
    model_arguments: ModelArguments,
    arguments: TrainArguments,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    recipe: str,
    choice: Choice | None = None,
    started: float = 0.0,
) -> int:
    """Build the run, train it, and write the model; returns the exit code.

    Args:
        choice: what was chosen for a budget, to say at the end how right it was.
        started: `time.perf_counter()` at the start of the command.
    """
    check_grid(accelerator.num_processes, arguments.dp_shard_size, arguments.tp_size)  # before anything takes time
    base = load_initial_model(model_arguments, arguments.seed, data)
    is_timed = choice is not None and choice.expected_seconds > 0
    estimate = "" if is_timed else expected_time(model_arguments, arguments, data, tokenizer, accelerator, base)
    run = build_pretraining(model_arguments, arguments, data, tokenizer, accelerator, base)
    state = resume(run, recipe)
    accelerator.print(estimate, end="")
    if is_complete(run, state):
        return COMPLETE
    is_whole = state.step == 0
    with recorded_status(run, state):
        if not train(run, state):
            return STOPPED
        step = load_best_weights(run, state) if arguments.load_best_model_at_end else state.step
        final, weights, public = final_evaluation(run, step), run.whole_weights(), public_recipe("pretrain", recipe)

        def write(folder: Path, _: Path) -> None:
            write_model(run, folder, weights, tokenizer, data, public, final, base)

        write_result(run, state, write)
    if choice:
        seconds = time.perf_counter() - started if is_whole else None
        accelerator.print(verdict(choice, final["eval_loss"], seconds))
    return report_complete(run)


def build_pretraining(
    model_arguments: ModelArguments,
    arguments: TrainArguments,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    base: BaseModel | None = None,
) -> Run:
    """A run that trains a model to predict the next token of prepared data.

    Args:
        base: the model to start from; None: a new one.
    """
    if base is None:
        model = new_model(build_config(model_arguments, tokenizer), arguments.seed)
    else:
        model = base.model
        del base.model  # nothing but the run may have it: it must not outlive the process group
    check_block_size(model.config, data.train.block_size)
    objective = next_token_objective(model, tokenizer, arguments)
    facts = data.identity | ({"base": base.fingerprint} if base else {})
    return build_run(arguments, accelerator, model, objective, data.train, data.validation, facts)


def load_initial_model(arguments: ModelArguments, seed: int, data: PreparedData) -> BaseModel | None:
    """The model whose pretraining is continued; None for a new one.

    Raises:
        ValueError: no such model, or the data was prepared with another tokenizer.
    """
    if arguments.model is None:
        return None
    folder = tokenizer_folder(find_model("--model", arguments.model))
    tokenizer = load_data_tokenizer(f"--model {arguments.model}", folder)
    if tokenizer_sha256(tokenizer.backend_tokenizer.to_str()) != data.manifest["tokenizer_sha256"]:
        raise ValueError(
            f"the data was not prepared with the tokenizer of --model {arguments.model}: prepare it again with "
            f"scratch-gpt prepare_data --tokenizer {arguments.model}."
        )
    base = BaseArguments(model=arguments.model, config_overrides=arguments.config_overrides)
    return load_base(base, seed, AutoModelForCausalLM)


def expected_time(
    model_arguments: ModelArguments,
    arguments: TrainArguments,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    base: BaseModel | None,
) -> str:
    """A line about the time of a new run on this machine, measured; empty where one process does not tell it.

    Several processes also wait for each other, and compilation would take longer than it tells.
    """
    folder = Path(arguments.output_dir)
    is_new = not checkpoint_paths(folder) and not (folder / MODEL_FOLDER).exists()
    if not is_new or accelerator.num_processes > 1 or arguments.torch_compile == "true":
        return ""
    config = base.model.config if base else build_config(model_arguments, tokenizer)
    check_block_size(config, data.train.block_size)
    if warning := memory_warning(config, accelerator.device):
        return warning
    model = prepare_model(new_model(config, arguments.seed), arguments)
    try:
        speed = measure_speed(
            model,
            optimizer=arguments.optimizer,
            micro_batch_size=arguments.micro_batch_size,
            block_size=data.train.block_size,
            precision=precision_of(accelerator),
            device=accelerator.device,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return ""  # training will say how to need less
    del model
    free_memory()
    num_evaluated = min(len(data.validation), arguments.max_eval_samples or len(data.validation))
    seconds = seconds_of_run(
        speed,
        max_steps=arguments.max_steps,
        num_micro_batches=arguments.global_batch_size // arguments.micro_batch_size,
        eval_steps=arguments.eval_steps,
        eval_micro_batches=math.ceil(num_evaluated / arguments.micro_batch_size),
    )
    about = "about" if accelerator.device.type == "cpu" else "at most about"  # compilation makes it shorter
    return f"{'expected time':<24}{about} {format_duration(seconds)} (measured; without samples)\n"


def memory_warning(config: PreTrainedConfig, device: torch.device) -> str:
    """A warning if training needs more memory than is free: Linux kills such a process without a message."""
    needed = BYTES_PER_PARAMETER * getattr(config, "parameter_count", 0)
    free = free_memory_of(device)
    if needed <= free:
        return ""
    return (
        f"{'WARNING':<24}weights, gradients and optimizer state need {needed / 1e9:.3g} GB or more, but only "
        f"{free / 1e9:.3g} GB are free on {device}: choose a smaller model\n"
    )


def write_model(
    run: Run,
    folder: Path,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    recipe: Recipe,
    final: dict[str, Any],
    base: BaseModel | None = None,
) -> None:
    """Write the trained model, its tokenizer, model card and loss curve.

    Args:
        final: the evaluation of these weights, with their step.
        base: the model that training started from; None: a new one.
    """
    model = run.bare_model
    model.save_pretrained(folder, state_dict=weights)
    save_tokenizer(tokenizer, folder)
    records = ShortenedLog(JsonLines(run.folder / METRICS_FILE)).metrics
    samples = JsonLines(run.folder / SAMPLES_FILE).read()
    title = (
        f"{model.num_parameters() / 1e6:.1f} million parameters, trained on {corpus_source(data, 'train').description}"
    )
    draw_loss_curve(records, folder / LOSS_CURVE_FILE, title=title, num_choices=model.config.vocab_size)
    base_name = None if base is None else base_on_hub(base.name) or "a model that is not on the Hub"
    records = [record for record in records if record["step"] <= final["step"]]  # the card is about these weights
    if not any("eval_loss" in record and record["step"] == final["step"] for record in records):
        records.append(final)  # the log is damaged
    write_pretrained_card(folder, model, data, recipe, records, samples, run.arguments.max_eval_samples, base_name)


if __name__ == "__main__":
    sys.exit(run_command(main))
