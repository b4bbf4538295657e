"""Answer `--help`, and mistakes on a command line, before a command is imported: torch alone takes seconds.

The command's own `main` does it, in a copy of its module that has only what can be evaluated from the standard library
and `settings/`. That includes the dataclasses of its options, which are all that `main` needs until it has parsed them.
"""

import __future__

import ast
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LIGHT = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)


class Parsed(Exception):
    """The command line is valid, and the command has to run."""


def answer_module_call(package: str, commands: Sequence[str]) -> None:
    """Answer `python -m package.command --help` while Python imports the package, before it comes to the command."""
    if sys.argv[:1] != ["-m"]:  # only at that moment
        return
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    command = module.removeprefix(f"{package}.")
    if module != f"{package}.{command}" or command not in commands:
        return
    sys.argv[0] = f"python -m {module}"  # the name in `--help`
    code = check_command_line(package, command, sys.argv[1:])
    sys.argv[0] = "-m"
    if code is not None:
        sys.exit(code)


def check_command_line(package: str, command: str, argv: Sequence[str]) -> int | None:
    """Print the help and exit, or return the exit code of a mistake; None if the command has to run.

    Args:
        package: of the commands.
    """
    name = f"{package}.{command} (options)"
    with bare_parents(package):
        try:
            importlib.import_module(package)
            run_command = importlib.import_module(f"{package}.settings.command").run_command
            module = sys.modules[name] = light_module(name, package, command)
            code: int = run_command(module.main, argv)
        except (ImportError, Parsed):  # if something is missing, the command itself will say what
            return None
        finally:
            sys.modules.pop(name, None)
    return code


def light_module(name: str, package: str, command: str) -> Any:
    """The part of a command's module that needs no other imports; its `parse_recipe` ends with `Parsed`."""
    module = types.ModuleType(name)
    sys.modules[name] = module  # where dataclasses look for the types of their fields
    path = Path(sys.modules[package].__path__[0]) / f"{command}.py"
    source = ast.parse(path.read_text(encoding="utf-8"))
    module.__dict__.update(__package__=package, __doc__=ast.get_docstring(source, clean=False))
    flags = __future__.annotations.compiler_flag  # the types of parameters stay text
    for statement in source.body:
        if isinstance(statement, LIGHT) and is_light_import(statement):
            code = compile(ast.Module([statement], []), str(path), "exec", flags, dont_inherit=True)
            with suppress(NameError):  # it uses one of the other imports
                exec(code, module.__dict__)
    if "parse_recipe" in vars(module):
        module.__dict__["parse_recipe"] = stopping_after(module.__dict__["parse_recipe"])
    return module


def is_light_import(statement: ast.stmt) -> bool:
    """False for imports of more than the standard library and `settings/`."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    elif isinstance(statement, ast.ImportFrom):
        if statement.level:
            return statement.level == 1 and (statement.module or "").startswith("settings.")
        names = [statement.module or ""]
    else:
        return True
    return all(name.partition(".")[0] in sys.stdlib_module_names for name in names)


def stopping_after(parse_recipe: Any) -> Any:
    """`parse_recipe`, followed by `Parsed`."""

    def parse_and_stop(*arguments: Any, **settings: Any) -> None:
        parse_recipe(*arguments, **settings)
        raise Parsed

    return parse_and_stop


@contextmanager
def bare_parents(package: str) -> Iterator[None]:
    """Make a package importable without the code of its parents, which imports torch."""
    root = package.partition(".")[0]
    spec = importlib.util.find_spec(root) if root != package and root not in sys.modules else None
    if spec is None:
        yield
        return
    sys.modules[root] = types.ModuleType(root)
    sys.modules[root].__path__ = list(spec.submodule_search_locations or [])
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name == root or name.startswith(f"{root}.")]:
            del sys.modules[name]
