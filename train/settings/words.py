"""Numbers and names in messages."""

from collections.abc import Sequence

NUM_SHOWN = 5  # names in a message
LONGEST_NAME = 40  # characters


def counted(number: int, noun: str) -> str:
    """`1 document`, `1,200 documents`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def sized(num_bytes: float) -> str:
    """`0.4 KB`, `11.3 MB`: in the decimal unit that shows a digit."""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} KB"


def shown_names(names: Sequence[str], count: int = NUM_SHOWN) -> str:
    """`count` names at most, shortened, and how many there are: `a, b, ... (1,201 in all)`."""
    shown = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..." for name in names[:count]]
    more = f", ... ({len(names):,} in all)" if len(names) > count else ""
    return ", ".join(shown) + more
