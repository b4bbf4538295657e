"""Documents from text files, tables, datasets or Python itself, and their division into training and validation.

A corpus is read again for each pass and never kept in memory. The order of its documents is fixed.
"""

import hashlib
import importlib
import itertools
import os
import platform
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from ..settings.corpus import CorpusArguments
from .tables import TABLE_SUFFIXES, load_split, read_rows, read_text

FOLDER_SUFFIXES = (".txt", ".md", *TABLE_SUFFIXES)  # files that are read of a folder
# pydoc_data repeats the topics of the language reference, which could then be in both splits
SKIPPED_PYTHON_FOLDERS = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"
}  # fmt: skip
SPLIT_PROBE = 10_000  # documents that decide whether a split by hash leaves a side empty


@dataclass(frozen=True)
class Document:
    """One text; the token stream has an end-of-text token after it."""

    name: str  # unique in the corpus, and the same on every machine
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read repeatedly, in the same order.

    Attributes:
        description: for people.
        fingerprint: changes when a document changes.
        read: yields the documents.
        num_bytes: an estimate for progress bars; None if unknown.
        origin: metadata for the Hub: `dataset`, `config`, `split`, `language`.
    """

    description: str
    fingerprint: str
    read: Callable[[], Iterator[Document]]
    num_bytes: int | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Document]:
        return (document for document in self.read() if document.text)


def open_corpora(settings: CorpusArguments) -> tuple[Corpus, Corpus]:
    """The corpora for training and validation; by default, parts of Python's own text.

    Raises:
        ValueError, OSError: a source is missing, empty, not text, or in both corpora.
    """
    if settings.text:
        corpus = text_corpus(settings.text, settings.text_column)
    elif settings.dataset_name:
        corpus = dataset_corpus(settings)
    else:
        corpus = python_corpus()
    if not settings.validation_text:
        return split_corpus(corpus, settings.validation_fraction)
    shared = _document_names(settings.text).keys() & _document_names(settings.validation_text).keys()
    if shared:
        raise ValueError(
            f"{min(shared)} is in --text and in --validation_text: the validation loss would be measured on "
            "training text. Remove it from one of them."
        )
    return corpus, text_corpus(settings.validation_text, settings.text_column)


# Text files and tables
def text_corpus(paths: Sequence[str | Path], text_column: str = "text") -> Corpus:
    """The documents of files and folders: each row of a table, and each other file.

    In a folder, all visible files with FOLDER_SUFFIXES are read. A file that is given by name may have any suffix.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: no usable file, two documents with the same name, or (while reading) a file that `read_rows` or
            `read_text` refuses.
    """
    files = {name: path for path, name in _document_names(paths).items()}

    def read() -> Iterator[Document]:
        for name, path in sorted(files.items()):
            if path.suffix in TABLE_SUFFIXES:
                for number, row in read_rows(path, [text_column]):
                    yield Document(f"{name}:{number}", _text_of(row, text_column, f"{path}:{number}"))
            else:
                yield Document(name, read_text(path))

    contents = ((name, _file_sha256(path)) for name, path in sorted(files.items()))
    names = ", ".join(sorted(Path(path).name for path in paths))
    return Corpus(
        names if len(files) == len(paths) else f"{len(files)} files of {names}",
        _digest([text_column, *itertools.chain(*contents)]),
        read,
        sum(path.stat().st_size for path in files.values()),
    )


def _document_names(paths: Sequence[str | Path]) -> dict[Path, str]:
    """The name of each file: relative to the parent of its folder, or the file's own name."""
    found: dict[Path, str] = {}
    names: dict[str, Path] = {}
    for root in map(Path, paths):
        for path in _text_files(root):
            name = f"{root.resolve().name}/{path.relative_to(root).as_posix()}".removesuffix("/.")
            if other := names.get(name):
                raise ValueError(
                    f"Two documents would have the name {name!r}: {other} and {path}. "
                    "Give each path once, or the folder that contains both."
                )
            names[name] = path
            found[path.resolve()] = name
    return found


def _text_files(root: Path) -> list[Path]:
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist: --text takes text files and folders.")
    if not root.is_dir():
        if root.stat().st_size == 0:
            raise ValueError(f"{root} is empty (0 bytes): there is nothing to learn from.")
        return [root]
    files = [
        path
        for path in root.rglob("*")
        if path.suffix in FOLDER_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    if not files:
        raise ValueError(
            f"{root} contains no {', '.join(FOLDER_SUFFIXES)} file: give files with other suffixes by name."
        )
    return files


def _text_of(row: Mapping[str, Any], text_column: str, place: str) -> str:
    text = row[text_column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(
            f"{place}: column {text_column!r} has the value {text!r:.40} of type {type(text).__name__}, not a string. "
            "Name the column that contains the text with --text_column."
        )
    return text


# Datasets
def dataset_corpus(settings: CorpusArguments) -> Corpus:
    """The rows of a dataset of the Hugging Face Hub, or of a folder written by `Dataset.save_to_disk`.

    Raises:
        ValueError: no such column, split or configuration.
        OSError: no such dataset, or no network.
    """
    name, split, column = settings.dataset_name or "", settings.dataset_split, settings.text_column
    rows = load_split(name, settings.dataset_config_name, split, [column], settings.streaming).select_columns(column)

    def read() -> Iterator[Document]:
        for number, row in enumerate(rows):
            place = f"{Path(name).name}/{split}:{number}"
            yield Document(place, _text_of(row, column, place))

    description = f"dataset {Path(name).name} {settings.dataset_config_name or ''} ({split})"
    identity = [name, str(settings.dataset_config_name), split, column, str(rows.info.version)]
    if isinstance(rows, datasets.Dataset):
        identity.append(rows._fingerprint)
    is_local = Path(name).exists()
    origin = {} if is_local else {"dataset": name, "config": settings.dataset_config_name, "split": split}
    return Corpus(" ".join(description.split()), _digest(identity), read, origin=origin)


# Python's own text
def python_corpus(library: Path | None = None) -> Corpus:
    """The source files of the standard library (without tests and site-packages), then the language reference.

    Every Python installation has these 11 MB.

    Args:
        library: folder of the standard library (default: that of this Python).

    Raises:
        ValueError: this Python has no source files, as some embedded distributions.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    sources = sorted((path.relative_to(library).as_posix(), path) for path in _python_sources(library))
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    if not sources:
        raise ValueError(f"This Python has no library sources in {library}: give a corpus with --text.")

    def read() -> Iterator[Document]:
        for name, path in sources:
            with tokenize.open(path) as source:  # respects the file's encoding declaration
                yield Document(name, source.read())
        for topic, text in sorted(topics.items()):
            yield Document(f"pydoc_data.topics/{topic}", text)

    contents = (_file_sha256(path) for _, path in sources)
    parts = [*itertools.chain(*zip((name for name, _ in sources), contents, strict=True))]
    return Corpus(
        f"Python {platform.python_version()}: standard library and language reference",
        _digest([*parts, *itertools.chain(*sorted(topics.items()))]),
        read,
        sum(path.stat().st_size for _, path in sources) + sum(map(len, topics.values())),
        {"language": ["en", "code"]},
    )


def _python_sources(library: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(library):
        # config-* and _sysconfigdata* are not sources: they list the paths of the build machine
        subfolders[:] = [
            name for name in subfolders if name not in SKIPPED_PYTHON_FOLDERS and not name.startswith("config-")
        ]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


# Training and validation
def split_corpus(corpus: Corpus, validation_fraction: float) -> tuple[Corpus, Corpus]:
    """Hold out the documents whose name has a hash below `validation_fraction`.

    So a document is in the same part on every machine, also when documents are added or removed. If that leaves a
    part empty (few documents), the document with the smallest hash is held out. Of a single document, the end is held
    out, cut at the same character as in nanoGPT.

    Raises:
        ValueError: the corpus has no documents.
    """
    hashes = [_hash_of(document.name) for document in itertools.islice(corpus, SPLIT_PROBE)]
    if not hashes:
        raise ValueError(f"The corpus ({corpus.description}) is empty: it has no text.")
    if len(hashes) == 1:
        return _split_single_document(corpus, validation_fraction)
    limit, rule = validation_fraction, f"{100 * validation_fraction:.4g} % of the documents (held out by hash)"
    if not min(hashes) < limit <= max(hashes):
        limit, rule = sorted(hashes)[1], "the document with the smallest hash"

    def read_part(is_held_out: bool) -> Iterator[Document]:
        return (document for document in corpus if (_hash_of(document.name) < limit) == is_held_out)

    return _two_parts(corpus, rule, limit, read_part)


def _hash_of(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def _split_single_document(corpus: Corpus, validation_fraction: float) -> tuple[Corpus, Corpus]:
    def read_part(is_held_out: bool) -> Iterator[Document]:
        for document in corpus:
            cut = int(len(document.text) * (1 - validation_fraction))
            text = document.text[cut:] if is_held_out else document.text[:cut]
            yield Document(f"{document.name}#{'end' if is_held_out else 'beginning'}", text)

    rule = f"the last {100 * validation_fraction:.4g} % of its only document"
    return _two_parts(corpus, rule, validation_fraction, read_part)


def _two_parts(
    corpus: Corpus, rule: str, fraction: float, read_part: Callable[[bool], Iterator[Document]]
) -> tuple[Corpus, Corpus]:
    """The part without the documents that `rule` names, and the part with them, `fraction` of the corpus."""

    def part(is_held_out: bool, description: str, fraction: float) -> Corpus:
        return Corpus(
            f"{corpus.description}, {description}",
            _digest([corpus.fingerprint, description]),
            lambda: read_part(is_held_out),
            None if corpus.num_bytes is None else round(corpus.num_bytes * fraction),
            corpus.origin,
        )

    return part(False, f"except {rule}", 1 - fraction), part(True, rule, fraction)


# Fingerprints
def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()
