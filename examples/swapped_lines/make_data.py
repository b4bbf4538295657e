"""Make a dataset of Python functions, half of them with two statements in the wrong order.

    python -m examples.swapped_lines.make_data

In many functions of the standard library, one statement gives a variable its first value and the next one reads it.
Each such pair makes two rows: the function as it is (label `in order`) and with the two statements exchanged (label
`swapped`), so that it reads the variable too early. Both rows contain the same lines, so only their order tells the
labels apart.

Validation and test functions come from files that `scratch-gpt quickstart` holds out with the same
--validation_fraction: its model has never read them. All rows of a file are in the same split.
"""

import ast
import csv
import hashlib
import itertools
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.data.corpora import Corpus, python_corpus, split_corpus
from train.settings.checks import check_fraction
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

MAX_CHARACTERS = 800  # of a function: less than 256 tokens
SKIPPED = "encodings/"  # a hundred files with the same functions and different tables
MIN_PAIRS = 10  # in each split
# Code in these does not run where it stands, or runs only later.
DEFERRED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.GeneratorExp)


@dataclass(frozen=True)
class Pair:
    """A function as it is, and with two of its statements exchanged."""

    file: str
    line: int  # of the first of the two statements
    original: str
    swapped: str


@dataclass
class SwappedLinesArguments:
    """The library to read, and the folder for the tables."""

    output_dir: str = option(
        "Folder for train.csv, validation.csv and test.csv.", "runs/swapped_lines/data", is_path=True
    )
    library: str | None = option("Folder of a standard library (default: that of this Python).", is_path=True)
    validation_fraction: float = option("The --validation_fraction of the quickstart.", 0.2)

    def __post_init__(self) -> None:
        check_fraction("validation_fraction", self.validation_fraction)
        if self.library is not None and not any(Path(self.library).rglob("*.py")):
            raise ValueError(f"--library {self.library} contains no .py files: name the folder of a standard library.")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the three tables and print their sizes."""
    (arguments,) = parse_recipe([SwappedLinesArguments], argv, description=__doc__ or "")
    library = Path(arguments.library) if arguments.library else None
    parts = split(*split_corpus(python_corpus(library), arguments.validation_fraction))
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{'':<12}{'rows':>8}{'functions':>12}{'files':>8}")
    for name, pairs in parts.items():
        write_table(folder / f"{name}.csv", pairs)
        functions, files = {pair.original for pair in pairs}, {pair.file for pair in pairs}
        print(f"{name:<12}{2 * len(pairs):>8,}{len(functions):>12,}{len(files):>8,}")
    print(f"Saved to {folder}: " + ", ".join(f"{name}.csv" for name in parts))


def split(read_before: Corpus, held_out: Corpus) -> dict[str, list[Pair]]:
    """The pairs of train (all of `read_before`), and of validation and test (one half of the held-out files each).

    A function that occurs in two splits stays in the first one.

    Raises:
        ValueError: a split has fewer than MIN_PAIRS pairs, or a file is not Python.
    """
    parts: dict[str, list[Pair]] = {"train": list(pairs_of(read_before)), "validation": [], "test": []}
    for pair in pairs_of(held_out):
        parts["test" if int(digest(pair.file), 16) % 2 else "validation"].append(pair)
    seen: set[str] = set()
    for name, pairs in parts.items():
        parts[name] = list(
            {(pair.original, pair.swapped): pair for pair in pairs if pair.original not in seen}.values()
        )
        seen |= {pair.original for pair in pairs}
        if len(parts[name]) < MIN_PAIRS:
            raise ValueError(
                f"The library has {len(parts[name])} pairs of statements for {name}.csv, and at least {MIN_PAIRS} are "
                "needed. Omit --library to use that of this Python."
            )
    return parts


def pairs_of(corpus: Corpus) -> Iterator[Pair]:
    """The pairs of all Python files of a corpus."""
    for document in corpus:
        if document.name.endswith(".py") and not document.name.startswith(SKIPPED):
            yield from pairs_of_source(document.text, document.name)


def pairs_of_source(source: str, name: str) -> Iterator[Pair]:
    """The pairs of each function of at most MAX_CHARACTERS, without its decorators and indentation.

    Raises:
        ValueError: `source`, the content of file `name`, is not Python.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{name}:{error.lineno} is not Python {sys.version_info.major}: {error.msg}.") from None
    lines = source.split("\n")  # splitlines() would also split at a form feed
    for function in outer_functions(tree):
        first, last = lines_of(function)
        original = textwrap.dedent("\n".join(lines[first:last]))
        if len(original) > MAX_CHARACTERS:
            continue
        for one, other in dependent_statements(function):
            (a, b), (c, d) = lines_of(one), lines_of(other)
            if stands_alone(one, lines) and stands_alone(other, lines):
                exchanged = lines[first:a] + lines[c:d] + lines[b:c] + lines[a:b] + lines[d:last]
                yield Pair(name, one.lineno, original, textwrap.dedent("\n".join(exchanged)))


def lines_of(node: ast.stmt) -> tuple[int, int]:
    """First line and end, counted from 0, as in a slice."""
    return node.lineno - 1, node.end_lineno or node.lineno


def outer_functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of modules and classes, also inside `if` and `try`, in the order of the file."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif not isinstance(child, ast.expr):
            yield from outer_functions(child)


def stands_alone(node: ast.stmt, lines: Sequence[str]) -> bool:
    """Whether nothing but a comment shares the statement's lines."""
    first, end = lines_of(node)
    before = lines[first].encode()[: node.col_offset]  # the columns of `ast` count bytes
    after = lines[end - 1].encode()[node.end_col_offset :]
    return not before.strip() and not after.partition(b"#")[0].strip()


# Which statements cannot change places
def dependent_statements(function: ast.AST) -> Iterator[tuple[ast.stmt, ast.stmt]]:
    """Adjacent statements of which the first gives a variable its first value, and the second reads it."""
    for node in ast.walk(function):
        for block in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            if isinstance(block, list):
                for one, other in itertools.pairwise(block):
                    if needs(function, one, other):
                        yield one, other


def needs(function: ast.AST, one: ast.stmt, other: ast.stmt) -> bool:
    """Whether `other` reads a variable that has no value before `one`.

    After `return x` and `raise x` nothing can stand, which would be too easy to see: they do not count.
    """
    if not isinstance(one, ast.Assign | ast.AnnAssign) or isinstance(other, ast.Return | ast.Raise):
        return False
    first_values = stored(one) - bound_before(function, one.lineno)
    return bool(first_values & loaded(other) - bound_by(other))


def stored(node: ast.AST) -> set[str]:
    """Variables that a statement sets."""
    names = (child for child in ast.walk(node) if isinstance(child, ast.Name))
    return {name.id for name in names if not isinstance(name.ctx, ast.Load)}


def loaded(node: ast.AST) -> set[str]:
    """Variables that a statement reads when it runs."""
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Load) else set()
    children = () if isinstance(node, DEFERRED) else ast.iter_child_nodes(node)
    return set().union(*map(loaded, children))


def bound_by(node: ast.stmt) -> set[str]:
    """Variables that a statement may set before it reads them: not those of `x = f(x)`."""
    if isinstance(node, ast.Assign) and not any(isinstance(child, ast.comprehension) for child in ast.walk(node)):
        return set()
    return stored(node)


def bound_before(function: ast.AST, line: int) -> set[str]:
    """Parameters, global variables, and what is set above `line`."""
    names: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            names.update(node.names)
        elif getattr(node, "lineno", line) < line:
            names |= {node.id} if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) else named_by(node)
    return names


def named_by(node: ast.AST) -> set[str]:
    """The variable that an import, a definition, `except ... as name` or a pattern of `match` sets."""
    if isinstance(node, ast.alias):
        return {(node.asname or node.name).partition(".")[0]}
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)
    return {node.name} if isinstance(node, kinds) and node.name else set()


# The tables
def digest(text: str) -> str:
    """The SHA-256 of a text: sorting by it gives the same random order on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_table(path: Path, pairs: Iterable[Pair]) -> None:
    """Write the columns `text`, `label` and `place` (two rows of a pair have the same), ordered by hash."""
    rows = []
    for pair in pairs:
        place = f"{pair.file}:{pair.line}"
        rows += [(pair.original, "in order", place), (pair.swapped, "swapped", place)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label", "place"])
        writer.writerows(sorted(rows, key=lambda row: digest(row[0])))


if __name__ == "__main__":
    sys.exit(run_command(main))
