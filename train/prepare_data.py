"""Tokenizes a corpus into blocks on disk: `python -m train.prepare_data --tokenizer DIR --output_dir DIR`."""

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_scratch_gpt.tokenization_scratch_gpt import BATCH_LENGTH, ScratchGPTTokenizer

from .arguments import CorpusArguments, option, parse_recipe, required, run_script
from .corpora import Corpus, Document, open_corpora
from .data import (
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
from .progress import Progress


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
    tokenizer = load_tokenizer(arguments.tokenizer)
    prepare_data(arguments.output_dir, tokenizer, open_corpora(corpus), arguments.block_size)
    return None


def load_tokenizer(name: str) -> ScratchGPTTokenizer:
    """The tokenizer of a folder or of the Hub, whatever class saved it.

    Raises:
        ValueError: the folder holds none, or it has no end-of-text token.
    """
    folder = Path(name)
    if (folder.exists() or name.startswith((".", "/"))) and not (folder / "tokenizer.json").exists():
        raise ValueError(f"--tokenizer {name} holds no tokenizer.json: write one with python -m train.train_tokenizer.")
    tokenizer = ScratchGPTTokenizer.from_pretrained(name)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"--tokenizer {name} has no eos_token: nothing could mark the end of a document.")
    return tokenizer


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
        progress = Progress(f"tokenize {split}", corpus.num_bytes)
        tokens = token_stream(progress.over(corpus), tokenizer)
        facts = write_blocks(folder / split, tokens, settings["block_size"], settings["vocab_size"])
        counts = {"num_documents": progress.num_documents, "num_bytes": progress.num_bytes}
        splits[split] = counts | facts | {"seconds": round(progress.seconds, 2), "origin": dict(corpus.origin)}
    write_manifest(folder, settings | {"splits": splits})


def token_stream(documents: Iterable[Document], tokenizer: ScratchGPTTokenizer) -> Iterator[np.ndarray]:
    """The ids of all documents, end-of-text behind each, in chunks of about BATCH_LENGTH characters.

    Text that looks like a special token stays text: only the end of a document makes an end-of-text id.
    """
    texts: list[str] = []
    for document in documents:
        texts.append(document.text)
        if sum(map(len, texts)) >= BATCH_LENGTH:
            yield _encode(tokenizer, texts)
            texts = []
    if texts:
        yield _encode(tokenizer, texts)


def _encode(tokenizer: ScratchGPTTokenizer, texts: list[str]) -> np.ndarray:
    end_of_text = np.array([tokenizer.eos_token_id], np.int32)
    return np.concatenate([part for ids in tokenizer.encode_texts(texts) for part in (ids, end_of_text)])


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
    sys.exit(run_script(main))
