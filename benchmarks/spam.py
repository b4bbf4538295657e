"""Spam or not, by the protocol of a book: `python -m benchmarks.spam --text sms_spam.tsv`.

The protocol is that of chapter 6 of https://github.com/rasbt/LLMs-from-scratch: of the SMS Spam Collection
(https://archive.ics.uci.edu/dataset/228) all 747 spam messages and as many others (seed 123), shuffled (seed 123), 70 %
to train, 10 % to validate, 20 % to test. Settings were chosen by cross-validation on the first 80 %, never by the test.
Peers: the figure that the book's bonus material gives for a GPT-2 of 124 million random weights, and linear models on
the same split.

The model to start from is made by train.quickstart, from text like that which is to be classified: all messages of the
collection but those of the validation and the test, without their labels. --model starts from another one.
"""

import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from train import finetune_classifier, quickstart
from train.arguments import option, option_list, parse_recipe, required, run_script

from .report import print_table

BOOK_SEED = 123
RANDOM_WEIGHTS = 0.9367  # ch06/02_bonus_additional-experiments/README.md, row 17
LINEAR: dict[str, dict[str, Any]] = {
    "words": {},
    "1 to 5 characters": {"analyzer": "char_wb", "ngram_range": (1, 5), "sublinear_tf": True},
}
RECIPE = Path(__file__).parents[1] / "examples" / "spam" / "recipe.yaml"


@dataclass
class SpamArguments:
    """What to measure."""

    text: str = required("The SMS Spam Collection: a tab-separated file with the columns label and msg.")
    model: str | None = option("Folder of a model to start from, in place of one pretrained on messages.")
    minutes: float = option("How long to pretrain on messages.", 2.0)
    seeds: int = option("Runs, each with a seed of its own.", 5)
    settings: list[str] = option_list("Further settings of train.finetune_classifier, as name=value.")
    with_random_weights: bool = option("Also begin with random weights.", False)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([SpamArguments], argv, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_parts(Path(arguments.text), folder)
        model = arguments.model or pretrained(folder, arguments.minutes)
        origin = arguments.model or f"{arguments.minutes:g} minutes of quickstart on messages"
        kinds = {f"ours, from {origin}": False}
        kinds |= {"ours, from random weights": True} if arguments.with_random_weights else {}
        rows = [["book: GPT-2 of 124M random weights (not run here)", f"{RANDOM_WEIGHTS:.2%}", "", "", ""]]
        for name, vectors in LINEAR.items():
            rows.append(
                [f"TF-IDF of {name}, logistic regression", f"{linear_accuracy(folder, vectors):.2%}", "", "", ""]
            )
        for name, is_random in kinds.items():
            rows.append([name, *accuracies(folder, arguments, model, is_random)])
    heads = ["", "test accuracy (mean)", "each seed", "standard deviation", "seconds per run (median)"]
    print_table("Spam or not, 300 test messages", heads, rows)


def pretrained(folder: Path, minutes: float) -> str:
    """A model that has read messages; that of the test it has not."""
    output = folder / "quickstart"
    quickstart.main(
        ["--text", str(folder / "unlabelled.jsonl"), "--minutes", str(minutes), "--output_dir", str(output)]
    )
    return str(output / "run" / "model")


def write_parts(path: Path, folder: Path) -> None:
    """Writes train.csv, validation.csv and test.csv as the book splits them, and the other messages without labels."""
    rows = pandas.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False)
    spam = rows[rows.label == "spam"]
    others = rows[rows.label == "ham"].sample(len(spam), random_state=BOOK_SEED)
    balanced = pandas.concat([others, spam]).sample(frac=1, random_state=BOOK_SEED)
    first, second = int(len(balanced) * 0.7), int(len(balanced) * 0.7) + int(len(balanced) * 0.1)
    for name, part in (
        ("train", balanced[:first]),
        ("validation", balanced[first:second]),
        ("test", balanced[second:]),
    ):
        part.to_csv(folder / f"{name}.csv", index=False)
    held_out = set(balanced.msg[first:])  # some messages come twice
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


def accuracies(folder: Path, arguments: SpamArguments, model: str, is_random: bool) -> list[str]:
    """Mean, each, standard deviation and seconds over the seeds."""
    found, seconds = [], []
    for seed in range(arguments.seeds):
        started = time.perf_counter()
        run = folder / f"run-{is_random}-{seed}"
        options = {
            "model": model,
            "random_weights": is_random,
            "data": folder / "train.csv",
            "validation_data": folder / "validation.csv",
            "test_data": folder / "test.csv",
            "output_dir": run,
            "seed": seed,
        }
        line = [*(f"--{name}={value}" for name, value in options.items()), *(f"--{s}" for s in arguments.settings)]
        finetune_classifier.main([str(RECIPE), *line])
        seconds.append(time.perf_counter() - started)
        found.append(json.loads((run / finetune_classifier.RESULTS_FILE).read_text())["test_accuracy"])
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    each = ", ".join(f"{value:.2%}" for value in found)
    return [f"{statistics.fmean(found):.2%}", each, f"{spread:.2%}", f"{statistics.median(seconds):.0f}"]


if __name__ == "__main__":
    sys.exit(run_script(main))
