"""Read standard input, and say so before a person wonders why nothing happens."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 3.0  # seconds before a command says that it waits


def is_terminal() -> bool:
    """Whether a person types the input; standard input may also be a pipe, a file, or closed."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_stdin(what: str, instead: str) -> str:
    """All of standard input; empty if it is closed.

    Args:
        what: is expected there, such as "a prompt".
        instead: how to give it in another way, such as "give --prompt".

    Raises:
        ValueError: it is not UTF-8 text.
    """
    if sys.stdin is None:
        return ""
    if is_terminal():
        print(f"Type {what}. Ctrl-D ends the input.", file=sys.stderr)
        return decoded_stdin()
    with saying_after(PATIENCE, f"waiting for {what} on standard input, up to its end; otherwise, {instead}"):
        return decoded_stdin()


def decoded_stdin() -> str:
    """All of standard input.

    Raises:
        ValueError: it is not UTF-8 text.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text ({error}).") from None


@contextmanager
def saying_after(seconds: float, text: str) -> Iterator[None]:
    """Print a text to stderr if the block takes longer than `seconds`."""
    timer = threading.Timer(seconds, print, [text], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
