"""Options for text corpora and tokenizers."""

from dataclasses import dataclass

from .checks import check_bounds, check_fraction, requires
from .recipe import option, option_list


@dataclass
class CorpusArguments:
    """The text. Without --text and --dataset_name: Python's own standard library and documentation."""

    text: list[str] = option_list("Text files: .txt, .md, .jsonl, .csv, .tsv, .parquet, or folders.", is_path=True)
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


@dataclass
class TokenizerArguments:
    """The tokenizer to train."""

    vocab_size: int = option("Number of tokens, including the 256 bytes and special tokens.", 8192)
    model_max_length: int = option("Maximum sequence length stored with the tokenizer.", 1024)

    def __post_init__(self) -> None:
        check_bounds(self, {"vocab_size": 1, "model_max_length": 1})
