"""Which package of the standard library does this function come from: a data set that every Python carries.

python -m examples.package_classifier.make_data

A row is one function or method of 3 to 30 lines and the top-level package that it was taken from. Left out are:
functions that name their package (`logging` in a function of `logging`), since the answer would stand in the question;
copies; and functions that two packages share. A file lies on one side only, so that no class is seen in training with
one method and in the test with the next. Which packages are labels follows from rules, so another version of Python
may have others. The quickstart trains on the same sources, so its model has read most of these functions, the test's
too, but never where they come from.
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

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
LEAST_ROWS = {"train": 40, "validation": 5, "test": 10}  # per label
MOST_LABELS = 16  # those with the most rows
MOST_ROWS = 300  # per label: the largest has then about four times the rows of the smallest
MOST_ROWS_OF_FILE = 60  # else tkinter would be one file
LINES = range(3, 31)
LEFT_OUT = {"encodings"}  # a hundred files that differ in a table and repeat the same functions


@dataclass(frozen=True)
class Snippet:
    """One function, with the package and the file that it comes from."""

    label: str
    file: str
    text: str


@dataclass
class PackageArguments:
    """Where the functions come from and where the tables go."""

    output_dir: str = option("Folder for train.csv, validation.csv and test.csv.", "runs/package_classifier/data")
    library: str | None = option("Folder of a standard library; without it that of this Python.")

    def __post_init__(self) -> None:
        if self.library is not None and not any(Path(self.library).rglob("*.py")):
            raise ValueError(f"--library {self.library} is no folder with .py files: name one of a standard library.")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the three tables and print how many rows each label has."""
    (arguments,) = parse_recipe([PackageArguments], argv, description=__doc__ or "")
    library = Path(arguments.library) if arguments.library else None
    sides = split_by_file(limit_rows(without_copies(python_snippets(library))))
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for side, snippets in sides.items():
        write_table(folder / f"{side}.csv", snippets)
    print(table_of_counts(sides))
    print(f"Written to {folder}: " + ", ".join(f"{side}.csv" for side in sides))


def python_snippets(library: Path | None = None) -> Iterator[Snippet]:
    """Functions and methods of all packages (a file that is no part of one cannot be split by file)."""
    for document in python_corpus(library):
        label = document.name.partition("/")[0]
        if document.name.endswith(".py") and label not in {document.name, *LEFT_OUT}:
            for text in functions_of(document.text, document.name):
                if not names_package(text, label):
                    yield Snippet(label, document.name, text)


def functions_of(source: str, name: str) -> Iterator[str]:
    """The text of each function with as many lines as LINES allows, decorators included, not indented.

    Functions within functions are part of the outer one and not given again.

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
    """Functions of modules and classes, also below an `if` or `try`, in the order of the file."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif not isinstance(child, ast.expr):
            yield from outer_functions(child)


def names_package(text: str, label: str) -> bool:
    """Whether the package's name stands in the text, in capitals and between underscores too."""
    return re.search(rf"(?<![a-z0-9]){re.escape(label)}(?![a-z0-9])", text.lower()) is not None


def without_copies(snippets: Iterator[Snippet]) -> list[Snippet]:
    """Each text once, and none that stands in two packages."""
    found: dict[str, Snippet] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for snippet in snippets:
        found.setdefault(snippet.text, snippet)
        labels[snippet.text].add(snippet.label)
    return [snippet for text, snippet in found.items() if len(labels[text]) == 1]


def limit_rows(snippets: list[Snippet]) -> dict[str, list[Snippet]]:
    """The rows of each label, at most MOST_ROWS, and of each file, at most MOST_ROWS_OF_FILE; by hash."""
    ordered = sorted(snippets, key=lambda snippet: digest(snippet.text))
    in_file: Counter[str] = Counter()
    in_label: dict[str, list[Snippet]] = defaultdict(list)
    for snippet in ordered:
        if in_file[snippet.file] < MOST_ROWS_OF_FILE and len(in_label[snippet.label]) < MOST_ROWS:
            in_file[snippet.file] += 1
            in_label[snippet.label].append(snippet)
    return in_label


def split_by_file(in_label: dict[str, list[Snippet]]) -> dict[str, list[Snippet]]:
    """The rows of train, validation and test: the labels with the most rows that have LEAST_ROWS on each side.

    Raises:
        ValueError: fewer than two labels are left.
    """
    parts = {label: split_label(snippets) for label, snippets in in_label.items()}
    filled = [
        label for label, part in parts.items() if all(len(part[side]) >= least for side, least in LEAST_ROWS.items())
    ]
    labels = sorted(filled, key=lambda label: (-len(in_label[label]), label))[:MOST_LABELS]
    if len(labels) < 2:
        raise ValueError(
            f"The library has {len(labels)} packages ({', '.join(labels) or 'none'}) with at least "
            f"{sum(LEAST_ROWS.values())} functions in three files or more; a classifier needs two. "
            "Leave --library out to take that of this Python."
        )
    return {side: [snippet for label in sorted(labels) for snippet in parts[label][side]] for side in SHARES}


def split_label(snippets: list[Snippet]) -> dict[str, list[Snippet]]:
    """Whole files, the largest first, each to the side that lacks the most rows; hashes decide between equal ones."""
    in_file: dict[str, list[Snippet]] = defaultdict(list)
    for snippet in snippets:
        in_file[snippet.file].append(snippet)
    parts: dict[str, list[Snippet]] = {side: [] for side in SHARES}
    for file in sorted(in_file, key=lambda file: (-len(in_file[file]), digest(file))):
        side = max(SHARES, key=lambda side: SHARES[side] * len(snippets) - len(parts[side]))
        parts[side] += in_file[file]
    return parts


def digest(text: str) -> str:
    """The SHA-256 of a text; sorting by it is the same random order on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_table(path: Path, snippets: list[Snippet]) -> None:
    """Writes columns `text` and `label`, in the order of the hash, so that labels are mixed."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        ordered = sorted(snippets, key=lambda snippet: digest(snippet.text))
        writer.writerows((snippet.text, snippet.label) for snippet in ordered)


def table_of_counts(sides: dict[str, list[Snippet]]) -> str:
    """Rows per label and side, as a table for the terminal."""
    counts = {side: Counter(snippet.label for snippet in snippets) for side, snippets in sides.items()}
    rows = [(label, [count[label] for count in counts.values()]) for label in sorted(counts["train"])]
    rows.append(("all", [count.total() for count in counts.values()]))
    lines = ["".join([f"{'label':<18}", *(f"{side:>12}" for side in sides)])]
    lines += ["".join([f"{label:<18}", *(f"{number:>12}" for number in numbers)]) for label, numbers in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
