"""Read JSON files of run and data folders: each is validated once, and every error names the file.

A shape says what a value must be:

    int, str, bool, float       that type; float takes whole numbers too, int takes no bool
    int | None                  one of several shapes
    [int]                       a list, and the shape of its items
    {"step": int, "loss?": float}   an object with these entries; `?`: may be missing; others are ignored
    {str: int}                  an object, and the shape of all its values
    Any                         anything
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args

Shape = Any
NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
NAMES |= {type(None): "null"}


class DamagedFileError(ValueError):
    """A file does not contain what it must; the message names the file and says why."""


def read_json(path: Path, shape: Shape = dict, remedy: str = "") -> Any:
    """The value in a JSON file.

    Args:
        remedy: what to do if it is damaged, as a sentence.

    Raises:
        DamagedFileError: it is not JSON of that shape.
        OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not valid JSON ({error})", remedy) from None
    if found := mismatch(value, shape):
        raise _damaged(path, found, remedy)
    return value


def mismatch(value: Any, shape: Shape, name: str = "") -> str:
    """How a value differs from a shape; empty if it does not."""
    if shape is Any:
        return ""
    if isinstance(shape, UnionType):
        found = [mismatch(value, one, name) for one in get_args(shape)]
        return "" if "" in found else f"{name}{': ' * bool(name)}expected {describe(shape)}, not {_kind(value)}"
    wanted = shape if isinstance(shape, type) else type(shape)
    is_right = isinstance(value, (int, float) if wanted is float else wanted)
    if not is_right or (isinstance(value, bool) and wanted is not bool):
        return f"{name}{': ' * bool(name)}expected {NAMES[wanted]}, not {_kind(value)}"
    if isinstance(shape, list):
        return _first(mismatch(item, shape[0], f"{name}[{i}]") for i, item in enumerate(value))
    if isinstance(shape, dict):
        return _mismatch_of_entries(value, shape, f"{name}." if name else "")
    return ""


def _mismatch_of_entries(value: dict[str, Any], shape: dict[Any, Shape], prefix: str) -> str:
    if str in shape:
        return _first(mismatch(item, shape[str], prefix + key) for key, item in value.items())
    missing = [key for key in shape if not key.endswith("?") and key not in value]
    if missing:
        return f"{prefix}{missing[0]} is missing"
    entries = {key.removesuffix("?"): inner for key, inner in shape.items()}
    return _first(mismatch(value[key], inner, prefix + key) for key, inner in entries.items() if key in value)


def _first(found: Iterator[str]) -> str:
    return next(filter(None, found), "")


def describe(shape: Shape) -> str:
    """A shape as words."""
    if isinstance(shape, UnionType):
        return " or ".join(map(describe, get_args(shape)))
    return NAMES[shape if isinstance(shape, type) else type(shape)]


def _kind(value: Any) -> str:
    shown = "" if isinstance(value, dict | list) or value is None else f" ({value!r:.40})"
    return NAMES[type(value)] + shown


def _damaged(path: Path, what: str, remedy: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged: {what}.{' ' * bool(remedy)}{remedy}")
