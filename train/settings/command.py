"""Run a command: exit codes, and errors as one line."""

import functools
import sys
from collections.abc import Callable, Sequence

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

INTERRUPTED = 130  # the exit code


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run the `main` of a command and return its exit code.

    A user's mistake is one line on stderr and exit code 2; `python -X dev` shows its traceback.
    """
    try:
        return main(argv) or 0
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    # safetensors reports a full disk as its own error, which is not an OSError
    except (ValueError, OSError, SafetensorError, StrictDataclassError) as error:
        if sys.flags.dev_mode:
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        return 2


def interruptible(main: Callable[[Sequence[str] | None], int | None]) -> Callable[[Sequence[str] | None], int | None]:
    """A `main` that writes nothing which could be continued: Ctrl-C ends it without advice."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int | None:
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return INTERRUPTED

    return wrapped


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
