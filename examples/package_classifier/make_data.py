"""Make a dataset of Python functions, labelled with the package of the standard library that they come from.

    python -m examples.package_classifier.make_data

A row is a function or method of 3 to 30 lines and its top-level package. Skipped are duplicates, functions that two
packages share, and functions that name their package (`logging` in a function of `logging`). All functions of a file
are in the same split, so that methods of one class are never in both training and test. Rules select the packages, so
another version of Python may have other labels. The quickstart trains on the same files: its model has read most of
these functions, including the test's, but not where they come from.
"""

import ast
import csv
import hashlib
import re
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.data.corpora import python_corpus
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}
MIN_ROWS = {"train": 40, "validation": 5, "test": 10}  # per label
MAX_LABELS = 16  # those with the most rows
MAX_ROWS = 300  # per label: the largest then has about four times the rows of the smallest
MAX_ROWS_PER_FILE = 60  # otherwise one file would be most of tkinter
LINES = range(3, 31)
SKIPPED = {"encodings"}  # a hundred files with the same functions and different tables


@dataclass(frozen=True)
class Snippet:
    """A function, with its package and file."""

    label: str
    file: str
    text: str


@dataclass
class PackageArguments:
    """The library to read, and the folder for the tables."""

    output_dir: str = option(
        "Folder for train.csv, validation.csv and test.csv.", "runs/package_classifier/data", is_path=True
    )
    library: str | None = option("Folder of a standard library (default: that of this Python).", is_path=True)

    def __post_init__(self) -> None:
        if self.library is not None and not any(Path(self.library).rglob("*.py")):
            raise ValueError(f"--library {self.library} contains no .py files: name the folder of a standard library.")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the three tables and print how many rows each label has."""
    (arguments,) = parse_recipe([PackageArguments], argv, description=__doc__ or "")
    library = Path(arguments.library) if arguments.library else None
    splits = split_by_file(limit_rows(without_copies(python_snippets(library))))
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for split, snippets in splits.items():
        write_table(folder / f"{split}.csv", snippets)
    print(table_of_counts(splits))
    print(f"Saved to {folder}: " + ", ".join(f"{split}.csv" for split in splits))


def python_snippets(library: Path | None = None) -> Iterator[Snippet]:
    """Functions and methods of all packages; modules outside of packages have one file, which cannot be split."""
    for document in python_corpus(library):
        label = document.name.partition("/")[0]
        if document.name.endswith(".py") and label not in {document.name, *SKIPPED}:
            for text in functions_of(document.text, document.name):
                if not names_package(text, label):
                    yield Snippet(label, document.name, text)


def functions_of(source: str, name: str) -> Iterator[str]:
    """The source of each function with a number of lines in LINES, with its decorators and without indentation.

    A function inside a function is part of the outer one only.

    Raises:
        ValueError: `source`, the content of file `name`, is not Python.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{name}:{error.lineno} is not Python {sys.version_info.major}: {error.msg}.") from None
    lines = source.split("\n")  # splitlines() would also split at a form feed
    for function in outer_functions(tree):
        first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        text = textwrap.dedent("\n".join(lines[first - 1 : function.end_lineno])).strip()
        if text.count("\n") + 1 in LINES:
            yield text


def outer_functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of modules and classes, also inside `if` and `try`, in the order of the file."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif not isinstance(child, ast.expr):
            yield from outer_functions(child)


def names_package(text: str, label: str) -> bool:
    """Whether the text contains the package's name, in any case, also between underscores."""
    return re.search(rf"(?<![a-z0-9]){re.escape(label)}(?![a-z0-9])", text.lower()) is not None


def without_copies(snippets: Iterator[Snippet]) -> list[Snippet]:
    """Each text once; texts that occur in two packages are dropped."""
    found: dict[str, Snippet] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for snippet in snippets:
        found.setdefault(snippet.text, snippet)
        labels[snippet.text].add(snippet.label)
    return [snippet for text, snippet in found.items() if len(labels[text]) == 1]


def limit_rows(snippets: list[Snippet]) -> dict[str, list[Snippet]]:
    """At most MAX_ROWS of each label and MAX_ROWS_PER_FILE of each file: those with the smallest hashes."""
    ordered = sorted(snippets, key=lambda snippet: digest(snippet.text))
    in_file: Counter[str] = Counter()
    in_label: dict[str, list[Snippet]] = defaultdict(list)
    for snippet in ordered:
        if in_file[snippet.file] < MAX_ROWS_PER_FILE and len(in_label[snippet.label]) < MAX_ROWS:
            in_file[snippet.file] += 1
            in_label[snippet.label].append(snippet)
    return in_label


def split_by_file(in_label: dict[str, list[Snippet]]) -> dict[str, list[Snippet]]:
    """The rows of train, validation and test, for the largest labels that have MIN_ROWS in each split.

    Raises:
        ValueError: fewer than two labels remain.
    """
    parts = {label: split_label(snippets) for label, snippets in in_label.items()}
    filled = [
        label for label, part in parts.items() if all(len(part[split]) >= least for split, least in MIN_ROWS.items())
    ]
    labels = sorted(filled, key=lambda label: (-len(in_label[label]), label))[:MAX_LABELS]
    if len(labels) < 2:
        raise ValueError(
            f"The library has {len(labels)} packages ({', '.join(labels) or 'none'}) with at least "
            f"{sum(MIN_ROWS.values())} functions in three files or more; a classifier needs two. "
            "Omit --library to use that of this Python."
        )
    return {split: [snippet for label in sorted(labels) for snippet in parts[label][split]] for split in FRACTIONS}


def split_label(snippets: list[Snippet]) -> dict[str, list[Snippet]]:
    """Assign whole files, the largest first (ties: by hash), each to the split that lacks the most rows."""
    in_file: dict[str, list[Snippet]] = defaultdict(list)
    for snippet in snippets:
        in_file[snippet.file].append(snippet)
    parts: dict[str, list[Snippet]] = {split: [] for split in FRACTIONS}
    for file in sorted(in_file, key=lambda file: (-len(in_file[file]), digest(file))):
        split = max(FRACTIONS, key=lambda split: FRACTIONS[split] * len(snippets) - len(parts[split]))
        parts[split] += in_file[file]
    return parts


def digest(text: str) -> str:
    """The SHA-256 of a text: sorting by it gives the same random order on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_table(path: Path, snippets: list[Snippet]) -> None:
    """Write the columns `text` and `label`, ordered by hash so that labels are mixed."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        ordered = sorted(snippets, key=lambda snippet: digest(snippet.text))
        writer.writerows((snippet.text, snippet.label) for snippet in ordered)


def table_of_counts(splits: dict[str, list[Snippet]]) -> str:
    """The number of rows per label and split, as a table for the terminal."""
    counts = {split: Counter(snippet.label for snippet in snippets) for split, snippets in splits.items()}
    rows = [(label, [count[label] for count in counts.values()]) for label in sorted(counts["train"])]
    rows.append(("all", [count.total() for count in counts.values()]))
    lines = ["".join([f"{'label':<18}", *(f"{split:>12}" for split in splits)])]
    lines += ["".join([f"{label:<18}", *(f"{number:>12}" for number in numbers)]) for label, numbers in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
