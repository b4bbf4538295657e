"""Accuracy of a spam classifier, by the protocol of a book: `python -m benchmarks.spam --text sms_spam.tsv`.

The protocol is that of chapter 6 of https://github.com/rasbt/LLMs-from-scratch: all 747 spam messages of the SMS Spam
Collection (https://archive.ics.uci.edu/dataset/228) and as many others (seed 123), shuffled (seed 123), 70 % for
training, 10 % for validation, 20 % for the test. Settings were chosen by cross-validation on the first 80 %, without
the test set. Peers: the book's results for GPT-2 with 124 million weights (not run here), and linear models on the same
split.

The base model is pretrained by scratch-gpt quickstart on all messages outside of validation and test, without labels.
--model starts from another one.
"""

import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas
import yaml

from train import finetune_classifier, quickstart
from train.settings.command import run_command
from train.settings.recipe import option, option_list, parse_recipe, required
from train.settings.run_folder import TEST_RESULTS_FILE

from .report import print_table

BOOK_SEED = 123
BOOK = {  # on its split; ch06/02_bonus_additional-experiments/README.md
    "book: GPT-2 of 124M random weights": 0.9367,
    "book: GPT-2 of 124M, OpenAI's weights, last layer trained": 0.9500,
    "book: GPT-2 of 124M, OpenAI's weights, all trained": 0.9667,
    "book: GPT-2 of 124M, OpenAI's weights, LoRA": 0.9767,
}
LINEAR: dict[str, dict[str, Any]] = {
    "words": {},
    "1 to 5 characters": {"analyzer": "char_wb", "ngram_range": (1, 5), "sublinear_tf": True},
}
RECIPE = Path(__file__).parents[1] / "examples" / "spam" / "recipe.yaml"


@dataclass
class SpamArguments:
    """Options of the benchmark."""

    text: str = required("The SMS Spam Collection: a tab-separated file with the columns label and msg.", is_path=True)
    model: str | None = option(
        "Folder of a model to start from (default: one pretrained on the messages).", is_path=True
    )
    minutes: float = option("Minutes of pretraining on the messages.", 3.0)
    seeds: int = option("Runs per split, each with another seed.", 5)
    split_seeds: list[int] = field(
        default_factory=lambda: [BOOK_SEED], metadata={"help": "Seeds of splits; the book's is 123."}
    )
    settings: list[str] = option_list("Other options of scratch-gpt finetune_classifier, as name=value.")
    with_random_weights: bool = option("Also train from random weights.", False)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([SpamArguments], argv, description=__doc__ or "")
    kinds = {"ours, pretrained": False} | ({"ours, from random weights": True} if arguments.with_random_weights else {})
    found: dict[str, list[float]] = {f"TF-IDF of {name}, logistic regression": [] for name in LINEAR}
    seconds: dict[str, list[float]] = {}
    for split_seed in arguments.split_seeds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_parts(Path(arguments.text), folder, split_seed)
            for name, vectors in LINEAR.items():
                found[f"TF-IDF of {name}, logistic regression"].append(linear_accuracy(folder, vectors))
            model = arguments.model or pretrained(folder, arguments.minutes)
            for name, is_random in kinds.items():
                for seed in range(arguments.seeds):
                    accuracy, duration = tuned_accuracy(folder, arguments, model, is_random, seed)
                    found.setdefault(name, []).append(accuracy)
                    seconds.setdefault(name, []).append(duration)
    book = BOOK if BOOK_SEED in arguments.split_seeds else {}
    rows = [[f"{name} (not run here)", f"{accuracy:.2%}", "", "", ""] for name, accuracy in book.items()]
    rows += [[name, *format_accuracies(values), median_seconds(seconds.get(name))] for name, values in found.items()]
    heads = ["", "test accuracy (mean)", "each", "standard deviation", "seconds per run (median)"]
    splits = ", ".join(map(str, arguments.split_seeds))
    print_table(f"Spam or not, 300 test messages, split seed {splits}, {arguments.seeds} runs per split", heads, rows)


def pretrained(folder: Path, minutes: float) -> str:
    """A model pretrained on the messages outside of validation and test."""
    output = folder / "quickstart"
    line = ["--text", str(folder / "unlabelled.jsonl"), "--minutes", str(minutes), "--output_dir", str(output)]
    if code := quickstart.main(line):
        raise SystemExit(code)  # stopped by a signal
    return str(output / "run" / "model")


def write_parts(path: Path, folder: Path, seed: int) -> None:
    """Write train.csv, validation.csv and test.csv, split as in the book, and the other messages without labels."""
    rows = pandas.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False)
    spam = rows[rows.label == "spam"]
    others = rows[rows.label == "ham"].sample(len(spam), random_state=seed)
    balanced = pandas.concat([others, spam]).sample(frac=1, random_state=seed)
    first, second = int(len(balanced) * 0.7), int(len(balanced) * 0.7) + int(len(balanced) * 0.1)
    for name, part in (
        ("train", balanced[:first]),
        ("validation", balanced[first:second]),
        ("test", balanced[second:]),
    ):
        part.to_csv(folder / f"{name}.csv", index=False)
    held_out = set(balanced.msg[first:])  # some messages occur twice
    messages = [
        message for message in [*rows.drop(balanced.index).msg, *balanced.msg[:first]] if message not in held_out
    ]
    lines = [json.dumps({"text": message}) + "\n" for message in messages]
    (folder / "unlabelled.jsonl").write_text("".join(lines), encoding="utf-8")


def linear_accuracy(folder: Path, vectors: dict[str, Any]) -> float:
    """Test accuracy of a linear model."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    parts = [pandas.read_csv(folder / f"{name}.csv", keep_default_na=False) for name in ("train", "test")]
    model = make_pipeline(TfidfVectorizer(**vectors), LogisticRegression(C=10, max_iter=1000))
    model.fit(parts[0].msg, parts[0].label)
    return float(model.score(parts[1].msg, parts[1].label))


def tuned_accuracy(
    folder: Path, arguments: SpamArguments, model: str, is_random: bool, seed: int
) -> tuple[float, float]:
    """Test accuracy of a run, and its duration in seconds."""
    started = time.perf_counter()
    run = folder / f"run-{is_random}-{seed}"
    options = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    if is_random:  # train all weights
        del options["trainable"], options["num_trainable_layers"]
    options |= {
        "model": model,
        "random_weights": is_random,
        "train_file": folder / "train.csv",
        "validation_file": folder / "validation.csv",
        "test_file": folder / "test.csv",
        "output_dir": run,
        "seed": seed,
    }
    line = [*(f"--{name}={value}" for name, value in options.items()), *(f"--{s}" for s in arguments.settings)]
    if code := finetune_classifier.main(line):
        raise SystemExit(code)  # stopped by a signal
    results = json.loads((run / TEST_RESULTS_FILE).read_text())
    return results["test_accuracy"], time.perf_counter() - started


def format_accuracies(values: Sequence[float]) -> list[str]:
    """Mean, single values and standard deviation."""
    spread = f"{statistics.stdev(values):.2%}" if len(values) > 1 else ""
    return [f"{statistics.fmean(values):.2%}", ", ".join(f"{value:.2%}" for value in values), spread]


def median_seconds(seconds: Sequence[float] | None) -> str:
    """The median, or nothing."""
    return f"{statistics.median(seconds):.0f}" if seconds else ""


if __name__ == "__main__":
    sys.exit(run_command(main))
