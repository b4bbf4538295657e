"""Checks that several settings share."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def requires(name: str, value: Any, condition: str) -> str:
    """The message for a setting that has no effect unless `condition` holds."""
    return f"--{name} ({value}) requires {condition}."


def check_bounds(arguments: Any, at_least: Mapping[str, float], at_most: Mapping[str, float] | None = None) -> None:
    """Refuse settings out of range. None stands for "not set".

    Raises:
        ValueError: the setting, its value and the bound.
    """
    for name, lowest in at_least.items():
        value = getattr(arguments, name)
        if value is not None and not (value >= lowest and math.isfinite(value)):
            raise ValueError(f"--{name} is {value}: it must be a number of at least {lowest}.")
    for name, highest in (at_most or {}).items():
        value = getattr(arguments, name)
        if value is not None and value > highest:
            raise ValueError(f"--{name} is {value}: it must be at most {highest}.")


def check_fraction(name: str, value: float | None) -> None:
    """Refuse a fraction that selects nothing or everything.

    Raises:
        ValueError: the setting and its value.
    """
    if value is not None and not 0 < value < 1:
        raise ValueError(f"--{name} is {value}: it must be between 0 and 1, both excluded.")


def create_folder(option: str, folder: Path) -> None:
    """Create a folder and its parents, unless they exist.

    Raises:
        ValueError: a file is in the way; the message names the option.
        OSError: the place cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), folder)
        raise ValueError(f"{option}: {file} is a file, not a folder: choose another place.") from None


def bytes_of(name: str, size: str) -> int:
    """The number of bytes of a size such as "5GB".

    Raises:
        ValueError: it is not one; the message names the option.
    """
    found = re.fullmatch(r"(\d+) ?([KMGT]?B)", size.strip(), re.IGNORECASE)
    if found is None or int(found[1]) == 0:
        raise ValueError(f"--{name} is {size!r}: give a size such as 5GB or 200MB.")
    exponent = ("B", "KB", "MB", "GB", "TB").index(found[2].upper())
    return int(found[1]) * int(1000**exponent)
