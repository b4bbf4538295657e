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
from .card_data import LANGUAGE_FIGURES, Recipe, Source, card_data, figures_named, model_tags, public_recipe
from .data import SPLITS, TOKENIZER_FOLDER, PreparedData, open_data
from .metrics import LOG_FILES, JsonLines
from .model_card import CARD_NAME, PICTURE_NAME, draw_loss_curve, last_evaluation, model_card, run_figures
from .parallel import Grid
from .run import Run
from .session import Job, carry_out


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 130 when a signal has stopped it."""
    kinds = (ModelArguments, DataArguments, TrainArguments)
    settings = model_arguments, data_arguments, arguments = parse_recipe(kinds, argv, description=__doc__ or "")
    data = open_data(data_arguments.data_dir)
    recipe = recipe_text(*settings)
    build = partial(build_pretraining, model_arguments, arguments, data, Path(data_arguments.data_dir))
    return carry_out(Job(arguments, recipe, build, partial(write_model, data, public_recipe("pretrain", recipe))))


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
    data: PreparedData, recipe: Recipe, run: Run, folder: Path, weights: dict[str, Tensor], conclusions: dict[str, Any]
) -> None:
    """Writes the trained model, its tokenizer, card and loss curve."""
    run.bare_model.save_pretrained(folder, state_dict=weights)
    run.tokenizer.save_pretrained(folder)
    metrics, samples = (JsonLines(run.folder / name).read() for name in LOG_FILES)
    size = f"{run.bare_model.num_parameters() / 1e6:.1f}"
    trained_on, measured_on = (corpus_source(data, split) for split in SPLITS)
    title = f"{size} million parameters, trained on {trained_on.description}"
    draw_loss_curve(metrics, folder / PICTURE_NAME, title=title, num_choices=run.bare_model.config.vocab_size)
    name, tags = f"scratch-gpt-{size}M", model_tags(run.bare_model.config.model_type, folder, "from-scratch")
    figures = figures_named(LANGUAGE_FIGURES, last_evaluation(metrics))
    metadata = card_data(name, "text-generation", tags, trained_on, measured_on, figures)
    facts = {"name": name, "recipe": recipe} | data_facts_in_words(data, run.arguments.eval_sequences)
    rows = {"parameters": f"{run.bare_model.num_parameters():,}"} | run_figures(metrics)
    last = [sample for sample in samples if sample["step"] == run.arguments.max_steps]
    (folder / CARD_NAME).write_text(model_card(metadata, facts, rows, last), encoding="utf-8")


def data_facts_in_words(data: PreparedData, eval_sequences: int) -> dict[str, str]:
    """What the card says of the data: the corpus, both splits as a Markdown list, and what the figures were made on."""
    lines = []
    for split, facts in data.manifest["splits"].items():
        size = f"{facts['num_documents']:,} documents, {facts['num_bytes']:,} bytes, {facts['num_tokens']:,} tokens"
        lines.append(f"- {split}: {corpus_source(data, split).in_words}: {size}")
    trained_on, measured_on = (corpus_source(data, split).description for split in SPLITS)
    num_blocks = len(data.validation)
    measured = f"{min(eval_sequences or num_blocks, num_blocks):,} of {num_blocks:,} blocks of {measured_on}"
    return {"corpus": trained_on, "data": "\n".join(lines), "measured": measured}


def corpus_source(data: PreparedData, split: str) -> Source:
    """Where the text of a split comes from; data of earlier versions does not say whether it is on the Hub."""
    return Source(data.manifest["corpus"][split]["description"], **data.manifest["splits"][split].get("origin", {}))


if __name__ == "__main__":
    sys.exit(run_script(main))
