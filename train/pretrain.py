"""Pretrain a model from scratch on prepared data. Run the same command again to continue.

    scratch-gpt pretrain recipe.yaml --max_steps 2000
    accelerate launch -m train.pretrain recipe.yaml

The run folder then contains recipe.yaml, status.json, metrics.jsonl, samples.jsonl, checkpoint-*/ and, when all steps
are done, model/ with the trained model and its tokenizer.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_scratch_gpt import ScratchGPTTokenizer

from .data.blocks import TOKENIZER_FOLDER, PreparedData, open_data
from .hub.cards.origin import Recipe, public_recipe
from .hub.cards.pretrained import corpus_source, write_pretrained_card
from .loop.claim import claimed
from .loop.finish import COMPLETE, STOPPED, report_complete, write_result
from .loop.language_modeling import next_token_objective
from .loop.log import JsonLines
from .loop.run import Run, build_run, is_complete, resume
from .loop.status import recorded_status
from .loop.train import train
from .metrics.plots import draw_loss_curve
from .model.new import build_config, check_block_size, new_model
from .settings.command import run_command
from .settings.recipe import parse_recipe, recipe_text
from .settings.run_folder import LOSS_CURVE_FILE, METRICS_FILE, SAMPLES_FILE
from .settings.training import DataArguments, ModelArguments, TrainArguments


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 130 when a signal has stopped it."""
    kinds = (ModelArguments, DataArguments, TrainArguments)
    settings = model_arguments, data_arguments, arguments = parse_recipe(kinds, argv, description=__doc__ or "")
    data = open_data(data_arguments.data_dir)
    tokenizer = ScratchGPTTokenizer.from_pretrained(Path(data_arguments.data_dir) / TOKENIZER_FOLDER)
    with claimed(arguments) as accelerator:
        return pretrain(model_arguments, arguments, data, tokenizer, accelerator, recipe_text(*settings))


def pretrain(
    model_arguments: ModelArguments,
    arguments: TrainArguments,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    recipe: str,
) -> int:
    """Build the run, train it, and write the model; returns the exit code."""
    run = build_pretraining(model_arguments, arguments, data, tokenizer, accelerator)
    state = resume(run, recipe)
    if is_complete(run, state):
        return COMPLETE
    with recorded_status(run, state):
        if not train(run, state):
            return STOPPED
        weights, public = run.whole_weights(), public_recipe("pretrain", recipe)
        write_result(run, state, lambda folder, _: write_model(run, folder, weights, tokenizer, data, public))
    return report_complete(run)


def build_pretraining(
    model_arguments: ModelArguments,
    arguments: TrainArguments,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
) -> Run:
    """A run that trains a new model to predict the next token of prepared data."""
    config = build_config(model_arguments, tokenizer)
    check_block_size(config, data.train.block_size)
    model = new_model(config, arguments.seed)
    objective = next_token_objective(model, tokenizer, arguments)
    return build_run(arguments, accelerator, model, objective, data.train, data.validation, data.identity)


def write_model(
    run: Run,
    folder: Path,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    recipe: Recipe,
) -> None:
    """Write the trained model, its tokenizer, model card and loss curve."""
    model = run.bare_model
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    records, samples = JsonLines(run.folder / METRICS_FILE).read(), JsonLines(run.folder / SAMPLES_FILE).read()
    title = (
        f"{model.num_parameters() / 1e6:.1f} million parameters, trained on {corpus_source(data, 'train').description}"
    )
    draw_loss_curve(records, folder / LOSS_CURVE_FILE, title=title, num_choices=model.config.vocab_size)
    write_pretrained_card(folder, model, data, recipe, records, samples, run.arguments.max_eval_samples)


if __name__ == "__main__":
    sys.exit(run_command(main))
