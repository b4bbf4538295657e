"""Accuracy on a task where word order decides, compared with linear models: `python -m benchmarks.swapped_lines`.

Run it after the commands of examples/swapped_lines/README.md: it reads their tables and their models. A pair is a
function with two statements in order and exchanged. A linear model classifies each row. The pretrained model without
labels can only compare: which function of a pair is more probable?
"""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import hf_scratch_gpt  # noqa: F401  registers the model's classes
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

from .report import print_table

WORDS = r"\w+|[^\w\s]"  # a word, or one other character
LINEAR: dict[str, dict[str, Any]] = {
    "words": {"token_pattern": WORDS},
    "1 to 3 words": {"token_pattern": WORDS, "ngram_range": (1, 3), "sublinear_tf": True},
    "1 to 5 characters": {"analyzer": "char", "ngram_range": (1, 5), "sublinear_tf": True, "max_features": 300_000},
}


@dataclass
class SwappedLinesArguments:
    """Options of the benchmark."""

    data_dir: str = option("Folder of train.csv and test.csv.", "runs/swapped_lines/data", is_path=True)
    base: str = option("The pretrained model.", "runs/swapped_lines/base/run/model", is_path=True)
    model: str = option("The trained classifier.", "runs/swapped_lines/run/model", is_path=True)

    def __post_init__(self) -> None:
        for name, folder in vars(self).items():
            if not Path(folder).is_dir():
                raise ValueError(
                    f"--{name} {folder} is not a folder: run the commands of examples/swapped_lines/README.md first."
                )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([SwappedLinesArguments], argv, description=__doc__ or "")
    train, test = (
        pandas.read_csv(Path(arguments.data_dir) / f"{name}.csv", keep_default_na=False) for name in ("train", "test")
    )
    rows = [["the more frequent label", f"{test.label.value_counts(normalize=True).max():.1%}", "50.0%"]]
    for name, vectors in LINEAR.items():
        scores = linear_scores(train, test, vectors)
        rows.append([f"TF-IDF of {name}, logistic regression", *accuracies(test, scores)])
    rows.append(["ours, pretrained, no labels", "", accuracies(test, surprises(arguments.base, test.text))[1]])
    rows.append(["ours, fine-tuned", *accuracies(test, classifier_scores(arguments.model, test.text))])
    title = f"Are two lines swapped? {len(train):,} training rows, {len(test):,} test rows"
    print_table(title, ["", "accuracy per row", "accuracy per pair"], rows)


def accuracies(test: Any, scores: Sequence[float]) -> list[str]:
    """Rows on the right side of 0, and pairs whose swapped row has the higher score, each with its standard error.

    A tie counts one half.
    """
    is_swapped = test.label == "swapped"
    right = [(score > 0) == swapped for score, swapped in zip(scores, is_swapped, strict=True)]
    pairs: dict[str, dict[bool, float]] = defaultdict(dict)
    for place, swapped, score in zip(test.place, is_swapped, scores, strict=True):
        pairs[place][bool(swapped)] = score
    wins = [(pair[True] > pair[False]) + (pair[True] == pair[False]) / 2 for pair in pairs.values()]
    return [format_accuracy(values, len(pairs)) for values in (right, wins)]


def format_accuracy(values: Sequence[float], independent: int) -> str:
    """The mean and its standard error."""
    mean = sum(values) / len(values)
    return f"{mean:.1%} +- {math.sqrt(mean * (1 - mean) / independent):.1%}"


def linear_scores(train: Any, test: Any, vectors: dict[str, Any]) -> Any:
    """Log-odds of `swapped` by a linear model, rounded so that equal vectors give equal scores."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(**vectors), LogisticRegression(C=10, max_iter=1000))
    model.fit(train.text, train.label == "swapped")
    return model.decision_function(test.text).round(9)


def surprises(folder: str, texts: Sequence[str]) -> list[float]:
    """Minus the log-probability of each text."""
    model = AutoModelForCausalLM.from_pretrained(folder)

    def score(ids: torch.Tensor) -> float:
        ids = torch.nn.functional.pad(ids, (1, 0), value=model.config.bos_token_id)
        return float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)

    return scores_of(folder, score, texts)


def classifier_scores(folder: str, texts: Sequence[str]) -> list[float]:
    """Log-odds of `swapped` by the classifier."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    sign = 1 if model.config.id2label[1] == "swapped" else -1
    return scores_of(folder, lambda ids: sign * float(model(ids).logits[0].diff()), texts)


@torch.no_grad()
def scores_of(folder: str, score: Callable[[torch.Tensor], float], texts: Sequence[str]) -> list[float]:
    """The score of each text's tokens, (1, length)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [score(tokenizer(text, return_tensors="pt")["input_ids"]) for text in texts]


if __name__ == "__main__":
    sys.exit(run_command(main))
