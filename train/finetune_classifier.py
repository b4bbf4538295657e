"""Fine-tune a pretrained model to tell which label a text has; the same command again continues the run.

    python -m train.finetune_classifier --model runs/quickstart/run/model --data train.csv --output_dir runs/labels

Tables are .csv, .tsv, .jsonl or .parquet files with a column of text and one of labels. The run folder then holds
what a pretraining run holds, confusion_matrices/ with a picture per evaluation, and in model/ the classifier, for
pipeline("text-classification").
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import hf_scratch_gpt  # noqa: F401  registers the model's classes

from .arguments import check_at_least, option, option_list, parse_recipe, recipe_text, run_script, without_effect
from .base_model import ADAPTER_FOLDER, BaseModel, choose_trained, load_base, trained_facts, write_weights
from .build import build_run
from .card_data import LABEL_FIGURES, Origin, figures_named, model_tags, origin_of, tuned_data
from .classification import (
    Classification,
    LabelledTexts,
    balanced_weights,
    draw_confusion_matrix,
    in_versions,
    label_names,
    table_of_labels,
    texts_in_both,
    tokenize,
)
from .loop import evaluate
from .metrics import LOG_FILES, JsonLines
from .model_card import CARD_NAME, PICTURE_NAME, draw_loss_curve
from .parallel import Grid
from .rows import DEFAULT_FRACTION, RowsArguments, read_parts
from .run import Run
from .session import Job, carry_out
from .tuned_card import adapter_card, classifier_card
from .tuning import BaseArguments, TuneArguments

CONFUSION_PICTURE = "confusion_matrix.png"
RESULTS_FILE = "test_results.json"


@dataclass
class LabelArguments(RowsArguments):
    """Where labelled texts come from."""

    text_column: str = option("Column that holds the text.", "text")
    label_column: str = option("Column that holds the label.", "label")
    test_data: list[str] = option_list("Tables to test the finished model on; without them a part is held out.")
    test_split: str | None = option("Split of --dataset to test the finished model on.")
    test_fraction: float | None = option("Share of the rows held out for the test; without it 0.1.")
    max_length: int | None = option("Tokens of a text that are read; without it as many as the model can.")
    bpe_dropout: float = option(
        "Share of merges left out when training texts become tokens, anew in each epoch: helps where texts are few.",
        0.0,
    )
    class_weights: Literal["none", "balanced"] = option(
        "balanced: each label weighs the same in the loss, however rare it is.", "none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_part("test")
        if self.test_split and not self.dataset:
            raise ValueError(without_effect("test_split", self.test_split, "with --dataset"))
        check_at_least(self, {"max_length": 1, "bpe_dropout": 0})
        if self.bpe_dropout >= 1:
            raise ValueError(f"--bpe_dropout is {self.bpe_dropout}: it must lie below 1.")


@dataclass
class LabelledData:
    """All that the run needs of its rows."""

    names: list[str]
    parts: dict[str, LabelledTexts]
    originals: list[str]  # the training texts
    notes: list[str]

    @property
    def facts(self) -> dict[str, Any]:
        """Identity of what is learned from and compared with."""
        return {"labels": self.names} | {part: texts.sha256 for part, texts in self.parts.items() if part != "test"}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 130 when a signal has stopped it."""
    kinds = (BaseArguments, LabelArguments, TuneArguments)
    base_arguments, labels, arguments = settings = parse_recipe(kinds, argv, description=__doc__ or "")
    base_arguments.check_engine(arguments)
    if arguments.sample_prompts:
        raise ValueError("--sample_prompts has no effect: a classifier writes no text. Remove it.")
    recipe = recipe_text(*settings)
    origin = origin_of("finetune_classifier", recipe, base_arguments, labels, "test")
    base, data = load(base_arguments, labels, arguments.seed)
    arguments = arguments.for_examples(len(data.originals))
    if labels.bpe_dropout:
        epochs = math.ceil(arguments.max_steps * arguments.batch_size / len(data.originals))
        longest = base.tokenizer.model_max_length
        train = in_versions(data.parts["train"], data.originals, base.tokenizer, labels.bpe_dropout, epochs, longest)
        data.parts["train"] = train
    return carry_out(
        Job(
            arguments,
            recipe,
            partial(build_classifier, base_arguments, labels, arguments, base, data),
            partial(write_model, origin, base, data),
            partial(test, data),
        )
    )


def load(base_arguments: BaseArguments, labels: LabelArguments, seed: int) -> tuple[BaseModel, LabelledData]:
    """The base model with a head for the labels of the training rows, and all rows as tokens.

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
    max_length = labels.max_length or longest
    if max_length > longest:
        raise ValueError(f"--max_length is {max_length}, but the model reads at most {longest} tokens: lower it.")
    base.tokenizer.model_max_length = max_length
    parts = {part: tokenize(some, columns, names, base.tokenizer, max_length) for part, some in rows.items()}
    others = {part: some for part, some in rows.items() if part != "train"}
    shared = texts_in_both(rows["train"], others, labels.text_column)
    notes = [
        f"{count} of {len(rows[part])} {part} texts are also in the training rows" for part, count in shared.items()
    ]
    originals = [row.cells[labels.text_column] for row in rows["train"]]
    return base, LabelledData(names, parts, originals, notes)


def describe(data: LabelledData) -> list[str]:
    """How many texts of each label the parts hold, and what was cut."""
    lines = []
    for part, texts in data.parts.items():
        counts = torch.bincount(torch.from_numpy(texts.labels), minlength=len(data.names)).tolist()
        shown = ", ".join(
            f"{name} {count // texts.num_versions}" for name, count in zip(data.names, counts, strict=True)
        )
        cut = f"; {texts.num_truncated} longer than the model reads, cut" if texts.num_truncated else ""
        lines.append(f"{part + ' texts':<24}{len(texts) // texts.num_versions:,} ({shown}){cut}")
    return [*lines, *(f"note: {note}" for note in data.notes)]


def build_classifier(
    base_arguments: BaseArguments,
    labels: LabelArguments,
    arguments: TuneArguments,
    base: BaseModel,
    data: LabelledData,
    accelerator: Accelerator,
    grid: Grid,
) -> Run:
    """A run that trains what --trainable names."""
    accelerator.print("\n".join(describe(data)))
    model = choose_trained(base, base_arguments, new_tokens=[])
    train, num_labels = data.parts["train"], len(data.names)
    is_balanced = labels.class_weights == "balanced"
    weights = balanced_weights(train.labels, num_labels) if is_balanced else torch.ones(num_labels)
    objective = Classification(data.names, weights)
    examples = (train, data.parts["validation"])
    facts = base.facts | {"data": data.facts, "class_weights": labels.class_weights}
    facts |= trained_facts(base_arguments)
    return build_run(arguments, model, objective, examples, base.tokenizer, (accelerator, grid), facts, is_tuning=True)


def test(data: LabelledData, run: Run) -> dict[str, Any]:
    """The figures of the finished model on texts that nothing was chosen by."""
    figures = evaluate(run, data.parts["test"])
    return {name.replace("eval_", "test_"): value for name, value in figures.items()}


def write_model(
    origin: Origin, base: BaseModel, data: LabelledData, run: Run, folder: Path, weights: dict[str, Tensor],
    results: dict[str, Any],
) -> None:  # fmt: skip
    """Writes the classifier, its tokenizer, card, loss curve and confusion matrix; prints the test."""
    write_weights(run, base, folder, weights)
    (run.folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    metrics = JsonLines(run.folder / LOG_FILES[0]).read()
    title = f"Telling {len(data.names)} labels apart, on {len(data.originals):,} texts"
    draw_loss_curve(metrics, folder / PICTURE_NAME, title=title, num_choices=len(data.names), per="text")
    confusion = results["test_confusion_matrix"]
    title = f"{len(data.parts['test'])} test texts: accuracy {results['test_accuracy']:.2%}"
    draw_confusion_matrix(confusion, data.names, folder / CONFUSION_PICTURE, title)
    table = table_of_labels(confusion, data.names)
    model_type: str = run.bare_model.config.model_type
    name, tags = f"{model_type.replace('_', '-')} classifier", model_tags(model_type, folder)
    figures = figures_named(LABEL_FIGURES, results, "test_")
    metadata = tuned_data(name, "text-classification", tags, origin, figures)
    card = classifier_card(metadata, origin, describe(data), results, table)
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
    if (adapter := run.folder / ADAPTER_FOLDER).exists():
        text = adapter_card(metadata, origin, num_labels=len(data.names))
        (adapter / CARD_NAME).write_text(text, encoding="utf-8")
    print(f"test loss {results['test_loss']:.4f} | accuracy {results['test_accuracy']:.2%}\n{table}")


if __name__ == "__main__":
    sys.exit(run_script(main))
