"""Fine-tune a pretrained model to classify texts. Run the same command again to continue.

    scratch-gpt finetune_classifier --model runs/quickstart/run/model --train_file train.csv --output_dir runs/labels
    accelerate launch -m train.finetune_classifier recipe.yaml

Tables are .csv, .tsv, .jsonl or .parquet files with a text column and a label column. The run folder contains the same
files as in pretraining, and confusion_matrices/ with one picture per evaluation; model/ works with
pipeline("text-classification").
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification

import hf_scratch_gpt  # noqa: F401  registers the model's classes

from .checkpoint.recorded import recorded_settings
from .data.labelled_texts import (
    LabelledTexts,
    balanced_weights,
    count_training_texts,
    label_names,
    tokenize,
    with_bpe_dropout,
)
from .data.rows import read_parts
from .distributed.device import launched_processes
from .hub.cards.finetuned import write_classifier_card
from .hub.cards.origin import Origin, origin_of
from .loop.claim import claimed
from .loop.classification import TextClassification
from .loop.evaluation import evaluate
from .loop.finish import COMPLETE, STOPPED, load_best_weights, report_complete, write_result
from .loop.log import JsonLines
from .loop.resume import is_complete, resume
from .loop.run import Run, build_run
from .loop.status import recorded_status
from .loop.train import train
from .metrics.label_scores import label_table, majority_rate
from .metrics.plots import draw_confusion_matrix, draw_loss_curve
from .model.pretrained import BaseModel, choose_trained, load_base, trained_settings, write_tuned_model
from .settings.command import run_command
from .settings.durable import replace_text
from .settings.finetuning import (
    DEFAULT_FRACTION,
    BaseArguments,
    FinetuneArguments,
    LabelArguments,
    TuneClassifierArguments,
    checked_max_length,
)
from .settings.recipe import parse_recipe, recipe_text
from .settings.run_folder import CONFUSION_MATRIX_FILE, LOSS_CURVE_FILE, METRICS_FILE, TEST_RESULTS_FILE
from .settings.words import shown_names

MAX_SHOWN = 20  # labels in a line of text


@dataclass
class LabelledData:
    """The labelled texts as tokens."""

    names: list[str]
    parts: dict[str, LabelledTexts]
    originals: list[str]  # the training texts
    notes: list[str]

    @property
    def identity(self) -> dict[str, Any]:
        """Hashes of the labels and texts: they must not change when a run continues."""
        return {"labels": self.names} | {part: texts.sha256 for part, texts in self.parts.items() if part != "test"}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 130 when a signal has stopped it."""
    kinds = (BaseArguments, LabelArguments, TuneClassifierArguments)
    settings = base_arguments, labels, tuning = parse_recipe(kinds, argv, description=__doc__ or "")
    base_arguments.check_engine(tuning)
    if tuning.sample_prompts:
        raise ValueError("--sample_prompts has no effect: a classifier generates no text. Remove it.")
    recipe = recipe_text(*settings)
    origin = origin_of("finetune_classifier", recipe, base_arguments, labels, "test")
    base, data = load(base_arguments, labels, tuning.seed)
    arguments = tuning.continued(recorded_settings(Path(tuning.output_dir))).for_examples(
        len(data.originals),
        data.parts["train"].longest,
        base.model.config,
        base_arguments.trainable,
        launched_processes() // tuning.tp_size,
    )
    if labels.bpe_dropout:
        epochs = math.ceil(arguments.max_steps * arguments.global_batch_size / len(data.originals))
        longest = base.tokenizer.model_max_length
        data.parts["train"] = with_bpe_dropout(
            data.parts["train"], data.originals, base.tokenizer, labels.bpe_dropout, epochs, longest
        )
    with claimed(arguments) as accelerator:
        return finetune(base_arguments, labels, arguments, base, data, origin, accelerator, recipe)


def finetune(
    base_arguments: BaseArguments,
    labels: LabelArguments,
    arguments: FinetuneArguments,
    base: BaseModel,
    data: LabelledData,
    origin: Origin,
    accelerator: Accelerator,
    recipe: str,
) -> int:
    """Build, train and test the run, and write the model; returns the exit code."""
    run = build_classifier(base_arguments, labels, arguments, base, data, accelerator)
    state = resume(run, recipe)
    if is_complete(run, state):
        return COMPLETE
    with recorded_status(run, state):
        if not train(run, state):
            return STOPPED
        step = load_best_weights(run, state) if arguments.load_best_model_at_end else state.step
        results = {name.replace("eval_", "test_"): value for name, value in evaluate(run, data.parts["test"]).items()}
        weights = run.whole_weights()

        def write(folder: Path, adapter: Path) -> None:
            write_tuned_model(run.bare_model, base, folder, weights, adapter)
            write_results(run, folder, adapter, data, origin, results | {"step": step})

        write_result(run, state, write)
    return report_complete(run)


def load(base_arguments: BaseArguments, labels: LabelArguments, seed: int) -> tuple[BaseModel, LabelledData]:
    """Load the base model with a head for the labels of the training rows, and all rows as tokens.

    Raises:
        ValueError: rows, labels or a model that cannot be used.
    """
    columns = (labels.text_column, labels.label_column)
    shares = {"validation": DEFAULT_FRACTION, "test": DEFAULT_FRACTION}
    rows = read_parts(labels, shares, seed, columns, "--text_column or --label_column")
    names = label_names(rows["train"], labels.label_column)
    base = load_base(
        base_arguments,
        seed,
        AutoModelForSequenceClassification,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        problem_type="single_label_classification",
    )
    longest = base.model.config.max_position_embeddings
    max_length = checked_max_length(labels.max_length, longest)
    base.tokenizer.model_max_length = max_length
    parts = {part: tokenize(some, columns, names, base.tokenizer, max_length) for part, some in rows.items()}
    others = {part: some for part, some in rows.items() if part != "train"}
    shared = count_training_texts(rows["train"], others, labels.text_column)
    notes = [
        f"{count} of {len(rows[part])} {part} texts are also in the training rows" for part, count in shared.items()
    ]
    originals = [row.cells[labels.text_column] for row in rows["train"]]
    return base, LabelledData(names, parts, originals, notes)


def describe(data: LabelledData) -> list[str]:
    """The number of texts per label in each part, and how many were truncated."""
    lines = []
    for part, texts in data.parts.items():
        counts = torch.bincount(torch.from_numpy(texts.labels), minlength=len(data.names)).tolist()
        shown = shown_names(
            [f"{name} {count // texts.num_versions}" for name, count in zip(data.names, counts, strict=True)], MAX_SHOWN
        )
        cut = f"; {texts.num_truncated} truncated" if texts.num_truncated else ""
        lines.append(f"{part + ' texts':<24}{len(texts) // texts.num_versions:,} ({shown}){cut}")
    return [*lines, *(f"note: {note}" for note in data.notes)]


def build_classifier(
    base_arguments: BaseArguments,
    labels: LabelArguments,
    arguments: FinetuneArguments,
    base: BaseModel,
    data: LabelledData,
    accelerator: Accelerator,
) -> Run:
    """A run that trains the parameters chosen by --trainable to predict labels."""
    accelerator.print("\n".join([*describe(data), *arguments.describe(len(data.originals), "texts")]))
    model = choose_trained(base, base_arguments, new_tokens=[])
    train, num_labels = data.parts["train"], len(data.names)
    is_balanced = labels.class_weights == "balanced"
    weights = balanced_weights(train.labels, num_labels) if is_balanced else torch.ones(num_labels)
    objective = TextClassification(data.names, weights)
    facts = base.identity | {"data": data.identity, "class_weights": labels.class_weights}
    facts |= trained_settings(base_arguments)
    return build_run(arguments, accelerator, model, objective, train, data.parts["validation"], facts)


def write_results(
    run: Run, folder: Path, adapter: Path, data: LabelledData, origin: Origin, results: dict[str, Any]
) -> None:
    """Write the test results, model card, loss curve and confusion matrix; print the test metrics."""
    replace_text(run.folder / TEST_RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    records, labels = JsonLines(run.folder / METRICS_FILE).read(), data.names
    confusion = results["test_confusion_matrix"]
    title = f"{len(labels)} labels, trained on {len(data.originals):,} texts"
    draw_loss_curve(records, folder / LOSS_CURVE_FILE, title=title, num_choices=len(labels), per="text")
    title = f"{len(data.parts['test'])} test texts: accuracy {results['test_accuracy']:.2%}"
    draw_confusion_matrix(confusion, labels, folder / CONFUSION_MATRIX_FILE, title)
    model_type: str = run.bare_model.config.model_type
    write_classifier_card(folder, adapter, model_type, origin, describe(data), results, labels)
    rate, most_frequent = majority_rate(confusion)
    print(
        f"test loss {results['test_loss']:.4f} | accuracy {results['test_accuracy']:.2%} | "
        f"always {labels[most_frequent]!r:.40}: {rate:.2%}"
    )
    print(label_table(confusion, labels))


if __name__ == "__main__":
    sys.exit(run_command(main))
