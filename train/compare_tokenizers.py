"""Compare tokenizers on a text: a table, comparison.json, comparison.md and comparison.png.

    scratch-gpt compare_tokenizers --tokenizers runs/tokenizer gpt2 llama.model --output_dir runs/comparison
    scratch-gpt compare_tokenizers --text book.txt --train_types all --output_dir runs/comparison
    scratch-gpt compare_tokenizers --text book.txt --train_types all --train true --output_dir runs/comparison

The text is the held-out part of the corpus; --train_types are trained on the rest. With --train, a small model is
trained with each tokenizer for the same number of FLOPs, and its bits per byte on the held-out part are compared.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_scratch_gpt import ScratchGPTConfig
from hf_scratch_gpt.tokenization_scratch_gpt import ScratchGPTTokenizer

from . import prepare_data, pretrain
from .data.corpora import Corpus, Document, open_corpora
from .data.new_folder import written_whole
from .data.tokens import load_data_tokenizer, save_tokenizer
from .metrics.tokenizer_plots import draw_comparison
from .metrics.tokenizer_scores import TokenizerScores, score_tokenizer
from .model.find import find_tokenizer
from .model.flops import flops_per_token
from .settings.checks import check_bounds, create_folder, requires
from .settings.command import run_command
from .settings.corpus import PATTERN, CorpusArguments
from .settings.recipe import option, option_list, parse_recipe, required
from .settings.training import PRESET_NAMES

ALL_TYPES = ("characters", "bytes", "bpe:1024", "bpe:4096", "bpe:16384", "unigram:4096")
TOKENS_PER_STEP, MICRO_BATCH = 2048, 32  # the second: at most so many sequences at once
COLUMNS = ("tokenizer", "vocabulary", "tokens", "bytes/token", "never used", "embedding", "MB/s")


@dataclass
class CompareArguments:
    """What to compare, and how."""

    output_dir: str = required("New folder for the comparison.", is_path=True)
    tokenizers: list[str] = option_list("Tokenizers: folders, files of other libraries, or names on the Hub.")
    train_types: list[str] = option_list(
        f"Tokenizers to train on the text: characters, bytes, bpe:SIZE, unigram:SIZE; all: {' '.join(ALL_TYPES)}."
    )
    pattern: str | None = option(PATTERN)
    config: str = option(
        f"Preset of the model ({', '.join(PRESET_NAMES)}) that the embedding is counted for.", "laptop"
    )
    max_megabytes: float = option("Read at most so much of the text, in 10^6 characters.", 10.0)
    train: bool = option("Train a model with each tokenizer, for --flops.", False)
    flops: float = option("With --train: FLOPs of each model, as in scratch-gpt plan: 6 per weight and token.", 1e13)
    context_bytes: list[int] = option_list("With --train: bytes of context; several: a model for each (default: 512).")

    def __post_init__(self) -> None:
        if not (self.tokenizers or self.train_types):
            raise ValueError("there is nothing to compare: give --tokenizers or --train_types.")
        if self.config not in PRESET_NAMES:
            raise ValueError(f"--config is {self.config}: it must be one of {', '.join(PRESET_NAMES)}.")
        check_bounds(self, {"max_megabytes": 0.001, "flops": 1.0})
        for name in ("context_bytes", "flops"):
            value = getattr(self, name)
            if value not in ([], 1e13) and not self.train:
                raise ValueError(requires(name, value, "--train true"))
        if any(context < 16 for context in self.context_bytes):
            raise ValueError(f"--context_bytes is {min(self.context_bytes)}: it must be at least 16.")
        for entry in self.types:
            parse_type(entry)

    @property
    def types(self) -> list[str]:
        """`train_types`, with `all` written out."""
        return [entry for given in self.train_types for entry in (ALL_TYPES if given == "all" else (given,))]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and write the files."""
    arguments, corpus = parse_recipe((CompareArguments, CorpusArguments), argv, description=__doc__ or "")
    folder = Path(arguments.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {folder} is not an empty folder: choose a new one.")
    create_folder("--output_dir", folder.parent)
    train, validation = (limited(part, arguments.max_megabytes) for part in open_corpora(corpus))
    texts = [document.text for document in validation if document.text]
    with written_whole(folder) as partial:
        named = open_all(arguments, train, validation)
        rows: list[dict[str, Any]] = []
        for name, tokenizer in named.items():
            row = describe(score_tokenizer(name, tokenizer, texts), tokenizer, arguments.config)
            for context in (arguments.context_bytes or [512]) if arguments.train else []:
                place = partial / f"{len(rows)}-{context}"
                bits = train_model(place, tokenizer, row, (train, validation), arguments, context)
                row["bits_per_byte"][context] = bits
            rows.append(row)
        write_comparison(partial, rows, validation.description, arguments)
    print(table(rows))
    print(f"\nSaved to {folder}: comparison.md, comparison.json, comparison.png")


def limited(corpus: Corpus, megabytes: float) -> Corpus:
    """The first part of a corpus."""

    def read() -> Any:
        left = round(megabytes * 1e6)
        for document in corpus:
            yield Document(document.name, document.text[:left])
            left -= len(document.text)
            if left <= 0:
                return

    return Corpus(corpus.description, f"{corpus.fingerprint} {megabytes}", read, corpus.num_bytes, corpus.origin)


def parse_type(entry: str) -> tuple[Any, int | None]:
    """`"bpe:4096"` as its type and size.

    Raises:
        ValueError: another form.
    """
    type, _, size = entry.partition(":")
    if type in ("characters", "bytes") and not size:
        return type, None
    if type in ("bpe", "unigram") and (size.isdecimal() or not size):
        return type, int(size or 8192)
    raise ValueError(f"--train_types {entry}: it must be characters, bytes, bpe:SIZE, unigram:SIZE or all.")


def open_all(arguments: CompareArguments, train: Corpus, validation: Corpus) -> dict[str, ScratchGPTTokenizer]:
    """All tokenizers by name, the given ones first."""
    named = {}
    for name in arguments.tokenizers:
        place = find_tokenizer("--tokenizers", name)
        short = Path(name).name if Path(name).name not in named else name
        own = arguments.pattern if Path(name).suffix in (".tiktoken", ".model") else None
        named[short] = load_data_tokenizer(f"--tokenizers {name}", place, own)
    for entry in arguments.types:
        type, size = parse_type(entry)
        corpora = {"bytes": (), "characters": (train, validation)}.get(type, (train,))
        texts = (document.text for corpus in corpora for document in corpus) if corpora else ()
        print(f"Training {entry}", flush=True)
        named[entry] = ScratchGPTTokenizer.train_from_texts(texts, size, type=type, show_progress=False)
    return named


def describe(scores: TokenizerScores, tokenizer: ScratchGPTTokenizer, config: str) -> dict[str, Any]:
    """The scores, and the share of the parameters that the embedding takes in a model of this shape."""
    shape = model_config(tokenizer, config)
    embedding = shape.vocab_size * shape.hidden_size
    return asdict(scores) | {
        "never_used_percent": 100 * scores.never_used,
        "embedding_percent": 100 * embedding / shape.parameter_count,
        "bits_per_byte": {},
    }


def model_config(tokenizer: ScratchGPTTokenizer, config: str, **overrides: Any) -> ScratchGPTConfig:
    """The config of a model with this vocabulary."""
    return ScratchGPTConfig.from_preset(config, **{"vocab_size": len(tokenizer), **overrides})


def train_model(
    folder: Path, tokenizer: ScratchGPTTokenizer, row: dict[str, Any], corpora: tuple[Corpus, Corpus],
    arguments: CompareArguments, context_bytes: int,
) -> float:  # fmt: skip
    """Train a model for `--flops`, and return its bits per byte on the held-out text.

    A block has as many tokens as `context_bytes` of the text have, so that all models see equally much of it.

    Raises:
        ValueError: the text is shorter than a block, or too little compute for a step.
    """
    block_size = max(2, round(context_bytes / row["bytes_per_token"]))
    batch = max(1, round(TOKENS_PER_STEP / block_size))
    micro_batch = max(size for size in range(1, MICRO_BATCH + 1) if batch % size == 0)
    config = model_config(tokenizer, arguments.config, max_position_embeddings=block_size)
    steps = round(arguments.flops / (flops_per_token(config, block_size) * batch * block_size))
    if steps < 1:
        raise ValueError(f"--flops {arguments.flops:g} is not enough for a step of {row['name']}: raise it.")
    print(f"Training a model with {row['name']}: {steps} steps of {batch} x {block_size} tokens", flush=True)
    folder.mkdir()
    save_tokenizer(tokenizer, folder / "tokenizer")
    prepare_data.prepare_data(folder / "data", tokenizer, corpora, block_size)
    code = pretrain.main([
        f"--config={arguments.config}", f"--config_overrides=max_position_embeddings={block_size}",
        f"--data_dir={folder / 'data'}", f"--output_dir={folder / 'run'}", f"--max_steps={steps}",
        f"--global_batch_size={batch}", f"--micro_batch_size={micro_batch}", f"--eval_steps={steps}",
        f"--save_steps={steps}", "--max_eval_samples=0", f"--warmup_steps={steps // 20}",
    ])  # fmt: skip
    if code:
        raise ValueError(f"scratch-gpt pretrain ended with exit code {code}.")
    lines = (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float([r["eval_bits_per_byte"] for r in map(json.loads, lines) if "eval_bits_per_byte" in r][-1])


def write_comparison(folder: Path, rows: list[dict[str, Any]], text: str, arguments: CompareArguments) -> None:
    """Write the three files."""
    facts = {"text": text, "config": arguments.config, "flops": arguments.flops if arguments.train else None}
    (folder / "comparison.json").write_text(json.dumps({**facts, "tokenizers": rows}, indent=2), encoding="utf-8")
    (folder / "comparison.md").write_text(f"Text: {text}\n\n{table(rows)}\n", encoding="utf-8")
    draw_comparison(rows, folder / "comparison.png", f"{text}; embedding in a model of the shape {arguments.config}")


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, then the longest tokens and round trips."""
    contexts = sorted({context for row in rows for context in row["bits_per_byte"]})
    titles = [*COLUMNS, *(f"bits/byte at {context} bytes" for context in contexts), "round trip"]
    cells = [titles, ["---"] * len(titles), *(_cells(row, contexts) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    longest = [f"- {row['name']}: {'  '.join(f'`{token}`' for token in row['longest'])}" for row in rows]
    return "\n".join([*lines, "", "Longest tokens:", "", *longest])


def _cells(row: dict[str, Any], contexts: list[int]) -> list[str]:
    bits = [f"{row['bits_per_byte'][context]:.4f}" if context in row["bits_per_byte"] else "" for context in contexts]
    return [
        row["name"], f"{row['vocab_size']:,}", f"{row['num_tokens']:,}", f"{row['bytes_per_token']:.2f}",
        f"{row['never_used_percent']:.1f} %", f"{row['embedding_percent']:.1f} %",
        f"{row['megabytes_per_second']:.2f}", *bits, row["round_trip"].replace("|", "\\|"),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(main))
