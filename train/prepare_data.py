"""Tokenizes a corpus into blocks on disk: `scratch-gpt prepare_data --tokenizer DIR --output_dir DIR`."""

import shutil
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
    tokenizer_sha256,
    write_blocks,
    write_manifest,
)
from .data.corpora import Corpus, open_corpora
from .data.progress import CorpusProgress
from .data.tokens import load_data_tokenizer, token_stream
from .settings.command import run_command
from .settings.corpus import CorpusArguments
from .settings.recipe import option, parse_recipe, required


@dataclass
class PrepareArguments:
    """What to make of the corpus, and where."""

    tokenizer: str = required("Folder of train.train_tokenizer, or any fast tokenizer of the Hugging Face Hub.")
    output_dir: str = required("Folder for the blocks; equal ones that lie there already are kept.")
    block_size: int = option("Tokens that the model sees at once.", 256)

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"--block_size is {self.block_size}: it must be at least 1.")


def main(argv: Sequence[str] | None = None) -> int | None:
    """The script; see --help."""
    arguments, corpus = parse_recipe((PrepareArguments, CorpusArguments), argv, description=__doc__ or "")
    tokenizer = load_data_tokenizer(arguments.tokenizer)
    prepare_data(arguments.output_dir, tokenizer, open_corpora(corpus), arguments.block_size)
    return None


def prepare_data(
    output_dir: str | Path, tokenizer: ScratchGPTTokenizer, corpora: tuple[Corpus, Corpus], block_size: int
) -> PreparedData:
    """Writes the blocks of both corpora whole or not at all, or finds them done already.

    Raises:
        ValueError: the folder holds something else, or a corpus is shorter than one block.
    """
    folder = Path(output_dir)
    settings = _settings(tokenizer, corpora, block_size)
    if (folder / MANIFEST).exists():
        _check_same_settings(folder, settings)
        data = open_data(folder)
        print(f"All is done already: {folder} holds these blocks.")
        return data
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {folder} holds other files: choose a new folder.")
    partial = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted call
    try:
        partial.mkdir(parents=True)
        _write(partial, tokenizer, corpora, settings)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    data = open_data(folder)
    print(_summary(folder, data.manifest))
    return data


def _settings(tokenizer: ScratchGPTTokenizer, corpora: tuple[Corpus, Corpus], block_size: int) -> dict[str, Any]:
    """What decides the blocks; equal settings give equal blocks."""
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


def _check_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    manifest = read_manifest(folder)
    differences = [
        f"{name} {manifest.get(name)!r} there, {value!r} now"
        for name, value in settings.items()
        if manifest.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"--output_dir {folder} holds blocks made with other settings ({'; '.join(differences)}): "
            "choose a new folder, or remove this one."
        )


def _write(
    folder: Path, tokenizer: ScratchGPTTokenizer, corpora: tuple[Corpus, Corpus], settings: dict[str, Any]
) -> None:
    tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
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
    lines = [
        f"{name}: {facts['num_documents']} documents, {facts['num_bytes'] / 1e6:.1f} MB, "
        f"{facts['num_tokens']} tokens ({facts['num_bytes'] / facts['num_tokens']:.2f} bytes per token), "
        f"{facts['num_rows']} blocks of {manifest['block_size']}; "
        f"{facts['num_dropped_tokens']} tokens behind the last block left out"
        for name, facts in splits.items()
    ]
    rate = num_bytes / 1e6 / max(seconds, 1e-9)
    return "\n".join([f"Blocks in {folder} ({size / 1e6:.1f} MB) in {seconds:.1f} s ({rate:.2f} MB/s)", *lines])


if __name__ == "__main__":
    sys.exit(run_command(main))
