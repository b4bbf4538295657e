"""Spam or not, by the protocol of a book: `python -m benchmarks.spam --text sms_spam.tsv`.

The protocol is that of chapter 6 of https://github.com/rasbt/LLMs-from-scratch: of the SMS Spam Collection
(https://archive.ics.uci.edu/dataset/228) all 747 spam messages and as many others (seed 123), shuffled (seed 123), 70 %
to train, 10 % to validate, 20 % to test. Settings were chosen by cross-validation on the first 80 %, never by the test.
Peers: the figure that the book's bonus material gives for a GPT-2 of 124 million random weights, and a linear model on
the same split.
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

import pandas

from train import finetune_classifier
from train.arguments import option, option_list, parse_recipe, required, run_script

from .report import print_table

BOOK_SEED = 123
RANDOM_WEIGHTS = 0.9367  # ch06/02_bonus_additional-experiments/README.md, row 17
RECIPE = Path(__file__).parents[1] / "examples" / "spam" / "recipe.yaml"


@dataclass
class SpamArguments:
    """What to measure."""

    text: str = required("The SMS Spam Collection: a tab-separated file with the columns label and msg.")
    model: str = option("Folder of the model to start from.", "runs/quickstart/run/model")
    seeds: int = option("Runs, each with a seed of its own.", 5)
    settings: list[str] = option_list("Further settings of train.finetune_classifier, as name=value.")
    with_random_weights: bool = option("Also begin with random weights.", False)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([SpamArguments], argv, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_parts(Path(arguments.text), folder)
        kinds = {"ours, from the quickstart's model": False}
        kinds |= {"ours, from random weights": True} if arguments.with_random_weights else {}
        rows = [["book: GPT-2 of 124M random weights (not run here)", f"{RANDOM_WEIGHTS:.2%}", "", "", ""]]
        rows.append(["TF-IDF of words and logistic regression", f"{linear_accuracy(folder):.2%}", "", "", ""])
        for name, is_random in kinds.items():
            rows.append([name, *accuracies(folder, arguments, is_random)])
    heads = ["", "test accuracy (mean)", "each seed", "standard deviation", "seconds per run (median)"]
    print_table("Spam or not, 300 test messages", heads, rows)


def write_parts(path: Path, folder: Path) -> None:
    """Writes train.csv, validation.csv and test.csv as the book splits them."""
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


def linear_accuracy(folder: Path) -> float:
    """Test accuracy of the linear model."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    parts = [pandas.read_csv(folder / f"{name}.csv", keep_default_na=False) for name in ("train", "test")]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10, max_iter=1000))
    model.fit(parts[0].msg, parts[0].label)
    return float(model.score(parts[1].msg, parts[1].label))


def accuracies(folder: Path, arguments: SpamArguments, is_random: bool) -> list[str]:
    """Mean, each, standard deviation and seconds over the seeds."""
    found, seconds = [], []
    for seed in range(arguments.seeds):
        started = time.perf_counter()
        run = folder / f"run-{is_random}-{seed}"
        options = {
            "model": arguments.model,
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
