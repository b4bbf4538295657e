"""Text of any kind as Markdown that shows it literally."""

import re
from collections.abc import Sequence


def fenced(text: str, language: str = "text") -> str:
    """A Markdown code block with a fence longer than any run of backticks in `text`."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.removesuffix(chr(10))}\n{fence}"


def one_line(text: str) -> str:
    """`text` with every run of white space replaced by one space."""
    return " ".join(text.split())


def plain(text: str) -> str:
    """`text` as one line of Markdown that shows it literally, in a paragraph, a list or a cell of a table."""
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", line)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # inside of a word it has no meaning


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
