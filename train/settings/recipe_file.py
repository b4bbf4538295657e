"""Read a recipe: a YAML file with one `name: value` per line."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .options import UNSET, Option, shortened
from .unknown import unknown_option

MAX_BYTES = 1_000_000


class _RecipeLoader(yaml.SafeLoader):
    """YAML in which a key given twice and an alias are errors.

    Plain YAML silently keeps the last of several values. Aliases of aliases can stand for more values than fit into
    memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"it has an alias (*{self.peek_event().anchor}), which recipes do not support")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError("a name must be a word")
            if key.value in names:
                raise yaml.YAMLError(f"{key.value!r} is set twice")
            names.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """The value of a YAML text without aliases and without names set twice.

    Raises:
        yaml.YAMLError: what is wrong with the text.
    """
    try:
        return yaml.load(text, Loader=_RecipeLoader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def read_entries(path: Path) -> dict[str, Any]:
    """The entries of a recipe as YAML has them.

    Raises:
        ValueError: no such file, too large, or not lines of `name: value`.
        OSError: it cannot be read.
    """
    if not path.exists():
        others = [str(other) for other in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(str(path), others, n=1)
        raise ValueError(f"recipe {path} does not exist" + (f": did you mean {nearest[0]}?" if nearest else "."))
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"recipe {path} has {path.stat().st_size:,} bytes: a recipe is a list of settings, at most {MAX_BYTES:,}."
        )
    try:
        entries = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from None
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise ValueError(f"recipe {path} must consist of lines 'name: value', not {shortened(entries)}.")
    return {str(name): value for name, value in entries.items()}


def read_recipe(path: Path, options: Mapping[str, Option]) -> dict[str, Any]:
    """The entries of a recipe as values of options; null and empty lists stand for UNSET.

    Raises:
        ValueError: an unknown name or a wrong value, or as in `read_entries`.
        OSError: it cannot be read.
    """
    values = {}
    for name, value in read_entries(path).items():
        if name not in options:
            raise ValueError(f"recipe {path}: {unknown_option(name, options)}")
        try:
            values[name] = _value(options[name], value)
        except ValueError as error:
            raise ValueError(f"recipe {path}: {name} {error}.") from None
    return values


def _value(option: Option, value: Any) -> Any:
    if value is None or value == []:
        return UNSET
    if isinstance(value, list) and not option.is_list:
        raise ValueError(f"takes one value, not {shortened(value)}")
    values = [_one(option, one) for one in (value if isinstance(value, list) else [value])]
    return values if option.is_list else values[0]


def _one(option: Option, value: Any) -> Any:
    if isinstance(value, (dict, list)) or value is None:
        raise ValueError(f"does not take {shortened(value)}")
    if (
        isinstance(value, bool) and option.kind is not bool and "true" not in option.choices
    ):  # YAML reads yes, no, on, off as booleans
        raise ValueError(f"does not take {value}; text needs quotation marks")
    return option.convert(str(value))
