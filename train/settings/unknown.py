"""What to say about an option that a command does not have."""

import difflib
from collections.abc import Iterable

from .renamed import ANSWERS, HABITS, RENAMED, RENAMED_VALUES


def unknown_option(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The message: its new name, the name it has here, how to do without, or the nearest known name.

    Args:
        name: without dashes.
        prefix: "--" on the command line.
    """
    known = list(known)
    if new := first_known(RENAMED.get(name, ()), known):
        return f"{prefix}{name} has been renamed to {prefix}{new}{RENAMED_VALUES.get(new, '')}."
    if here := first_known(HABITS.get(name, ()), known):
        return f"unknown setting {prefix}{name}: here it is called {prefix}{here}."
    if name in ANSWERS:
        return f"unknown setting {prefix}{name}: {ANSWERS[name]}"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{nearest[0]}?" if nearest else "--help lists the settings."
    return f"unknown setting {prefix}{name}: {hint}"


def first_known(names: Iterable[str], known: Iterable[str]) -> str | None:
    """The first of `names` that is known; None if none is."""
    return next((name for name in names if name in known), None)
