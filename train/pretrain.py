"""Pretrain a model from scratch on prepared data; the same command again continues the run.

    python -m train.pretrain recipe.yaml --max_steps 2000
    accelerate launch -m train.pretrain recipe.yaml

The run folder then holds recipe.yaml, metrics.jsonl, samples.jsonl, checkpoint-*/ and, when all
steps are done, model/ with the trained model and its tokenizer.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from hf_scratch_gpt import ScratchGPTTokenizer

from .arguments import DataArguments, ModelArguments, TrainArguments, parse_recipe, recipe_text, run_script
from .build import build_config, build_run, check_block, data_facts, new_model, next_token_objective
from .data import TOKENIZER_FOLDER, PreparedData, open_data
from .metrics import LOG_FILES, JsonLines
from .model_card import CARD_NAME, PICTURE_NAME, draw_loss_curve, model_card, run_figures
from .parallel import Grid
from .run import Run
from .session import Job, carry_out, public_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 130 when a signal has stopped it."""
    kinds = (ModelArguments, DataArguments, TrainArguments)
    settings = model_arguments, data_arguments, arguments = parse_recipe(kinds, argv, description=__doc__ or "")
    data = open_data(data_arguments.data_dir)
    recipe = recipe_text(*settings)
    build = partial(build_pretraining, model_arguments, arguments, data, Path(data_arguments.data_dir))
    return carry_out(Job(arguments, recipe, build, partial(write_model, data, recipe)))


def build_pretraining(
    model_arguments: ModelArguments,
    arguments: TrainArguments,
    data: PreparedData,
    data_dir: Path,
    accelerator: Accelerator,
    grid: Grid,
) -> Run:
    """A run with a new model that learns to predict the next token of prepared data."""
    tokenizer = ScratchGPTTokenizer.from_pretrained(data_dir / TOKENIZER_FOLDER)
    config = build_config(model_arguments, tokenizer)
    check_block(config, data.train.block_size)
    model = new_model(config, arguments.seed)
    objective = next_token_objective(model, tokenizer, arguments)
    examples, place = (data.train, data.validation), (accelerator, grid)
    return build_run(arguments, model, objective, examples, tokenizer, place, data_facts(data))


def write_model(
    data: PreparedData, recipe: str, run: Run, folder: Path, weights: dict[str, Tensor], conclusions: dict[str, Any]
) -> None:
    """Writes the trained model, its tokenizer, card and loss curve."""
    run.bare_model.save_pretrained(folder, state_dict=weights)
    run.tokenizer.save_pretrained(folder)
    corpus = data.manifest["corpus"]["train"]["description"]
    metrics, samples = (JsonLines(run.folder / name).read() for name in LOG_FILES)
    parameters = run.bare_model.num_parameters()
    title = f"{parameters / 1e6:.1f} million parameters, trained on {corpus}"
    draw_loss_curve(metrics, folder / PICTURE_NAME, title=title, num_choices=run.bare_model.config.vocab_size)
    facts = {"name": f"scratch-gpt-{parameters / 1e6:.1f}M", "corpus": corpus, "recipe": public_recipe(recipe)}
    figures = {"parameters": f"{parameters:,}"} | run_figures(metrics)
    last = [sample for sample in samples if sample["step"] == run.arguments.max_steps]
    (folder / CARD_NAME).write_text(model_card(facts, figures, last), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_script(main))
