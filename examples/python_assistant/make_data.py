"""Make conversations about Python's standard library, with answers from its docstrings and signatures.

    python -m examples.python_assistant.make_data

Each public class, function, method and property with a prose docstring gives two conversations: one about what it does,
one about its parameters or name. Some have a second question. Source files are read, never imported. Each package is in
one split only, and so is each description. The quickstart trains on the same files: its model has read most of these
docstrings, but no questions.
"""

import ast
import hashlib
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.data.corpora import Document, python_corpus
from train.data.plain_text import Message
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

VALIDATION_FRACTION = 0.1  # of the objects
LARGEST_FRACTION = 0.02  # larger packages are for training, so that validation covers many packages
# characters; with the template about 200 tokens, of the 256 that the quickstart's model reads
MAX_CONVERSATION = 600
MAX_SUMMARY = 280
MAX_SIGNATURE = 200
MIN_WORDS = 3  # of a summary
SKIPPED = {"idlelib", "turtledemo"}  # programs, not libraries
NOT_PROSE = (">>>", "->", "::", "|", " [", "@param", "...", "TODO", "XXX", "DEPRECATED")

DESCRIBE = {
    "class": ("What is `{name}`?", "What is the class `{name}` for?", "Describe the class `{name}`."),
    "function": ("What does `{name}` do?", "What is `{name}` for?", "Explain `{name}`.", "Describe `{name}` for me."),
    "property": ("What is `{name}`?", "What does the property `{name}` hold?"),
}
DESCRIBE["method"] = DESCRIBE["function"]
DESCRIBE_IT = ("And what does it do?", "What is it for?", "What does that do?")
PARAMETERS = (
    "What are the parameters of `{name}`?",
    "Which arguments does `{name}` take?",
    "What is the signature of `{name}`?",
    "How is `{name}` called?",
)
ITS_PARAMETERS = ("And its parameters?", "Which arguments does it take?", "What is its signature?", "How is it called?")
WHICH = (
    "Which {kind} of `{owner}` has this description? {summary}",
    "Name the {kind} of `{owner}` that fits: {summary}",
    "I look for a {kind} of `{owner}`. {summary}",
)


@dataclass(frozen=True)
class Entry:
    """The documentation of an object of the library."""

    module: str
    name: str  # with module and class, as in `textwrap.TextWrapper.wrap`
    kind: str  # a key of DESCRIBE
    summary: str
    signature: str | None  # such as `textwrap.wrap(text, width=70)`; None if not callable or unknown

    @property
    def package(self) -> str:
        """The top-level package: `email` for all of `email.mime`."""
        return self.module.partition(".")[0]

    @property
    def owner(self) -> str:
        """The class of a member, else the module."""
        return self.name.rpartition(".")[0]


@dataclass
class AssistantArguments:
    """The library to read, and the folder for the conversations."""

    output_dir: str = option("Folder for train.jsonl and validation.jsonl.", "runs/python_assistant/data", is_path=True)
    library: str | None = option("Folder of a standard library (default: that of this Python).", is_path=True)

    def __post_init__(self) -> None:
        if self.library is not None and not any(Path(self.library).rglob("*.py")):
            raise ValueError(f"--library {self.library} contains no .py files: name the folder of a standard library.")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the conversations of both splits, and print their number and three of them."""
    (arguments,) = parse_recipe([AssistantArguments], argv, description=__doc__ or "")
    library = Path(arguments.library) if arguments.library else None
    splits = split_by_package(without_copies(entries(python_corpus(library))))
    rows = {split: mixed(row for entry in found for row in conversations(entry)) for split, found in splits.items()}
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for split, found in splits.items():
        write_rows(folder / f"{split}.jsonl", rows[split])
        print(f"{split}.jsonl: {len(rows[split]):,} conversations about {counts(found)}")
    print(f"Saved to {folder}. Three conversations:\n")
    print("\n\n".join(as_text(row) for row in rows["train"][:3]))


def counts(found: list[Entry]) -> str:
    """The number of objects of each kind, and of modules."""
    kinds = Counter(entry.kind for entry in found).most_common()
    details = ", ".join(f"{kind}: {count:,}" for kind, count in kinds)
    return f"{len(found):,} objects ({details}) of {len({entry.module for entry in found})} modules"


def entries(documents: Iterable[Document]) -> Iterator[Entry]:
    """All public documented objects, in the order of the library.

    Raises:
        ValueError: a .py file is not Python.
    """
    for document in documents:
        module = document.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        parts = module.split(".")
        if not document.name.endswith(".py") or parts[0] in SKIPPED or any(part.startswith("_") for part in parts):
            continue
        try:
            tree = ast.parse(document.text)
        except SyntaxError as error:
            place = f"{document.name}:{error.lineno}"
            raise ValueError(f"{place} is not Python {sys.version_info.major}: {error.msg}.") from None
        yield from entries_of(tree, module, module)


def entries_of(parent: ast.AST, owner: str, module: str) -> Iterator[Entry]:
    """The entries inside a module, a class, or an `if` or `try` in one of them."""
    in_class = owner != module
    for node in ast.iter_child_nodes(parent):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if isinstance(node, ast.If | ast.Try):
                yield from entries_of(node, owner, module)
            continue
        name = f"{owner}.{node.name}"
        if not is_public(node.name):
            continue
        if summary := summary_of(ast.get_docstring(node) or ""):
            yield Entry(module, name, kind_of(node, in_class), summary, signature_of(node, name, in_class))
        if isinstance(node, ast.ClassDef):
            yield from entries_of(node, name, module)


def is_public(name: str) -> bool:
    """Whether `name` is meant for users of the module."""
    return not name.startswith(("_", "test_")) and name not in {"main", "test"}


def kind_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, in_class: bool) -> str:
    """The key of DESCRIBE for a definition."""
    if isinstance(node, ast.ClassDef):
        return "class"
    if any("property" in decorator or decorator.endswith(".setter") for decorator in decorators(node)):
        return "property"
    return "method" if in_class else "function"


def decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The decorators as text, such as `staticmethod`."""
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def summary_of(docstring: str) -> str | None:
    """The first paragraph of a docstring on one line, cut after a sentence to at most MAX_SUMMARY characters.

    None if it is not prose but a usage line, a list, an example, or one or two words.
    """
    paragraph = inspect.cleandoc(docstring).partition("\n\n")[0]
    if re.search(r"\n( |\t|[-*+] )", paragraph) or any(mark in paragraph for mark in NOT_PROSE):
        return None
    text = " ".join(paragraph.split())
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")  # Sphinx markup
    while len(text) > MAX_SUMMARY:
        text, end, _ = text.rpartition(". ")
        text += end.strip()
    if len(text.split()) < MIN_WORDS or not re.match(r"[A-Za-z][\w'-]* |[A-Z`'\"]", text) or text[-1] in ":,;-":
        return None
    return text if text[-1] in ".!?" else f"{text}."


def signature_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, name: str, in_class: bool) -> str | None:
    """The call of `name`, without `self` and `cls`; for a class, that of its `__init__`. None if not known."""
    if isinstance(node, ast.ClassDef):
        makers = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        return signature_of(makers[0], name, in_class=True) if makers else None
    if kind_of(node, in_class) == "property":
        return None
    parameters = ast.unparse(node.args)
    if in_class and "staticmethod" not in decorators(node):
        parameters = ast.unparse(without_first(node.args))
    text = f"{name}({parameters})"
    return text if len(text) <= MAX_SIGNATURE and text.isprintable() else None


def without_first(arguments: ast.arguments) -> ast.arguments:
    """The parameters without the first one; `*args` stays."""
    positional = ("posonlyargs", "args")
    kept = {field: value for field, value in ast.iter_fields(arguments)}
    for field in positional:
        if kept[field]:
            kept[field] = kept[field][1:]
            break
    return ast.arguments(**kept)


def without_copies(found: Iterable[Entry]) -> list[Entry]:
    """Keep the first entry of each name and each summary, so that no answer is in both splits."""
    names: set[str] = set()
    summaries: set[str] = set()
    kept = []
    for entry in found:
        if entry.name not in names and entry.summary.lower() not in summaries:
            kept.append(entry)
        names.add(entry.name)
        summaries.add(entry.summary.lower())
    return kept


def split_by_package(found: list[Entry]) -> dict[str, list[Entry]]:
    """Hold out whole packages, in the order of the hashes of their names, until VALIDATION_FRACTION is reached.

    Packages that do not fit any more, or are larger than LARGEST_FRACTION, are for training.

    Raises:
        ValueError: a split would be empty.
    """
    sizes = Counter(entry.package for entry in found)
    held_out: set[str] = set()
    room = VALIDATION_FRACTION * len(found)
    for package in sorted(sizes, key=hash_of):
        if sizes[package] <= min(room, LARGEST_FRACTION * len(found)):
            held_out.add(package)
            room -= sizes[package]
    if not held_out:
        raise ValueError(
            f"The library has {len(found)} documented objects in {len(sizes)} packages: too few to hold out a package "
            f"with at most {LARGEST_FRACTION:.0%} of the objects. Omit --library to use that of this Python."
        )
    return {
        "train": [entry for entry in found if entry.package not in held_out],
        "validation": [entry for entry in found if entry.package in held_out],
    }


def hash_of(*parts: str) -> int:
    """A number below 2**64 that depends on the text only, on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8])


def conversations(entry: Entry) -> list[list[Message]]:
    """Two conversations about the entry: its description, and its parameters or name. Long ones are skipped."""
    name, variant = f"`{entry.name}`", hash_of(entry.name) % 4
    what = (phrase(DESCRIBE[entry.kind], entry), entry.summary)
    which = (phrase(WHICH, entry), name)
    if entry.signature is None:
        rows = [[what], [which]]
    else:
        call = f"`{entry.signature}` takes no parameters." if entry.signature.endswith("()") else f"`{entry.signature}`"
        how = (phrase(PARAMETERS, entry), call)
        rows = [
            [[what], [which]],
            [[what], [how]],
            [[what, (phrase(ITS_PARAMETERS, entry), call)], [which]],
            [[how, (phrase(DESCRIBE_IT, entry), entry.summary)], [which]],
        ][variant]
    return [row for row in map(as_messages, rows) if length(row) <= MAX_CONVERSATION]


def phrase(questions: Sequence[str], entry: Entry) -> str:
    """One of the questions, chosen by the hash of the name."""
    question = questions[hash_of(entry.name, *questions) % len(questions)]
    return question.format(name=entry.name, kind=entry.kind, owner=entry.owner, summary=entry.summary)


def as_messages(turns: Iterable[tuple[str, str]]) -> list[Message]:
    """Questions and answers as messages of user and assistant."""
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def length(row: list[Message]) -> int:
    """The number of characters in all messages."""
    return sum(len(message["content"]) for message in row)


def mixed(rows: Iterable[list[Message]]) -> list[list[Message]]:
    """The rows ordered by hash, so that neighbours are about different modules."""
    return sorted(rows, key=lambda row: hash_of(as_text(row)))


def write_rows(path: Path, rows: list[list[Message]]) -> None:
    """Write a line `{"messages": [...]}` for each conversation."""
    lines = (json.dumps({"messages": row}, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def as_text(row: list[Message]) -> str:
    """A conversation for the terminal."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in row)


if __name__ == "__main__":
    sys.exit(run_command(main))
