"""Words for numbers."""


def counted(number: int, noun: str) -> str:
    """`1 document`, `1,200 documents`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
