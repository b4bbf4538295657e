"""Options for text corpora and tokenizers."""

from dataclasses import dataclass
from typing import Literal

from .checks import check_bounds, check_fraction, requires
from .reading import COLUMNS, ENCODING, FOLDER_SUFFIXES, KEEP_CRLF, Reading, require_files
from .recipe import option, option_list

PATTERN = (
    "How a rank file of tiktoken splits text into words: gpt2, r50k_base, p50k_base, cl100k_base, o200k_base, llama3, "
    "or a regular expression (default: as its name says)."
)


@dataclass
class CorpusArguments:
    """The text. Without --text and --dataset_name: Python's own standard library and documentation."""

    text: list[str] = option_list(
        "Text files, tables (.jsonl, .json, .csv, .tsv, .parquet), compressed ones (.gz), or folders.",
        is_path=True,
    )
    dataset_name: str | None = option(
        "Dataset on the Hugging Face Hub, or a folder written by save_to_disk.", is_path=True
    )
    dataset_config_name: str | None = option("Configuration of --dataset_name.")
    dataset_split: str = option("Split of --dataset_name.", "train")
    text_column: str = option("Column with the text, in tables and datasets.", "text")
    streaming: bool = option("Stream --dataset_name instead of storing it on disk first.", False)
    validation_text: list[str] = option_list(
        "Text for validation (default: a held-out part of the corpus).", is_path=True
    )
    validation_fraction: float = option("Fraction of the documents held out for validation.", 0.05)
    validation_part: Literal["passages", "end"] = option(
        "What is held out of a single document: passages from all of it, or its end (as in nanoGPT).", "passages"
    )
    encoding: str | None = option(ENCODING)
    keep_crlf: bool = option(KEEP_CRLF, False)
    columns: list[str] = option_list(COLUMNS)
    suffixes: list[str] = option_list(
        f"Suffixes of the files to read in folders, such as .py .rst (default: {' '.join(FOLDER_SUFFIXES)})."
    )
    strip_gutenberg: bool = option("Remove the header and the license of Project Gutenberg from text files.", False)

    @property
    def reading(self) -> Reading:
        """How the files are read."""
        suffixes = tuple(f".{suffix.strip('*').removeprefix('.').lower()}" for suffix in self.suffixes)
        return Reading(
            self.encoding or "utf-8",
            self.keep_crlf,
            tuple(self.columns),
            suffixes or FOLDER_SUFFIXES,
            self.strip_gutenberg,
        )

    def __post_init__(self) -> None:
        if self.text and self.dataset_name:
            raise ValueError(
                f"--text ({' '.join(self.text)}) and --dataset_name ({self.dataset_name}) exclude each other: "
                "remove one of them."
            )
        for name in ("dataset_config_name", "streaming"):
            if getattr(self, name) and not self.dataset_name:
                raise ValueError(requires(name, getattr(self, name), "--dataset_name"))
        check_fraction("validation_fraction", self.validation_fraction)
        if not self.text and not self.validation_text:
            require_files(self, ("encoding", "columns", "suffixes", "strip_gutenberg"), "--text")
        if self.validation_text and self.validation_part != "passages":
            raise ValueError(f"--validation_part ({self.validation_part}) and --validation_text exclude each other.")
        _ = self.reading  # which checks the values


@dataclass
class TokenizerArguments:
    """The tokenizer to train."""

    type: Literal["bpe", "unigram", "characters", "bytes"] = option(
        "bpe and unigram learn parts of words; characters: a token for each one in the text; bytes: the 256 bytes.",
        "bpe",
    )
    vocab_size: int | None = option(
        "Number of tokens of bpe and unigram, including the 256 bytes and special tokens (default: 8192)."
    )
    model_max_length: int = option("Maximum sequence length stored with the tokenizer.", 1024)

    def __post_init__(self) -> None:
        check_bounds(self, {"vocab_size": 1, "model_max_length": 1})
        if self.vocab_size is not None and self.type in ("characters", "bytes"):
            raise ValueError(f"--vocab_size ({self.vocab_size}) has no effect on --type {self.type}: remove it.")

    @property
    def num_tokens(self) -> int | None:
        """The vocabulary size to train for; None if the type determines it."""
        return self.vocab_size or (8192 if self.type in ("bpe", "unigram") else None)
