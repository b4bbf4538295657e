"""Where text comes from: documents in a fixed order, read anew for every pass and never all held.

Reading order: `Document` and `Corpus`; `open_corpora`, which picks the sources and the validation
part; then one section per source: this Python's own text, the user's files, Hub datasets.
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
from .tables import TABLES, load_split, missing_column, read_rows, utf8_lines

FOLDER_SUFFIXES = (".txt", ".md", *TABLES)  # what a folder is searched for; a named file may differ
# pydoc_data is the same text as the topics: it must not lie in both splits
PYTHON_FOLDERS_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
SPLIT_PROBE = 10_000  # documents looked at to see whether a split by hash has two sides


@dataclass(frozen=True)
class Document:
    """One text, with end-of-text behind it."""

    name: str  # relative to the corpus and unique in it: the same on every machine
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again and again, each time in the same order.

    `fingerprint` changes when a document does. `num_bytes` is an estimate for progress bars, None
    where nobody knows. `origin` is what the Hub can be told of it: `dataset`, `config`, `split`, `language`.
    """

    description: str
    fingerprint: str
    read: Callable[[], Iterator[Document]]
    num_bytes: int | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Document]:
        return (document for document in self.read() if document.text)


def open_corpora(settings: CorpusArguments) -> tuple[Corpus, Corpus]:
    """The corpora for training and validation; without --text and --dataset_name, Python's own text.

    Raises:
        ValueError, OSError: a source is missing, empty, not text, or in both.
    """
    if settings.text:
        corpus = text_corpus(settings.text, settings.text_column)
    elif settings.dataset_name:
        corpus = dataset_corpus(settings)
    else:
        corpus = python_corpus()
    if not settings.validation_text:
        return split_corpus(corpus, settings.validation_fraction)
    shared = _files(settings.text).keys() & _files(settings.validation_text).keys()
    if shared:
        raise ValueError(
            f"{min(shared)} is in --text and in --validation_text: a loss on text that was "
            "trained on says nothing. Remove it from one of them."
        )
    return corpus, text_corpus(settings.validation_text, settings.text_column)


def split_corpus(corpus: Corpus, validation_fraction: float) -> tuple[Corpus, Corpus]:
    """Splits by document: held out is whoever's name has a hash below `validation_fraction`.

    So a document stays on its side on every machine and when others come or go. Where that leaves
    a side empty (few documents) the document with the smallest hash is held out. The end of the
    text is held out if there is only one document, at the character where nanoGPT cuts.

    Raises:
        ValueError: there is no document.
    """
    probe = [_position(document.name) for document in itertools.islice(corpus, SPLIT_PROBE)]
    if not probe:
        raise ValueError(f"The corpus ({corpus.description}) is empty: it holds no text.")
    if len(probe) == 1:
        return _cut_single_document(corpus, validation_fraction)
    limit, rule = validation_fraction, f"{validation_fraction:g} of the documents, by hash"
    if not min(probe) < limit <= max(probe):
        limit, rule = sorted(probe)[1], "the document with the smallest hash"

    def part(is_held_out: bool) -> Iterator[Document]:
        return (d for d in corpus if (_position(d.name) < limit) == is_held_out)

    return _two_parts(corpus, rule, limit, part)


def _position(name: str) -> float:
    """A number in [0, 1) that only the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def _cut_single_document(corpus: Corpus, validation_fraction: float) -> tuple[Corpus, Corpus]:
    def part(is_held_out: bool) -> Iterator[Document]:
        for document in corpus:
            cut = int(len(document.text) * (1 - validation_fraction))
            text = document.text[cut:] if is_held_out else document.text[:cut]
            yield Document(f"{document.name}#{'end' if is_held_out else 'beginning'}", text)

    rule = f"the last {validation_fraction:g} of its only document"
    return _two_parts(corpus, rule, validation_fraction, part)


def _two_parts(
    corpus: Corpus, rule: str, share: float, part: Callable[[bool], Iterator[Document]]
) -> tuple[Corpus, Corpus]:
    def one(is_held_out: bool, description: str, share: float) -> Corpus:
        return Corpus(
            f"{corpus.description}, {description}",
            _digest([corpus.fingerprint, description]),
            lambda: part(is_held_out),
            None if corpus.num_bytes is None else round(corpus.num_bytes * share),
            corpus.origin,
        )

    return one(False, f"without {rule}", 1 - share), one(True, rule, share)


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()


# This Python's own text
def python_corpus(library: Path | None = None) -> Corpus:
    """The standard library's sources (no tests, no site-packages), then the language reference.

    About 11 MB that every Python installation carries; `library` is where it lies.

    Raises:
        ValueError: this Python has no sources, as in some embedded distributions.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    sources = sorted((path.relative_to(library).as_posix(), path) for path in _python_sources(library))
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    if not sources:
        raise ValueError(f"This Python carries no library sources in {library}: give a corpus with --text.")

    def read() -> Iterator[Document]:
        for name, path in sources:
            with tokenize.open(path) as source:  # follows the file's coding line
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
            name for name in subfolders if name not in PYTHON_FOLDERS_LEFT_OUT and not name.startswith("config-")
        ]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The user's files
def text_corpus(paths: Sequence[str | Path], text_column: str = "text") -> Corpus:
    """Files and folders: a document is a row of a table (one of TABLES), or another file.

    A folder gives its FOLDER_SUFFIXES files, hidden ones left out; a file that is named itself may
    have any suffix and is read as UTF-8, bit for bit (only a byte order mark goes).

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: no usable file, two documents of one name, or (while reading) a file that is not
            UTF-8, a broken line, or a missing column; the message names the place.
    """
    files = {name: path for path, name in _files(paths).items()}

    def read() -> Iterator[Document]:
        for name, path in sorted(files.items()):
            if path.suffix in TABLES:
                yield from _table_documents(name, path, text_column)
            else:
                yield Document(name, "".join(utf8_lines(path)))

    contents = ((name, _file_sha256(path)) for name, path in sorted(files.items()))
    names = ", ".join(sorted(Path(path).name for path in paths))
    return Corpus(
        names if len(files) == len(paths) else f"{len(files)} files of {names}",
        _digest([text_column, *itertools.chain(*contents)]),
        read,
        sum(path.stat().st_size for path in files.values()),
    )


def _files(paths: Sequence[str | Path]) -> dict[Path, str]:
    """Document name of every file: relative to the folder's parent, or the file's own name."""
    found: dict[Path, str] = {}
    names: dict[str, Path] = {}
    for root in map(Path, paths):
        for path in _files_below(root):
            name = f"{root.resolve().name}/{path.relative_to(root).as_posix()}".removesuffix("/.")
            if other := names.get(name):
                raise ValueError(
                    f"Two documents would be called {name!r}: {other} and {path}. "
                    "Give each path once, or the folder above them."
                )
            names[name] = path
            found[path.resolve()] = name
    return found


def _files_below(root: Path) -> list[Path]:
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist: --text takes files and folders of text.")
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
            f"{root} holds no {', '.join(FOLDER_SUFFIXES)} file: name files with other suffixes one by one."
        )
    return files


def _table_documents(name: str, path: Path, text_column: str) -> Iterator[Document]:
    for place, row in read_rows(path, [text_column]):
        yield Document(f"{name}:{place}", _checked_cell(row[text_column], f"{path}:{place}", text_column))


def _checked_cell(text: Any, where: str, text_column: str) -> str:
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: column {text_column!r} holds {text!r:.40}, a {type(text).__name__}. "
            "Name the column that holds the text with --text_column."
        )
    return text


# Datasets
def dataset_corpus(settings: CorpusArguments) -> Corpus:
    """A dataset of the Hugging Face Hub, or a folder that `Dataset.save_to_disk` has written.

    Raises:
        ValueError: no such column, split or configuration.
        OSError: no such dataset, or no network.
    """
    name, split, column = settings.dataset_name or "", settings.dataset_split, settings.text_column
    rows = load_split(name, settings.dataset_config_name, split, settings.streaming)
    columns = rows.column_names or list(next(iter(rows), {}))  # a stream may not know them before
    if column not in columns:
        raise missing_column(f"dataset {settings.dataset_name} ({split})", column, columns)
    rows = rows.select_columns(column)

    def read() -> Iterator[Document]:
        for number, row in enumerate(rows):
            place = f"{Path(name).name}/{split}:{number}"
            yield Document(place, _checked_cell(row[column], place, column))

    description = f"dataset {Path(name).name} {settings.dataset_config_name or ''} ({split})"
    identity = [name, str(settings.dataset_config_name), split, column, str(rows.info.version)]
    if isinstance(rows, datasets.Dataset):
        identity.append(rows._fingerprint)
    is_local = Path(name).exists()
    origin = {} if is_local else {"dataset": name, "config": settings.dataset_config_name, "split": split}
    return Corpus(" ".join(description.split()), _digest(identity), read, origin=origin)
