"""Documents from text files, tables, datasets or Python itself, and their division into training and validation.

A corpus is read again for each pass and never kept in memory. The order of its documents is fixed.
"""

import hashlib
import importlib
import itertools
import os
import platform
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets

from ..settings.corpus import CorpusArguments
from ..settings.near_paths import check_exists
from ..settings.reading import DEFAULT_READING, Reading, is_gzip
from ..settings.words import counted
from .folders import files_of
from .gutenberg import has_gutenberg_header, without_gutenberg
from .passages import held_out_passages
from .tables import is_table, load_split, place_of, read_rows, with_line_feeds
from .text_files import check_name, read_text

GZIP_RATIO = 3  # of the size of text to that of its .gz file, about
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
    reading = settings.reading
    if settings.text:
        corpus = text_corpus(settings.text, settings.text_column, reading)
    elif settings.dataset_name:
        corpus = dataset_corpus(settings)
    else:
        corpus = python_corpus()
    if not settings.validation_text:
        return split_corpus(corpus, settings.validation_fraction, settings.validation_part)
    validation = text_corpus(settings.validation_text, settings.text_column, reading, "--validation_text")
    shared = _given_files(settings.text, reading).keys() & _given_files(settings.validation_text, reading).keys()
    if shared:
        raise ValueError(
            f"{min(shared)} is in --text and in --validation_text: the validation loss would be measured on "
            "training text. Remove it from one of them."
        )
    return corpus, validation


def given_text(settings: CorpusArguments) -> Corpus:
    """All of --text, read with the other settings."""
    return text_corpus(settings.text, settings.text_column, settings.reading)


# Text files and tables
def text_corpus(
    paths: Sequence[str | Path], text_column: str = "text", reading: Reading = DEFAULT_READING, option: str = "--text"
) -> Corpus:
    """The documents of files and folders: each row of a table, and each other file.

    In a folder, all visible files with the suffixes of `reading` are read; a note on stderr counts the others. A file
    that is given by name may have any suffix.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: no usable file, two documents with the same name, or (while reading) a file that `read_rows` or
            `read_text` refuses.
    """
    files = {name: path for path, name in _given_files(paths, reading, option, is_noted=True).items()}
    books = _books_to_strip([path for path in files.values() if not is_table(path)], reading)

    def read() -> Iterator[Document]:
        for name, path in sorted(files.items()):
            if is_table(path):
                for number, row in read_rows(path, [text_column], reading=reading):
                    yield Document(f"{name}:{number}", _text_of(row, text_column, path, number))
            else:
                text = read_text(path, reading)
                yield Document(name, without_gutenberg(text) if path in books else text)

    contents = ((name, _file_sha256(path)) for name, path in sorted(files.items()))
    names = ", ".join(sorted(Path(path).name for path in paths))
    return Corpus(
        names if len(files) == len(paths) else f"{len(files)} files of {names}",
        _digest([text_column, *_ways_to_read(reading), *itertools.chain(*contents)]),
        read,
        sum(path.stat().st_size * (GZIP_RATIO if is_gzip(path) else 1) for path in files.values()),
    )


def _ways_to_read(reading: Reading) -> list[str]:
    """Everything in `reading` that changes the text of a file."""
    line_ends = "CR LF" if reading.keep_crlf else "LF"
    return [reading.encoding, line_ends, *reading.columns, *(["strip_gutenberg"] if reading.strip_gutenberg else [])]


def _given_files(
    paths: Sequence[str | Path], reading: Reading, option: str = "--text", *, is_noted: bool = False
) -> dict[Path, str]:
    """The name of each file: relative to the parent of its folder, or the file's own name."""
    found: dict[Path, str] = {}
    names: dict[str, Path] = {}
    for root in map(Path, paths):
        for path in _text_files(root, reading, option, is_noted):
            name = f"{root.resolve().name}/{path.relative_to(root).as_posix()}".removesuffix("/.")
            if other := names.get(name):
                raise ValueError(
                    f"Two documents would have the name {name!r}: {other} and {path}. "
                    "Give each path once, or the folder that contains both."
                )
            names[name] = path
            found[path.resolve()] = name
    return found


def _text_files(root: Path, reading: Reading, option: str, is_noted: bool) -> list[Path]:
    check_name(root)
    check_exists(option, root)
    if not root.is_dir():
        if root.stat().st_size == 0:
            raise ValueError(f"{option} {root} is empty (0 bytes): there is nothing to learn from.")
        return [root]
    found = files_of(root, reading.suffixes)
    if not found.files:
        raise ValueError(
            f"{option} {root} contains no {', '.join(reading.suffixes)} file: name others with --suffixes, or give "
            f"them one by one ({found.note.rstrip('.')})."
        )
    if is_noted and found.note:
        print(f"note: {option} {root}: {found.note}", file=sys.stderr)
    return found.files


def _books_to_strip(paths: Sequence[Path], reading: Reading) -> set[Path]:
    """The books of Project Gutenberg whose license is to be removed. A note says where it is not, or that none is."""
    books = [path for path in paths if has_gutenberg_header(path, reading.encoding)]
    if reading.strip_gutenberg:
        if not books:
            print("note: no text file has the header of Project Gutenberg, so none is removed.", file=sys.stderr)
        return set(books)
    if books:
        which = books[0].name if len(books) == 1 else f"{len(books)} files, the first {books[0].name},"
        print(
            f"note: the header and license of Project Gutenberg in {which} will be read like the rest of the text: "
            "--strip_gutenberg true removes them.",
            file=sys.stderr,
        )
    return set()


def _text_of(row: Mapping[str, Any], text_column: str, path: Path, number: int) -> str:
    text = row[text_column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(
            f"{place_of(path, number)}: column {text_column!r} has the value {text!r:.40} of type "
            f"{type(text).__name__}, not a string. Name the column that contains the text with --text_column."
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
    place = Path(f"{Path(name).name}/{split}")

    def read() -> Iterator[Document]:
        for number, row in enumerate(rows):
            text = _text_of(row, column, place, number)
            yield Document(f"{place}:{number}", text if settings.keep_crlf else with_line_feeds(text))

    description = f"dataset {Path(name).name} {settings.dataset_config_name or ''} ({split})"
    identity = [name, str(settings.dataset_config_name), split, column, str(rows.info.version)]
    identity += _ways_to_read(settings.reading)
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
def split_corpus(
    corpus: Corpus, validation_fraction: float, part: Literal["passages", "end"] = "passages"
) -> tuple[Corpus, Corpus]:
    """Hold out the documents whose name has a hash below `validation_fraction`.

    So a document is in the same part on every machine, also when documents are added or removed. If that leaves a
    part empty (few documents), the document with the smallest hash is held out. Of a single document, `part` is held
    out: passages that are spread over it, or its end, cut at the same character as in nanoGPT.

    Raises:
        ValueError: the corpus has no documents, or several of which no end can be held out.
    """
    hashes = [_hash_of(document.name) for document in itertools.islice(corpus, SPLIT_PROBE)]
    if not hashes:
        raise ValueError(f"The corpus ({corpus.description}) is empty: it has no text.")
    if len(hashes) == 1:
        return _split_single_document(corpus, validation_fraction, part)
    if part == "end":
        raise ValueError(
            f"--validation_part end is for a single document, but the corpus ({corpus.description}) has several: "
            "remove it."
        )
    limit, rule = validation_fraction, f"{100 * validation_fraction:.4g} % of the documents (held out by hash)"
    if not min(hashes) < limit <= max(hashes):
        limit, rule = sorted(hashes)[1], "the document with the smallest hash"

    def read_part(is_held_out: bool) -> Iterator[Document]:
        return (document for document in corpus if (_hash_of(document.name) < limit) == is_held_out)

    return _two_parts(corpus, rule, limit, read_part)


def _hash_of(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def _split_single_document(
    corpus: Corpus, validation_fraction: float, part: Literal["passages", "end"]
) -> tuple[Corpus, Corpus]:
    """Each stretch between two cuts becomes a document, so that no text continues where something is left out."""

    def cuts_of(text: str) -> list[int]:
        """Where training and held-out text alternate, beginning with training text."""
        if part == "end":
            return [int(len(text) * (1 - validation_fraction))]
        return [*itertools.chain(*held_out_passages(text, validation_fraction))]

    def read_part(is_held_out: bool) -> Iterator[Document]:
        for document in corpus:
            edges = [0, *cuts_of(document.text), len(document.text)]
            for first, last in [*itertools.pairwise(edges)][is_held_out::2]:
                yield Document(f"{document.name}#{first}", document.text[first:last])

    percent = f"{100 * validation_fraction:.4g} % of its only document"
    rule = f"the last {percent}" if part == "end" else f"{percent}, in {_count_passages(corpus, cuts_of)}"
    return _two_parts(corpus, rule, validation_fraction, read_part)


def _count_passages(corpus: Corpus, cuts_of: Callable[[str], list[int]]) -> str:
    (document,) = corpus
    return counted(len(cuts_of(document.text)) // 2, "passage")


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
