"""Tokenize a corpus into blocks for pretraining.

    scratch-gpt prepare_data --tokenizer runs/tokenizer --output_dir runs/data
    scratch-gpt prepare_data --tokenizer gpt2 --output_dir runs/data --text book.txt --block_size 512
    scratch-gpt prepare_data --tokenizer cl100k_base.tiktoken --output_dir runs/data --text book.txt

The text comes from --text or --dataset_name; by default, Python's own standard library and documentation. The output
folder then contains the training and validation blocks, the tokenizer, and data.json with counts and hashes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_scratch_gpt.tokenization_scratch_gpt import ScratchGPTTokenizer

from .data.blocks import (
    FORMAT,
    MANIFEST,
    SPLITS,
    TOKENIZER_FOLDER,
    PreparedData,
    open_data,
    read_manifest,
    write_blocks,
    write_manifest,
)
from .data.corpora import Corpus, open_corpora
from .data.new_folder import written_whole
from .data.progress import CorpusProgress
from .data.tokens import load_data_tokenizer, save_tokenizer, token_stream, tokenizer_sha256, warn_of_changes
from .model.find import find_tokenizer
from .settings.checks import check_bounds, create_folder
from .settings.command import run_command
from .settings.corpus import PATTERN, CorpusArguments
from .settings.recipe import option, parse_recipe, required
from .settings.words import counted, sized


@dataclass
class PrepareArguments:
    """The tokenizer, the blocks, and their folder."""

    tokenizer: str = required(
        "Folder written by scratch-gpt train_tokenizer, a tokenizer on the Hugging Face Hub, or files of another "
        "library: tokenizer.json, vocab.json and merges.txt, .tiktoken, or .model of sentencepiece.",
        is_path=True,
    )
    output_dir: str = required(
        "Folder for the blocks. Blocks already there are reused if the settings match.", is_path=True
    )
    block_size: int = option("Tokens per block: the training context of the model.", 256)
    pattern: str | None = option(PATTERN)

    def __post_init__(self) -> None:
        check_bounds(self, {"block_size": 1})


def main(argv: Sequence[str] | None = None) -> None:
    """Write the blocks of both splits."""
    arguments, corpus = parse_recipe((PrepareArguments, CorpusArguments), argv, description=__doc__ or "")
    found = find_tokenizer("--tokenizer", arguments.tokenizer)
    tokenizer = load_data_tokenizer(f"--tokenizer {arguments.tokenizer}", found, arguments.pattern)
    warn_of_changes(arguments.tokenizer, tokenizer)
    prepare_data(arguments.output_dir, tokenizer, open_corpora(corpus), arguments.block_size)


def prepare_data(
    output_dir: str | Path, tokenizer: ScratchGPTTokenizer, corpora: tuple[Corpus, Corpus], block_size: int
) -> PreparedData:
    """Write the blocks of both corpora completely or not at all; keep them if they exist already.

    Raises:
        ValueError: the folder contains other files, or a corpus is shorter than one block.
    """
    folder = Path(output_dir)
    settings = _settings(tokenizer, corpora, block_size)
    if (folder / MANIFEST).exists():
        return _existing(folder, settings)
    create_folder("--output_dir", folder.parent)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file: choose a new folder.")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--output_dir {folder} contains other files: choose a new folder.")
    try:
        with written_whole(folder) as partial:
            _write(partial, tokenizer, corpora, settings)
    except FileExistsError:
        return _existing(folder, settings)
    data = open_data(folder, verify=())
    print(_summary(folder, data.manifest))
    return data


def _existing(folder: Path, settings: dict[str, Any]) -> PreparedData:
    """The blocks that are there already.

    Raises:
        ValueError: they were made with other settings, or are damaged.
    """
    if changes := _changes(read_manifest(folder), settings):
        raise ValueError(
            f"--output_dir {folder} contains other blocks: {'; '.join(changes)}. Choose a new folder, or "
            "remove this one."
        )
    data = open_data(folder)
    print(f"Nothing to do: {folder} already contains these blocks.")
    return data


def _settings(tokenizer: ScratchGPTTokenizer, corpora: tuple[Corpus, Corpus], block_size: int) -> dict[str, Any]:
    """Everything that determines the blocks: equal settings give equal blocks."""
    return {
        "format": FORMAT,
        "block_size": block_size,
        "vocab_size": len(tokenizer),
        "tokenizer_sha256": tokenizer_sha256(tokenizer.backend_tokenizer.to_str()),
        "corpus": {
            split: {"description": corpus.description, "fingerprint": corpus.fingerprint}
            for split, corpus in zip(SPLITS, corpora, strict=True)
        },
    }


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between the settings of two calls, in words."""
    changes = []
    if before["block_size"] != now["block_size"]:
        changes.append(f"--block_size was {before['block_size']}, is now {now['block_size']}")
    if before["tokenizer_sha256"] != now["tokenizer_sha256"]:
        changes.append("--tokenizer is another one")
    for split in SPLITS:
        old, new = before["corpus"][split], now["corpus"][split]
        if old["description"] != new["description"]:
            changes.append(f"the {split} text was {old['description']!r}, is now {new['description']!r}")
        elif old["fingerprint"] != new["fingerprint"]:
            changes.append(f"the {split} text ({new['description']}), or how it is read, has changed")
    return changes


def _write(
    folder: Path, tokenizer: ScratchGPTTokenizer, corpora: tuple[Corpus, Corpus], settings: dict[str, Any]
) -> None:
    save_tokenizer(tokenizer, folder / TOKENIZER_FOLDER)
    splits = {}
    for split, corpus in zip(SPLITS, corpora, strict=True):
        progress = CorpusProgress(f"tokenize {split}", corpus.num_bytes)
        tokens = token_stream(progress.over(corpus), tokenizer)
        facts = write_blocks(folder / split, tokens, settings["block_size"], settings["vocab_size"])
        counts = {"num_documents": progress.num_documents, "num_bytes": progress.num_bytes}
        splits[split] = counts | facts | {"seconds": round(progress.seconds, 2), "origin": dict(corpus.origin)}
    write_manifest(folder, settings | {"splits": splits})


def _summary(folder: Path, manifest: dict[str, Any]) -> str:
    splits = manifest["splits"]
    seconds = sum(facts["seconds"] for facts in splits.values())
    num_bytes = sum(facts["num_bytes"] for facts in splits.values())
    size = sum(facts["file_size"] for facts in splits.values())
    rate = num_bytes / 1e6 / max(seconds, 1e-9)
    lines = [f"Saved to {folder}: {sized(size)} of blocks, in {seconds:.1f} s ({rate:.2f} MB/s)"]
    for split, facts in splits.items():
        lines.append(
            f"{split}: {counted(facts['num_documents'], 'document')}, {sized(facts['num_bytes'])}, "
            f"{facts['num_tokens']:,} tokens ({facts['num_bytes'] / facts['num_tokens']:.2f} bytes per token), "
            f"{counted(facts['num_rows'], 'block')} of {manifest['block_size']}; "
            f"{counted(facts['num_dropped_tokens'], 'token')} after the last full block dropped"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
