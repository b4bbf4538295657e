"""Time to encode a corpus into blocks, compared with `datasets.map`: `python -m benchmarks.preparation`.

The peer is the usual script (`run_clm` of transformers): `load_dataset`, `map` with the tokenizer, `map` with
`group_texts`, both with batched=True and one process per core, then `save_to_disk`. Both begin with the same .jsonl
file and end with a folder of blocks; imports are not counted. The row in the middle is ours, if it gives each text to
the tokenizers library as a whole. Every measurement is a fresh process.

A second table has ten times as many documents of four words.
"""

import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import datasets
from transformers import AutoTokenizer

from hf_scratch_gpt.tokenization_scratch_gpt import ScratchGPTTokenizer
from train import prepare_data
from train.data.blocks import read_manifest
from train.data.corpora import Corpus, open_corpora, python_corpus
from train.settings.command import run_command
from train.settings.corpus import CorpusArguments
from train.settings.recipe import option, option_list, parse_recipe
from train.settings.words import counted

from .linear import documents, write_lines
from .report import in_new_process, interleaved, median_ratio, peak_memory, print_table

BLOCK_SIZE = 256
MAP = "`datasets.map`"
Candidate = Callable[[Path, Path, Path], int]  # of text, tokenizer and new folder; returns the tokens in blocks


@dataclass
class PreparationArguments:
    """The text, and how often it is encoded."""

    text: list[str] = option_list("Text files, tables, or folders (default: Python's own text).", is_path=True)
    vocab_size: int = option("Vocabulary size.", 4096)
    rounds: int = option("Interleaved rounds.", 3)
    rows: int = option("Short documents of the second table.", 1_000_000)


@dataclass(frozen=True)
class Cost:
    """What it took to prepare the data."""

    seconds: float
    cpu_seconds: float  # of the process and those that it started
    megabytes: float  # peak memory of the process
    num_tokens: int


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables."""
    (arguments,) = parse_recipe([PreparationArguments], argv, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        megabytes, count = in_new_process(write_input, folder, arguments.text, arguments.vocab_size)
        compare(folder, arguments.rounds, f"{counted(count, 'document')}, {megabytes:.1f} MB")
        compare_rows(folder, arguments.rows)


def write_input(folder: Path, text: list[str], vocab_size: int) -> tuple[float, int]:
    """Write documents and a tokenizer of theirs; returns megabytes and documents."""
    corpus: Corpus = python_corpus() if not text else open_corpora(CorpusArguments(text=text))[0]
    texts = [document.text for document in corpus]
    write_lines(folder / "text.jsonl", ({"text": text} for text in texts))
    ScratchGPTTokenizer.train_from_texts(texts, vocab_size, show_progress=False).save_pretrained(folder / "tokenizer")
    return sum(len(text.encode()) for text in texts) / 1e6, len(texts)


# Compared with datasets.map
def compare(folder: Path, rounds: int, corpus: str) -> None:
    """Time the candidates and print the table."""
    costs: dict[str, Cost] = {}

    def seconds_of(name: str, prepare: Candidate) -> float:
        costs[name] = measured(prepare, folder / "text.jsonl", folder / "tokenizer")
        return costs[name].seconds

    candidates = {MAP: with_map, "prepare_data, whole texts": with_whole_texts, "prepare_data": with_prepare_data}
    seconds = interleaved({name: partial(seconds_of, name, prepare) for name, prepare in candidates.items()}, rounds)
    megabytes = (folder / "text.jsonl").stat().st_size / 1e6
    rows = [
        [
            name,
            f"{statistics.median(times):.2f}",
            f"{megabytes / statistics.median(times):.1f}",
            f"{1 / median_ratio(times, seconds[MAP]):.2f}",
            f"{costs[name].cpu_seconds:.2f}",
            f"{costs[name].num_tokens:,}",
        ]
        for name, times in seconds.items()
    ]
    header = ["", "seconds (median)", "MB/s", "speed relative to row 1 (median of ratios)"]
    header += ["CPU seconds (last round)", "tokens in blocks"]
    print_table(f"Preparing {corpus}, {counted(rounds, 'round')} of fresh processes", header, rows)


def measured(prepare: Candidate, text: Path, tokenizer: Path) -> Cost:
    """The cost of a candidate in a fresh process, in a fresh folder."""
    with tempfile.TemporaryDirectory(dir=text.parent) as name:
        return in_new_process(cost_of, prepare, text, tokenizer, Path(name))


def cost_of(prepare: Candidate, text: Path, tokenizer: Path, folder: Path) -> Cost:
    """Run a candidate in this process."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        started, cpu_started = time.perf_counter(), cpu_seconds()
        num_tokens = prepare(text, tokenizer, folder)
        return Cost(time.perf_counter() - started, cpu_seconds() - cpu_started, peak_memory(), num_tokens)


def cpu_seconds() -> float:
    """Time on all cores of this process and of the processes that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def with_prepare_data(text: Path, tokenizer: Path, folder: Path) -> int:
    """The command of this package."""
    options = {"tokenizer": tokenizer, "text": text, "block_size": BLOCK_SIZE, "output_dir": folder / "data"}
    prepare_data.main([f"--{name}={value}" for name, value in options.items()])
    splits = read_manifest(folder / "data")["splits"].values()
    return sum(facts["num_rows"] * BLOCK_SIZE for facts in splits)


def with_whole_texts(text: Path, tokenizer: Path, folder: Path) -> int:
    """The command, if it does not look for words that it has encoded before."""
    with mock.patch("train.data.tokens.cutter_for", return_value=None):
        return with_prepare_data(text, tokenizer, folder)


def with_map(text: Path, tokenizer: Path, folder: Path) -> int:
    """`run_clm` of transformers, up to the training."""
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    rows = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(folder / "cache"))
    processes = os.cpu_count() or 1
    encoded = rows.map(
        lambda batch: encoder(batch["text"]), batched=True, num_proc=processes, remove_columns=rows.column_names
    )
    blocks = encoded.map(group_texts, batched=True, num_proc=processes)
    blocks.save_to_disk(str(folder / "data"))
    return len(blocks) * BLOCK_SIZE


def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """The texts of a batch, joined and cut into blocks, without the last tokens that fill no block."""
    joined = {name: list(itertools.chain(*texts)) for name, texts in batch.items()}
    length = len(joined["input_ids"]) // BLOCK_SIZE * BLOCK_SIZE
    cut = {name: [ids[i : i + BLOCK_SIZE] for i in range(0, length, BLOCK_SIZE)] for name, ids in joined.items()}
    return cut | {"labels": [*cut["input_ids"]]}


# Many documents
def compare_rows(folder: Path, count: int) -> None:
    """Prepare a tenth of the documents, then all of them."""
    rows = []
    for number in (count // 10, count):
        text = documents(folder, number)
        cost = measured(with_prepare_data, text, folder / "tokenizer")
        rows.append(
            [f"{number:,}", f"{text.stat().st_size / 1e6:.1f}", f"{cost.seconds:.1f}", f"{cost.megabytes:,.0f}"]
        )
    print_table("prepare_data, documents of four words", ["documents", "MB", "seconds", "peak memory (MB)"], rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
