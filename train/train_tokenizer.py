"""Train a tokenizer: byte-level BPE or unigram, characters, or bytes.

    scratch-gpt train_tokenizer --output_dir runs/tokenizer
    scratch-gpt train_tokenizer --output_dir runs/tokenizer --text book.txt --vocab_size 4096
    scratch-gpt train_tokenizer --output_dir runs/tokenizer --text book.txt --type characters

The text comes from --text or --dataset_name; by default, Python's own standard library and documentation.
`AutoTokenizer.from_pretrained` loads the output folder.
"""

import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_scratch_gpt.tokenization_scratch_gpt import ScratchGPTTokenizer

from .data.corpora import Corpus, Document, open_corpora
from .data.new_folder import exclusive
from .data.progress import CorpusProgress
from .data.tokens import save_tokenizer
from .settings.checks import create_folder
from .settings.command import run_command
from .settings.corpus import CorpusArguments, TokenizerArguments
from .settings.durable import flush, flush_tree
from .settings.recipe import parse_recipe, required
from .settings.run_folder import TOKENIZER_FILE
from .settings.words import counted, sized

COMPRESSION_SAMPLE = 1 << 21  # characters of held-out text


@dataclass
class OutputArguments:
    """The folder of the tokenizer."""

    output_dir: str = required("Folder for the tokenizer; it must not contain one yet.", is_path=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Train on the training part of the corpus, and save."""
    output, settings, corpus = parse_recipe(
        (OutputArguments, TokenizerArguments, CorpusArguments), argv, description=__doc__ or ""
    )
    if settings.type == "bytes":
        refuse_text(corpus)
    check_output(output.output_dir)
    if settings.type == "bytes":
        make_bytes(output.output_dir, settings)
        return
    train_corpus, validation_corpus = open_corpora(corpus)
    train_tokenizer(output.output_dir, settings, train_corpus, validation_corpus)


def refuse_text(corpus: CorpusArguments) -> None:
    """Refuse options of the text: the bytes do not depend on it.

    Raises:
        ValueError: the option.
    """
    for name, default in vars(CorpusArguments()).items():
        if (value := getattr(corpus, name)) != default:
            shown = " ".join(value) if isinstance(value, list) else value
            raise ValueError(f"--{name} ({shown}) has no effect on --type bytes: the text does not matter. Remove it.")


def make_bytes(output_dir: str | Path, settings: TokenizerArguments) -> None:
    """Write the tokenizer of bytes."""
    tokenizer = ScratchGPTTokenizer.train_from_texts(
        type="bytes", model_max_length=settings.model_max_length, show_progress=False
    )
    write_tokenizer(tokenizer, Path(output_dir))
    print(f"Saved to {output_dir}: {len(tokenizer)} tokens, the 256 bytes and special tokens")


def check_output(output_dir: str | Path) -> None:
    """Create the folder, before any work is done.

    Raises:
        ValueError: it contains a tokenizer.
        OSError: it is not writable.
    """
    folder = Path(output_dir)
    _refuse_existing(folder)
    create_folder("--output_dir", folder)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--output_dir {folder} is not writable: choose another folder.")


def _refuse_existing(folder: Path) -> None:
    if (folder / TOKENIZER_FILE).exists():
        raise ValueError(f"--output_dir {folder} already contains a tokenizer: remove it or choose another folder.")


def train_tokenizer(
    output_dir: str | Path, settings: TokenizerArguments, train_corpus: Corpus, validation_corpus: Corpus
) -> ScratchGPTTokenizer:
    """Train on one corpus, save, and print size, time, and the compression of the other corpus.

    Characters come from both: the held-out text could not be encoded without a token for each of its characters.
    """
    print(f"Training a tokenizer on {train_corpus.description}")
    progress = CorpusProgress("read", train_corpus.num_bytes)
    documents: Iterable[Document] = train_corpus
    if settings.type == "characters":
        documents = itertools.chain(train_corpus, validation_corpus)
    tokenizer = ScratchGPTTokenizer.train_from_texts(
        _texts(progress.over(documents), settings),
        settings.num_tokens,
        type=settings.type,
        model_max_length=settings.model_max_length,
        show_progress=False,
    )
    write_tokenizer(tokenizer, Path(output_dir))
    compression = bytes_per_token(tokenizer, sample_of(validation_corpus))
    rate = progress.num_bytes / 1e6 / progress.seconds
    print(
        f"Saved to {output_dir}: {len(tokenizer):,} tokens, learned from {counted(progress.num_documents, 'document')} "
        f"({sized(progress.num_bytes)}) in {progress.seconds:.1f} s ({rate:.2f} MB/s); "
        f"{compression:.2f} bytes per token on held-out text"
    )
    return tokenizer


def _texts(documents: Iterable[Document], settings: TokenizerArguments) -> Iterator[str]:
    yield from (document.text for document in documents)
    # all words are counted now; learning takes seconds, and only grows with the vocabulary
    if settings.type != "characters":
        learned = "merges" if settings.type == "bpe" else "pieces"
        print(f"Learning {learned} for {settings.num_tokens:,} tokens", flush=True)


def write_tokenizer(tokenizer: ScratchGPTTokenizer, folder: Path) -> None:
    """Write the files completely or not at all; last tokenizer.json, which marks the folder as complete.

    Raises:
        ValueError: another process has written a tokenizer in the meantime.
        OSError: the disk is full.
    """
    with exclusive(folder):
        _refuse_existing(folder)
        for left in folder.glob(".tmp-tokenizer-*"):  # by a killed process
            left.unlink() if left.is_file() else shutil.rmtree(left)
        with TemporaryDirectory(prefix=".tmp-tokenizer-", dir=folder) as temporary:
            save_tokenizer(tokenizer, temporary)
            flush_tree(Path(temporary))
            last = Path(f"{temporary}.json")
            for path in sorted(Path(temporary).iterdir()):
                path.replace(last if path.name == TOKENIZER_FILE else folder / path.name)
        flush(folder)
        last.replace(folder / TOKENIZER_FILE)  # nothing is left to do then, so a kill leaves nothing behind
        flush(folder)


def sample_of(corpus: Corpus) -> Iterator[Document]:
    """The first held-out documents, COMPRESSION_SAMPLE characters of them."""
    left = COMPRESSION_SAMPLE
    for document in corpus:
        yield Document(document.name, document.text[:left])
        left -= len(document.text)
        if left <= 0:
            return


def bytes_per_token(tokenizer: ScratchGPTTokenizer, documents: Iterable[Document]) -> float:
    """UTF-8 bytes per token, the higher the better; nan without text."""
    num_bytes = num_tokens = 0
    for document in documents:
        num_bytes += len(document.text.encode())
        num_tokens += len(tokenizer.encode_texts([document.text])[0])
    return num_bytes / num_tokens if num_tokens else float("nan")


if __name__ == "__main__":
    sys.exit(run_command(main))
