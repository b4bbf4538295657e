"""How fast a tokenizer is trained and used, and how much memory that takes: `python -m benchmarks.tokenizer`.

Beside ours: the library `tokenizers` alone, as its documentation uses it (a BPE with the ByteLevel pre-tokenizer,
trained with a BpeTrainer on the same iterator), and the same library with our split pattern. The memory is that of
the real scripts on this Python's own text, once and written ten times.
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
    """What to measure."""

    vocab_size: int = option("Tokens of the vocabulary.", 4096)
    rounds: int = option("Interleaved rounds.", 3)
    copies: int = option("How often the large corpus of the memory table holds the small one.", 10)


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables."""
    (arguments,) = parse_recipe([TokenizerBenchmarkArguments], argv, description=__doc__ or "")
    compare_rates(arguments)
    compare_memory(arguments)


# Rates


def compare_rates(arguments: TokenizerBenchmarkArguments) -> None:
    """Train each candidate, then let it encode what it was trained on."""
    texts = [document.text for document in python_corpus()]
    trainers = {
        "`tokenizers` alone, ByteLevel": functools.partial(train_peer, texts, arguments.vocab_size, BYTE_LEVEL),
        "`tokenizers` alone, our split pattern": functools.partial(
            train_peer, texts, arguments.vocab_size, OUR_PATTERN
        ),
        "ours": functools.partial(train_ours, texts, arguments.vocab_size),
    }
    encoders = {name: train() for name, train in trainers.items()}
    num_tokens = {name: encode() for name, encode in encoders.items()}  # all is warm now
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
        ["", "training (MB/s)", "times the first row", "encoding (MB/s)", "times the first row", "bytes per token"],
        rows,
    )


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """The same function, but it returns its seconds."""
    return lambda: seconds_of(function)


def rates(seconds: dict[str, list[float]], name: str, megabytes: float) -> list[str]:
    """Median rate, and how many times that of the first candidate it is."""
    base = next(iter(seconds.values()))
    return [f"{megabytes / statistics.median(seconds[name]):.2f}", f"{median_ratio(base, seconds[name]):.2f}"]


def train_ours(texts: list[str], vocab_size: int) -> Callable[[], int]:
    """Train our tokenizer; returns what encodes all texts, as train.prepare_data does, and counts the tokens."""
    tokenizer = ScratchGPTTokenizer.train_from_texts(iter(texts), vocab_size, show_progress=False)
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    return lambda: sum(map(len, token_stream(documents, tokenizer))) - len(texts)  # end-of-text is no text


def train_peer(texts: list[str], vocab_size: int, splitter: pre_tokenizers.PreTokenizer) -> Callable[[], int]:
    """Train with `tokenizers` alone; returns what encodes all texts in one call and counts the tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = splitter
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(iter(texts), trainer)
    return lambda: sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))


# Memory


def compare_memory(arguments: TokenizerBenchmarkArguments) -> None:
    """Run both scripts on the corpus once and on `copies` of it, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for copies in (1, arguments.copies):
            text = Path(folder, f"{copies}_copies")
            megabytes = write_copies(text, copies) / 1e6
            tokenizer = f"{folder}/tokenizer_{copies}"
            options = [f"--vocab_size={arguments.vocab_size}", "--output_dir", tokenizer, "--text", str(text)]
            training = in_new_process(peak_of_script, "train_tokenizer", options)
            options = ["--tokenizer", tokenizer, "--output_dir", f"{folder}/data_{copies}", "--text", str(text)]
            preparing = in_new_process(peak_of_script, "prepare_data", options)
            rows.append([f"{megabytes:.0f} MB", f"{training:,.0f}", f"{preparing:,.0f}"])
    nothing = in_new_process(peak_of_script, None, [])
    rows.insert(0, ["nothing: the imports alone", f"{nothing:,.0f}", f"{nothing:,.0f}"])
    print_table("Peak memory (MB) of the scripts", ["corpus", "train.train_tokenizer", "train.prepare_data"], rows)


def write_copies(folder: Path, copies: int) -> int:
    """Write this Python's own text `copies` times, one file per document; returns the bytes."""
    num_bytes = 0
    for copy in range(copies):
        (folder / str(copy)).mkdir(parents=True)
        for number, document in enumerate(python_corpus()):
            num_bytes += Path(folder, str(copy), f"{number}.txt").write_bytes(document.text.encode())
    return num_bytes


def peak_of_script(name: str | None, options: list[str]) -> float:
    """Peak memory in MB of this process after it has run a script of train/."""
    scripts = {"train_tokenizer": train_tokenizer.main, "prepare_data": prepare_data.main}
    if name is not None:
        with silent():
            scripts[name](options)
    return peak_memory()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing on the screen."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


if __name__ == "__main__":
    sys.exit(run_command(main))
