"""Speed and memory of training and using a tokenizer: `python -m benchmarks.tokenizer`.

The peers are the library `tokenizers` alone, used as in its documentation (a BPE with the ByteLevel pre-tokenizer,
trained with a BpeTrainer on the same iterator), and the same library with our split pattern. The memory is that of
the real commands on Python's own text, once and repeated ten times.
"""

import contextlib
import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from hf_scratch_gpt.tokenization_scratch_gpt import SPLIT_PATTERN, ScratchGPTTokenizer
from train import prepare_data, train_tokenizer
from train.data.corpora import Document, python_corpus
from train.data.tokens import token_stream
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

from .report import in_new_process, interleaved, median_ratio, peak_memory, print_table, seconds_of

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
OUR_PATTERN = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)


@dataclass
class TokenizerBenchmarkArguments:
    """Options of the benchmark."""

    vocab_size: int = option("Vocabulary size.", 4096)
    rounds: int = option("Interleaved rounds.", 3)
    copies: int = option("Copies of the small corpus in the large one of the memory table.", 10)


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables."""
    (arguments,) = parse_recipe([TokenizerBenchmarkArguments], argv, description=__doc__ or "")
    compare_rates(arguments)
    compare_memory(arguments)


# Rates


def compare_rates(arguments: TokenizerBenchmarkArguments) -> None:
    """Train each candidate, then encode its training texts."""
    texts = [document.text for document in python_corpus()]
    trainers = {
        "`tokenizers` alone, ByteLevel": functools.partial(train_peer, texts, arguments.vocab_size, BYTE_LEVEL),
        "`tokenizers` alone, our split pattern": functools.partial(
            train_peer, texts, arguments.vocab_size, OUR_PATTERN
        ),
        "ours": functools.partial(train_ours, texts, arguments.vocab_size),
    }
    encoders = {name: train() for name, train in trainers.items()}
    num_tokens = {name: encode() for name, encode in encoders.items()}  # also the warmup
    training = interleaved({name: timed(train) for name, train in trainers.items()}, arguments.rounds)
    encoding = interleaved({name: timed(encode) for name, encode in encoders.items()}, arguments.rounds)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rows = [
        [
            name,
            *rates(training, name, megabytes),
            *rates(encoding, name, megabytes),
            f"{1e6 * megabytes / num_tokens[name]:.2f}",
        ]
        for name in encoders
    ]
    print_table(
        f"Tokenizer, {len(texts)} documents, {megabytes:.1f} MB, vocabulary {arguments.vocab_size}",
        ["", "training (MB/s)", "relative to row 1", "encoding (MB/s)", "relative to row 1", "bytes per token"],
        rows,
    )


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """The same function, but it returns its duration in seconds."""
    return lambda: seconds_of(function)


def rates(seconds: dict[str, list[float]], name: str, megabytes: float) -> list[str]:
    """Median rate, absolute and relative to the first candidate."""
    base = next(iter(seconds.values()))
    return [f"{megabytes / statistics.median(seconds[name]):.2f}", f"{median_ratio(base, seconds[name]):.2f}"]


def train_ours(texts: list[str], vocab_size: int) -> Callable[[], int]:
    """Train our tokenizer; returns a function that encodes all texts like prepare_data and counts the tokens."""
    tokenizer = ScratchGPTTokenizer.train_from_texts(iter(texts), vocab_size, show_progress=False)
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    return lambda: sum(map(len, token_stream(documents, tokenizer))) - len(texts)  # without end-of-text


def train_peer(texts: list[str], vocab_size: int, splitter: pre_tokenizers.PreTokenizer) -> Callable[[], int]:
    """Train with `tokenizers` alone; returns a function that encodes all texts in one call and counts the tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = splitter
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(iter(texts), trainer)
    return lambda: sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))


# Memory


def compare_memory(arguments: TokenizerBenchmarkArguments) -> None:
    """Run both commands on the corpus and on `copies` of it, each in a fresh process."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for copies in (1, arguments.copies):
            text = Path(folder, f"{copies}_copies")
            megabytes = write_copies(text, copies) / 1e6
            tokenizer = f"{folder}/tokenizer_{copies}"
            options = [f"--vocab_size={arguments.vocab_size}", "--output_dir", tokenizer, "--text", str(text)]
            training = in_new_process(peak_of_command, "train_tokenizer", options)
            options = ["--tokenizer", tokenizer, "--output_dir", f"{folder}/data_{copies}", "--text", str(text)]
            preparing = in_new_process(peak_of_command, "prepare_data", options)
            rows.append([f"{megabytes:.0f} MB", f"{training:,.0f}", f"{preparing:,.0f}"])
    nothing = in_new_process(peak_of_command, None, [])
    rows.insert(0, ["none (imports only)", f"{nothing:,.0f}", f"{nothing:,.0f}"])
    print_table("Peak memory (MB) of the commands", ["corpus", "train_tokenizer", "prepare_data"], rows)


def write_copies(folder: Path, copies: int) -> int:
    """Write Python's own text `copies` times, one file per document; returns the number of bytes."""
    num_bytes = 0
    for copy in range(copies):
        (folder / str(copy)).mkdir(parents=True)
        for number, document in enumerate(python_corpus()):
            num_bytes += Path(folder, str(copy), f"{number}.txt").write_bytes(document.text.encode())
    return num_bytes


def peak_of_command(name: str | None, options: list[str]) -> float:
    """Peak memory of this process, in MB, after it has run a command."""
    commands = {"train_tokenizer": train_tokenizer.main, "prepare_data": prepare_data.main}
    if name is not None:
        with silent():
            commands[name](options)
    return peak_memory()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Discard all output."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


if __name__ == "__main__":
    sys.exit(run_command(main))
