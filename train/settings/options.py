"""The options of a command: their types, and how a value is read from text."""

import math
import types
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .renamed import OLD_VALUES

PATH = "PATH"  # the placeholder of a path in `--help`, which also marks the field
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
LARGEST_INT = 2**63 - 1  # torch and numpy take no larger ones
# what the last recipe and command line have set; read after a command has succeeded, to say what to do next
GIVEN_OPTIONS: ContextVar[Mapping[str, Any]] = ContextVar("GIVEN_OPTIONS", default=MappingProxyType({}))


class Unset(Enum):
    """The value of an option that is given as null."""

    UNSET = "null"


UNSET = Unset.UNSET


@dataclass(frozen=True)
class Option:
    """An option of a command, made from a dataclass field.

    Args:
        kind: the type of one value: str, int, float or bool.
        choices: the allowed values; empty: all of the type.
        is_list: whether it takes several values.
        required: whether it must be given.
        instead: names of options that can be given instead; with one of them, it has a default.
    """

    name: str
    kind: type
    choices: tuple[str, ...]
    is_list: bool
    is_path: bool
    required: bool
    instead: tuple[str, ...]
    default: Any
    help: str

    @property
    def is_switch(self) -> bool:
        """Whether `--name` alone means true, and `--no_name` false."""
        return self.kind is bool or {"true", "false"} <= set(self.choices)

    def is_missing(self, values: Mapping[str, Any]) -> bool:
        """Whether it must be given, but is not among `values`."""
        return self.required and not any(name in values for name in (self.name, *self.instead))

    def convert(self, text: str) -> Any:
        """One value from text.

        Raises:
            ValueError: the text, and what is allowed.
        """
        if self.choices:
            return self._choice(text)
        if self.kind is bool:
            if text.lower() not in BOOLEANS:
                raise ValueError(f"takes true or false, not {shortened(text)}")
            return BOOLEANS[text.lower()]
        if self.kind in (int, float):
            return number_from(text, self.kind)
        if self.is_path and text.startswith("~"):
            return str(Path(text).expanduser())
        return text

    def _choice(self, text: str) -> str:
        if text in self.choices:
            return text
        if text.lower() in BOOLEANS and (word := str(BOOLEANS[text.lower()]).lower()) in self.choices:
            return word
        new = OLD_VALUES.get((self.name, text))
        hint = f"; {text!r} is now called {new!r}" if new in self.choices else ""
        raise ValueError(f"takes {' or '.join(self.choices)}, not {shortened(text)}{hint}")


def number_from(text: str, kind: type[int] | type[float]) -> int | float:
    """A number from text.

    Raises:
        ValueError: the text, and what is allowed.
    """
    try:
        number = kind(text)
    except ValueError:
        raise ValueError(f"takes a {'whole ' * (kind is int)}number, not {shortened(text)}") from None
    if kind is int and abs(number) > LARGEST_INT:
        bound = f"at most {LARGEST_INT}" if number > 0 else f"at least {-LARGEST_INT}"
        raise ValueError(f"is {text:.80}: it must be {bound}")
    if not math.isfinite(number):
        raise ValueError(f"is {text}: it must be a finite number")
    return number


def shortened(value: Any) -> str:
    """A value as it can be shown in one line of an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."


def options_of(dataclasses: Sequence[Any]) -> dict[str, Option]:
    """The options of a command by their names, in the order of the fields."""
    options = {}
    for kind in dataclasses:
        hints = get_type_hints(kind)
        for entry in fields(kind):
            if entry.init:
                options[entry.name] = _option(entry, hints[entry.name])
    known = {name: tuple(other for other in option.instead if other in options) for name, option in options.items()}
    return {name: replace(option, instead=known[name]) for name, option in options.items()}


def _option(entry: Any, hint: Any) -> Option:
    is_list, choices = get_origin(hint) is list, ()
    if is_list:
        (hint,) = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is Literal:
        choices, hint = get_args(hint), str
    has_factory = entry.default_factory is not MISSING
    default = entry.default_factory() if has_factory else None if entry.default is MISSING else entry.default
    return Option(
        name=entry.name,
        kind=hint,
        choices=choices,
        is_list=is_list,
        is_path=entry.metadata.get("metavar") == PATH,
        required=entry.metadata.get("required", entry.default is MISSING and not has_factory),
        instead=entry.metadata.get("instead", ()),
        default=default,
        help=entry.metadata.get("help", ""),
    )
