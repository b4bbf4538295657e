"""Run a command: exit codes, and errors as one line."""

import functools
import os
import sys
from collections.abc import Callable, Sequence

from .next_steps import print_next_steps
from .options import GIVEN_OPTIONS

INTERRUPTED, CLOSED_PIPE = 130, 141  # exit codes, as of programs that these signals end


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run the `main` of a command and return its exit code.

    After success, it prints what to do next. A user's mistake is one line on stderr and exit code 2;
    `python -X dev` shows its traceback.
    """
    GIVEN_OPTIONS.set({})
    try:
        code = main(argv) or 0
        if code == 0 and (values := GIVEN_OPTIONS.get()):
            print_next_steps(main, values)
        return code
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if sys.flags.dev_mode or not is_of_user(error):
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        return 2


def interruptible(main: Callable[[Sequence[str] | None], int | None]) -> Callable[[Sequence[str] | None], int | None]:
    """A `main` that only prints: Ctrl-C ends it without advice, and the end of its reader, such as `head`, silently."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int | None:
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            # Python flushes stdout once more at its end: https://docs.python.org/3/library/signal.html#note-on-sigpipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED_PIPE

    return wrapped


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def is_of_user(error: Exception) -> bool:
    """Whether a user can cause such an error, so that its message is enough."""
    if isinstance(error, ValueError | OSError):
        return True
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError  # how safetensors reports a full disk

    return isinstance(error, SafetensorError | StrictDataclassError)
