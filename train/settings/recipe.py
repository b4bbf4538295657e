"""Read the settings of a command from YAML recipes and the command line.

A recipe is a list of arguments in a YAML file: each entry becomes `--name=value` in front of the real command line.
So argparse checks types, choices and unknown names in one place, `--help` lists them, and the command line wins.
Each option is described once, in the help of its dataclass field.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from .renamed import RENAMED, RENAMED_VALUES

PATH = "PATH"  # the placeholder of a path in `--help`, which also marks the field


def option(help: str, default: Any = None, *, is_path: bool = False) -> Any:
    """A dataclass field with its `--help` text. In a path, `~` stands for the home folder."""
    return field(default=default, metadata=_metadata(help, is_path))


def required(help: str, *, is_path: bool = False) -> Any:
    """A dataclass field that a recipe or the command line must set."""
    return field(metadata=_metadata(help, is_path))


def option_list(help: str, *, is_path: bool = False) -> Any:
    """A dataclass field that takes several values; empty by default."""
    return field(default_factory=list, metadata=_metadata(help, is_path))


def _metadata(help: str, is_path: bool) -> dict[str, str]:
    """Keyword arguments of `add_argument`."""
    return {"help": help, "metavar": PATH} if is_path else {"help": help}


def parse_recipe(
    dataclasses: Sequence[Any], argv: Sequence[str] | None = None, *, description: str = ""
) -> tuple[Any, ...]:
    """Read `[recipe.yaml ...] [--name value ...]` into one instance per dataclass; later values win.

    Args:
        dataclasses: the settings of the command, such as `(ModelArguments, TrainArguments)`.
        argv: the command line without the program; None: that of this process.
        description: the first paragraph of `--help`.

    Raises:
        ValueError: unknown name (with the nearest known one), wrong type, value out of range,
            settings that contradict each other.
        OSError: a recipe cannot be read.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    recipes = []
    while arguments and not arguments[0].startswith("-"):
        recipes.append(Path(arguments.pop(0)).expanduser())
    parser = _RecipeParser(
        list(dataclasses),
        usage="%(prog)s [recipe.yaml ...] [--name value ...]",
        description=description,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    known = {entry.name: entry for kind in dataclasses for entry in fields(kind)}
    for argument in arguments:  # argparse would first ask for required options
        if argument.startswith("--") and " " not in argument and _new_name(argument, known):
            raise ValueError(_unknown_name(argument, known, prefix="--"))
    from_recipes = [argument for path in recipes for argument in _recipe_arguments(path, known)]
    namespace, unknown = parser.parse_known_args([*from_recipes, *arguments])
    if unknown:
        raise ValueError(_unknown_name(unknown[0], known, prefix="--"))
    values = {
        name: _expanded(value) if known[name].metadata.get("metavar") == PATH else value
        for name, value in vars(namespace).items()
    }
    return parser.parse_dict(values)


def recipe_text(*arguments: Any) -> str:
    """The YAML recipe that `parse_recipe` reads back as the same `arguments`."""
    entries = {name: value for part in arguments for name, value in asdict(part).items()}
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)


class _RecipeParser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(re.sub(r"argument (--\w+)(/\S+)?: ", r"\1: ", message))


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Appends "(default: value)" unless the value is None or empty: then the help text names the default.

    Each option is listed once, under its name in recipes; `--max-steps` works like `--max_steps`.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.const is False:  # the --no_... form of a switch
            return f"Set --{action.dest} to False."
        return action.help if action.default in (None, []) else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = action.option_strings
        action.option_strings = [name for name in names if "-" not in name[2:]]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = names


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error; plain YAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name!r} is set twice")
        return super().construct_mapping(node, deep)


def _expanded(value: Any) -> Any:
    """A path or several, with `~` replaced by the home folder."""
    if isinstance(value, list):
        return [_expanded(one) for one in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~") else value


def _recipe_arguments(path: Path, known: dict[str, Any]) -> list[str]:
    """The entries of a recipe as command-line arguments; null means "not set"."""
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{str(path)!r} is neither a recipe (*.yaml) nor an option (--name value).")
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(entries or {}, dict):
        raise ValueError(f"recipe {path} must consist of lines 'name: value', not {entries!r}.")
    arguments = []
    for name, value in (entries or {}).items():
        if name not in known:
            raise ValueError(f"recipe {path}: {_unknown_name(str(name), known)}")
        try:
            arguments += _as_arguments(name, value, known[name].type)
        except ValueError as error:
            raise ValueError(f"recipe {path}: {error}") from None
    return arguments


def _as_arguments(name: str, value: Any, kind: Any) -> list[str]:
    if value is None or value == []:
        return []
    is_list = getattr(kind, "__origin__", None) is list
    values = value if isinstance(value, list) else [value]
    for one in values:
        # yaml reads yes, no, on, off as booleans
        if isinstance(one, (dict, list)) or (isinstance(one, bool) and kind is not bool):
            raise ValueError(f"{name} does not take {one!r}; text needs quotation marks.")
    if not is_list and isinstance(value, list):
        raise ValueError(f"{name} takes one value, not the list {value!r}.")
    if len(values) == 1:
        return [f"--{name}={values[0]}"]
    for one in values:
        if str(one).startswith("-") and " " not in str(one):
            raise ValueError(f"{name}: {one!r} starts with '-' and would be read as an option.")
    return [f"--{name}", *(str(one) for one in values)]


def _unknown_name(name: str, known: Iterable[str], prefix: str = "") -> str:
    bare = _bare(name)
    if new := _new_name(name, known):
        return f"{prefix}{bare} has been renamed to {prefix}{new}{RENAMED_VALUES.get(new, '')}."
    nearest = difflib.get_close_matches(bare, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{nearest[0]}?" if nearest else "--help lists the settings."
    return f"unknown setting {name!r}: {hint}"


def _new_name(argument: str, known: Iterable[str]) -> str | None:
    """The name that replaces an old one; None for all others."""
    return next(
        (new for new in RENAMED.get(_bare(argument), ()) if new in known and _bare(argument) not in known), None
    )


def _bare(argument: str) -> str:
    """The name in `name` or `--name=value`."""
    return argument.partition("=")[0].lstrip("-").replace("-", "_")
