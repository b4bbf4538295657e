"""What a command says when it refuses."""

from train.settings.command import run_command


def refusal_of(main, capsys, *options):
    """The message of a command that must end with exit code 2, without a traceback."""
    assert run_command(main, [*map(str, options)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err
