"""Read a command line of the form `[recipe.yaml ...] [--name value ...]`, and print its help."""

import argparse
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .groups import grouped
from .options import PATH, UNSET, Option, shortened
from .unknown import unknown_option

USAGE = "%(prog)s [recipe.yaml ...] [--name value ...]"
HOW_TO = (
    "A recipe is a YAML file with one option per line, name: value. The command line wins over recipes; --name null "
    "removes what a recipe sets."
)
EXAMPLES = "examples:\n"
TEXTS = ("prompt", "text", "question")  # options that take what people type without an option


class CommandLineParser:
    """Reads the command line of a command.

    Args:
        options: by name.
        description: the docstring of the command. Its indented lines are shown as examples.
    """

    def __init__(self, options: Mapping[str, Option], description: str = "") -> None:
        self.options = options
        text, self.examples = split_description(f"{description}\n\n{HOW_TO}")
        self.parser = _Parser(
            usage=USAGE,
            description=text,
            epilog=EXAMPLES + textwrap.indent(self.examples, "  ") if self.examples else "",
            allow_abbrev=False,
            add_help=False,
            formatter_class=_HelpFormatter,
        )
        self.null_is_text: set[str] = set()
        for title, some in grouped(options.values()):
            group = self.parser.add_argument_group(title)
            for option in some:
                self._add(group, option)
        group.add_argument("-h", "--help", action="help", help="Show this help and exit.")

    def _add(self, group: Any, option: Option) -> None:
        def convert(text: str) -> Any:
            if text == "null" and option.name not in self.null_is_text:
                return UNSET
            try:
                return option.convert(text)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from None

        settings: dict[str, Any] = {
            "dest": option.name,
            "default": argparse.SUPPRESS,
            "type": convert,
            "metavar": placeholder(option),
            "help": help_text(option).replace("%", "%%"),
        }
        if option.is_list:
            settings |= {"nargs": "+", "action": "extend"}  # given twice, it has the values of both
        elif option.is_switch:
            settings |= {"nargs": "?", "const": option.convert("true")}
        group.add_argument(f"--{option.name}", **settings)

    def parse(self, argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """(paths of recipes, values of options); the value of an option that is given as null is UNSET.

        Raises:
            ValueError: what is wrong with the command line, and what to write instead.
        """
        arguments, recipes = list(argv), []
        while arguments and not arguments[0].startswith("-"):
            recipes.append(self._checked_recipe(arguments.pop(0)))
        arguments = [self._checked_name(argument) for argument in arguments]
        # a text may be "null"; only where a recipe can have set it, null is more likely meant to remove it
        self.null_is_text = set() if recipes else {name for name, option in self.options.items() if is_text(option)}
        namespace, stray = self.parser.parse_known_args(arguments)
        if stray:
            raise ValueError(self._stray_text(stray[0], arguments))
        return recipes, {name: after_null(value) for name, value in vars(namespace).items()}

    def missing_text(self, missing: Sequence[Option]) -> str:
        """The message about options that must be given."""
        names = [" or ".join(f"--{name}" for name in (option.name, *option.instead)) for option in missing]
        width = max(len(name) for name in names)
        lines = [f"  {name:<{width}}  {option.help}" for name, option in zip(names, missing, strict=True)]
        example = [f"Example: {self.examples.splitlines()[0]}"] if self.examples else []
        return "\n".join([f"required: {', '.join(names)}.", *lines, *example])

    def _checked_recipe(self, argument: str) -> str:
        if not argument.endswith((".yaml", ".yml")):
            first = next((name for name, option in self.options.items() if option.required), None)
            hint = f" Did you mean --{first} {argument}?" if first else ""
            raise ValueError(f"{argument!r} is neither a recipe (*.yaml) nor an option (--name value).{hint}")
        return argument

    def _checked_name(self, argument: str) -> str:
        """The argument; an option with underscores, as in recipes."""
        if not argument.startswith("--") or " " in argument.partition("=")[0] or argument == "--":
            return argument
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        switch = self.options.get(name.removeprefix("no_"))
        if name not in self.options and switch and switch.is_switch:
            if equals:
                words = " or ".join(switch.choices or ("true", "false"))
                raise ValueError(f"--{name} takes no value: write --{switch.name} followed by {words}.")
            return f"--{switch.name}=false"
        if name not in self.options and name != "help":
            raise ValueError(unknown_option(name, self.options, prefix="--"))
        return f"--{name}{equals}{value}"

    def _stray_text(self, stray: str, arguments: Sequence[str]) -> str:
        """The message about an argument that belongs to no option."""
        if stray.startswith("-") and len(stray) > 1:
            return f"unknown setting {stray}: options have the form --name value; --help lists them."
        if stray.endswith((".yaml", ".yml")):
            return f"recipe {stray} must come before the options: [recipe.yaml ...] [--name value ...]."
        text = next((name for name in TEXTS if name in self.options), None)
        if " " in stray and text:
            return f"{shortened(stray)} belongs to no option: did you mean --{text} {shortened(stray)}?"
        before = [argument for argument in arguments[: arguments.index(stray)] if argument.startswith("--")]
        name = before[-1].partition("=")[0] if before else "--name"
        return f'{shortened(stray)} belongs to no option: put a text with spaces into quotation marks, {name} "...".'


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(re.sub(r"^argument (--\w+): ", r"\1 ", message) + ".")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Options check their values when they convert them."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            return super().parse_known_args(args, namespace)
        except ValueError as error:
            name, _, message = str(error).partition(" ")
            if message.startswith("expected"):
                message = f"needs a value; one that begins with a dash is written {name}=VALUE."
            raise ValueError(f"{name} {message}") from None


def _shown(values: Any) -> str:
    return " ".join(str(value) for value in values) if isinstance(values, list) else str(values)


class _HelpFormatter(argparse.HelpFormatter):
    """Lists each option once, as `--name VALUE`, and keeps the paragraphs of the description and lines of examples."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings | {"max_help_position": 30})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(EXAMPLES):
            return text
        return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n"))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.metavar:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {action.metavar}{' ...' if action.nargs == '+' else ''}"


def after_null(value: Any) -> Any:
    """The values that are given after the last null; UNSET if there are none."""
    if not isinstance(value, list) or UNSET not in value:
        return value
    return value[len(value) - value[::-1].index(UNSET) :] or UNSET


def is_text(option: Option) -> bool:
    """Whether any word is a valid value."""
    return option.kind is str and not option.choices and not option.is_path


def placeholder(option: Option) -> str:
    """The value of an option in `--help`."""
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    if option.is_path:
        return PATH
    return {bool: "{true,false}", int: "N", float: "X"}.get(option.kind, "TEXT")


def help_text(option: Option) -> str:
    """The help with the default, unless that is None or empty: then the text names it."""
    if option.required and not option.instead:
        return f"{option.help} (required)"
    if option.required:
        others = " or ".join(f"--{name}" for name in option.instead)
        return f"{option.help} (required, unless {others} is given)"
    if option.default in (None, [], "") or "(default:" in option.help:
        return option.help
    default = str(option.default).lower() if option.kind is bool else _shown(option.default)
    return f"{option.help} (default: {default})"


def split_description(docstring: str) -> tuple[str, str]:
    """The text of a docstring, and its indented examples, without the indentation."""
    lines = inspect.cleandoc(docstring).splitlines()
    examples = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))
    text = "\n".join(line for line in lines if not line.startswith("    "))
    text = re.sub(r":$", ".", text, flags=re.MULTILINE)  # examples do not follow there any more
    return re.sub(r"\n{3,}", "\n\n", text).strip(), examples
