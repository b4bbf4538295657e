"""Classify texts with a model that finetune_classifier has written.

    scratch-gpt classify --model runs/reviews/model --text "What a film!" "I left after ten minutes."
    scratch-gpt classify --model runs/reviews/model --file new.csv --output_file labels.csv
    cat lines.txt | scratch-gpt classify --model alice/reviews

Prints the most probable label of each text, and its probability. --output_file writes all rows, with the columns
predicted_label and probability. If a table has the column --label_column, the accuracy is printed too.
"""

import csv
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from .data.labelled_texts import label_of, text_of
from .data.plain_text import encode_texts
from .data.rows import Row
from .data.tables import place_of, read_rows
from .metrics.label_scores import shortened
from .model.generation import max_positions
from .model.inference import load_for_inference
from .model.load import memory_errors
from .settings.checks import check_bounds
from .settings.command import interruptible, run_command
from .settings.near_paths import check_exists
from .settings.reading import COLUMNS, ENCODING, Reading, require_files
from .settings.recipe import option, option_list, parse_recipe, required
from .settings.standard_input import read_stdin
from .settings.words import counted, shown_names

LABEL, PROBABILITY = "predicted_label", "probability"
OUTPUT_SUFFIXES = (".csv", ".jsonl")
BATCHES_AT_ONCE = 64  # encoded and sorted by length together


@dataclass
class ClassifyArguments:
    """The classifier, the texts, and where to write their labels."""

    model: str = required("Classifier or its adapter: a folder, or a name on the Hugging Face Hub.", is_path=True)
    text: list[str] = option_list("Texts (default: the lines of standard input, unless --file is given).")
    file: list[str] = option_list("Tables (.jsonl, .json, .csv, .tsv, .parquet), also compressed (.gz).", is_path=True)
    text_column: str | None = option("Column with the text in --file (default: text).")
    label_column: str | None = option("Column with the true label in --file (default: label, if there is one).")
    output_file: str | None = option("Table to write instead of printing the labels: .csv or .jsonl.", is_path=True)
    encoding: str | None = option(ENCODING)
    columns: list[str] = option_list(COLUMNS)
    max_length: int | None = option("Maximum tokens per text (default: as in training).")
    micro_batch_size: int = option("Texts per forward pass.", 32)

    def __post_init__(self) -> None:
        check_bounds(self, {"max_length": 1, "micro_batch_size": 1})
        if self.text and self.file:
            raise ValueError("--text and --file exclude each other: remove one of them.")
        if not self.file:
            require_files(self, ("text_column", "label_column", "encoding", "columns"), "--file")
        _ = self.reading  # which checks the values
        if self.output_file and Path(self.output_file).suffix not in OUTPUT_SUFFIXES:
            raise ValueError(
                f"--output_file {self.output_file}: the suffix must be one of {', '.join(OUTPUT_SUFFIXES)}."
            )

    @property
    def reading(self) -> Reading:
        """How the files are read."""
        return Reading(self.encoding or "utf-8", columns=tuple(self.columns))


@dataclass(frozen=True)
class Prediction:
    """The most probable label of a text."""

    row: Row
    text: str
    label: str
    probability: float


@interruptible
def main(argv: Sequence[str] | None = None) -> None:
    """Classify all texts, and print or write their labels."""
    (arguments,) = parse_recipe([ClassifyArguments], argv, description=__doc__ or "")
    text_column = arguments.text_column or "text"
    rows = list(read_texts(arguments, text_column))
    texts = [text_of(row, text_column) for row in rows]
    if not texts:
        raise ValueError("there is no text to classify: give --text, --file, or lines on standard input.")
    truth = true_labels(arguments, rows)
    classifier = Classifier(arguments)
    predictions = list(classifier.predict(rows, texts))
    if arguments.output_file:
        write_table(Path(arguments.output_file), predictions)
        print(f"wrote {counted(len(rows), 'row')} to {arguments.output_file}", file=sys.stderr)
    else:
        print(format_predictions(predictions, list(classifier.names)))
    if classifier.num_truncated:
        print(f"warning: truncated {counted(classifier.num_truncated, 'text')} to {classifier.max_length} tokens",
              file=sys.stderr)  # fmt: skip
    if truth:
        print(format_accuracy(predictions, truth, list(classifier.names)))


def read_texts(arguments: ClassifyArguments, text_column: str) -> Iterator[Row]:
    """The rows of --file, of --text, or of the lines of standard input.

    Raises:
        ValueError: standard input is not UTF-8 text, or a table cannot be read.
        OSError: a file cannot be read.
    """
    if arguments.file:
        for path in map(Path, arguments.file):
            check_exists("--file", path)
            for number, cells in read_rows(path, reading=arguments.reading):
                check_columns(place_of(path, number), cells, arguments, text_column)
                yield Row(place_of(path, number), cells)
        return
    lines = arguments.text or read_stdin("a text per line", "give --text or --file").split("\n")
    what = "--text" if arguments.text else "line"
    for number, line in enumerate(lines, start=1):
        if line.strip() or arguments.text:
            yield Row(f"{what} {number}", {text_column: line})


def check_columns(place: str, cells: dict[str, Any], arguments: ClassifyArguments, text_column: str) -> None:
    """Refuse a row without the text, without a label column that was asked for, or with a column of the output.

    Raises:
        ValueError: the column, and those that exist.
    """
    for column, name in ((text_column, "--text_column"), (arguments.label_column, "--label_column")):
        if column is not None and column not in cells:
            raise ValueError(
                f"{place} has no column {column!r}; its columns are {shown_names(list(cells)) or 'none'}. "
                f"Name one of them with {name}."
            )
    for column in (LABEL, PROBABILITY):
        if column in cells and arguments.output_file:
            raise ValueError(f"{place} already has a column {column!r}, which --output_file adds: rename it.")


def true_labels(arguments: ClassifyArguments, rows: Sequence[Row]) -> list[str]:
    """The labels in the tables; empty if they have none.

    Raises:
        ValueError: a cell is not a label.
    """
    column = arguments.label_column or "label"
    if not arguments.file or not all(row.cells.get(column) not in (None, "") for row in rows):
        return []
    return [label_of(row, column) for row in rows]


class Classifier:
    """A model and its tokenizer that predict labels."""

    def __init__(self, arguments: ClassifyArguments) -> None:
        self.model: Any
        self.model, self.tokenizer = load_for_inference(arguments.model, AutoModelForSequenceClassification)
        config = self.model.config
        if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
            kind = config.problem_type or "regression"
            raise ValueError(f"--model {arguments.model} is a model for {kind}: classify needs one label per text.")
        self.place = f"--model {arguments.model}"
        self.names: tuple[str, ...] = tuple(config.id2label[number] for number in range(config.num_labels))
        self.batch_size, self.num_truncated = arguments.micro_batch_size, 0
        self.max_length = self._max_length(arguments.max_length)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id

    def _max_length(self, given: int | None) -> int:
        positions = max_positions(self.model)
        if given and given > positions:
            raise ValueError(f"--max_length is {given}, but the model reads at most {positions} tokens: lower it.")
        return given or min(self.tokenizer.model_max_length, positions)

    def predict(self, rows: Sequence[Row], texts: Sequence[str]) -> Iterator[Prediction]:
        """The most probable label of each text, in order.

        Raises:
            ValueError: damaged weights, or too little memory.
        """
        at_once = self.batch_size * BATCHES_AT_ONCE
        is_short = len(texts) <= self.batch_size
        with tqdm(total=len(texts), unit=" texts", mininterval=0.5, leave=False, disable=is_short or None) as bar:
            for start in range(0, len(texts), at_once):
                part = slice(start, start + at_once)
                found = self._probabilities(self._encode(texts[part]), bar)
                for row, text, (probability, number) in zip(rows[part], texts[part], found, strict=True):
                    yield Prediction(row, text, self.names[number], probability)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids = encode_texts(self.tokenizer, texts)
        self.num_truncated += sum(len(one) > self.max_length for one in ids)
        return [one[: self.max_length] for one in ids]

    @torch.no_grad()
    def _probabilities(self, ids: Sequence[list[int]], bar: Any) -> list[tuple[float, int]]:
        """The highest probability of each text, and the number of its label. Texts of similar length share a batch."""
        results: list[tuple[float, int]] = [(0.0, 0)] * len(ids)
        order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            batch = padded(self.tokenizer, [ids[number] for number in numbers])
            with memory_errors(f"a batch of {len(numbers)} texts (--micro_batch_size)"):
                logits = self.model(**{name: tensor.to(self.model.device) for name, tensor in batch.items()}).logits
            if not logits.isfinite().all():
                raise ValueError(f"the outputs of {self.place} are not finite: its weights are damaged.")
            highest = logits.float().softmax(dim=-1).max(dim=-1)
            for number, probability, label in zip(
                numbers, highest.values.tolist(), highest.indices.tolist(), strict=True
            ):
                results[number] = (probability, label)
            bar.update(len(numbers))
        return results


def padded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (texts, longest)."""
    batch: Any = tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def format_predictions(predictions: Iterable[Prediction], names: Sequence[str]) -> str:
    """One line per text: label, probability and the beginning of the text."""
    width = min(max(map(len, names)), 24)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    room = max(columns - width - 10, 20)
    return "\n".join(
        f"{shortened(one.label, width):<{width}}  {one.probability:.4f}  {shortened(one.text, room)}"
        for one in predictions
    )


def format_accuracy(predictions: Sequence[Prediction], truth: Sequence[str], names: Sequence[str]) -> str:
    """The accuracy, and the share of the most frequent label, which a constant answer would reach."""
    num_right = sum(one.label == label for one, label in zip(predictions, truth, strict=True))
    (label, count), *_ = Counter(truth).most_common(1)
    lines = [
        f"accuracy        {num_right / len(truth):.2%} of {counted(len(truth), 'text')}",
        f"majority rate   {count / len(truth):.2%} ({label})",
    ]
    if unknown := sorted(set(truth) - set(names)):
        lines.append(f"unknown labels  {shown_names(unknown)}")
    return "\n".join(lines)


def write_table(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write the rows with the columns `predicted_label` and `probability`.

    Raises:
        OSError: the file cannot be written.
    """
    rows = [one.row.cells | {LABEL: one.label, PROBABILITY: round(one.probability, 6)} for one in predictions]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            return
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
