"""Read the settings of a command from YAML recipes and the command line.

A recipe contains options in a file, one `name: value` per line. Each option is described once, in the help of its
dataclass field, and converted by one function, wherever its value comes from. Later recipes win over earlier ones, and
the command line over all of them.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

import yaml

from .command_line import CommandLineParser
from .options import GIVEN_OPTIONS, PATH, UNSET, options_of
from .recipe_file import read_recipe


def option(help: str, default: Any = None, *, is_path: bool = False) -> Any:
    """A dataclass field with its `--help` text. In a path, `~` stands for the home folder."""
    return field(default=default, metadata=_metadata(help, is_path))


def required(help: str, *, is_path: bool = False, unless: tuple[str, ...] = ()) -> Any:
    """A dataclass field that a recipe or the command line must set.

    Args:
        unless: other options, one of which can be given instead; then the field is None by default.
    """
    metadata = _metadata(help, is_path) | {"required": True, "instead": unless}
    return field(default=None, metadata=metadata) if unless else field(metadata=metadata)


def required_list(help: str, *, is_path: bool = False, unless: tuple[str, ...] = ()) -> Any:
    """A dataclass field that takes several values, at least one; `unless` as in `required`."""
    metadata = _metadata(help, is_path) | {"required": True, "instead": unless}
    return field(default_factory=list, metadata=metadata)


def option_list(help: str, *, is_path: bool = False) -> Any:
    """A dataclass field that takes several values; empty by default."""
    return field(default_factory=list, metadata=_metadata(help, is_path))


def _metadata(help: str, is_path: bool) -> dict[str, Any]:
    return {"help": help, "metavar": PATH} if is_path else {"help": help}


def parse_recipe(
    dataclasses: Sequence[Any], argv: Sequence[str] | None = None, *, description: str = ""
) -> tuple[Any, ...]:
    """Read `[recipe.yaml ...] [--name value ...]` into one instance per dataclass; later values win.

    `--name null` on the command line means "not set", as `name: null` does in a recipe.

    Args:
        dataclasses: the settings of the command, such as `(ModelArguments, TrainArguments)`.
        argv: the command line without the program; None: that of this process.
        description: the docstring of the command: the beginning of `--help`, and the examples at its end.

    Raises:
        ValueError: unknown name (with the nearest known one), wrong type, value out of range,
            settings that contradict each other.
        OSError: a recipe cannot be read.
    """
    options = options_of(dataclasses)
    parser = CommandLineParser(options, description)
    recipes, given = parser.parse(list(sys.argv[1:] if argv is None else argv))
    values: dict[str, Any] = {}
    for path in recipes:
        values |= read_recipe(Path(path).expanduser(), options)
    values |= given
    values = {name: value for name, value in values.items() if value is not UNSET}
    if missing := [option for option in options.values() if option.is_missing(values)]:
        raise ValueError(parser.missing_text(missing))
    GIVEN_OPTIONS.set(values)
    return tuple(_instance(kind, values) for kind in dataclasses)


def _instance(kind: Any, values: Mapping[str, Any]) -> Any:
    return kind(**{name: values[name] for name in options_of([kind]) if name in values})


def recipe_text(*arguments: Any) -> str:
    """The YAML recipe that `parse_recipe` reads back as the same `arguments`."""
    entries = {name: value for part in arguments for name, value in asdict(part).items()}
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
