"""HTML of the page's own views. Every text of a user or a model passes through `escaped`."""

import base64
import html
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..views.tokens import Piece

# gr.HTML fills templates, in which these have a meaning
TEMPLATE_SIGNS = {ord(sign): f"&#{ord(sign)};" for sign in "{}$`\\"}
LOOK, FUTURE = (0x1F, 0x6F, 0xEB), (0x8B, 0x94, 0x9E)  # red, green, blue
FUTURE_ALPHA = 70.0
TYPICAL_BITS = 12.0  # surprise from which a token is coloured fully


def escaped(text: str) -> str:
    """A text as it is typed, in HTML or in an attribute between double quotes."""
    return html.escape(text, quote=True).translate(TEMPLATE_SIGNS)


def picks(**values: Any) -> str:
    """The attribute of a button that sends these values to the server when it is clicked."""
    return f'data-pick="{escaped(json.dumps(values))}"'


def message(text: str, kind: str = "error") -> str:
    """A sentence for the user; empty if there is none."""
    return f'<p class="sg-{kind}" role="alert">{escaped(text)}</p>' if text else ""


def caption(text: str) -> str:
    """What a view shows, in one line."""
    return f'<p class="sg-caption">{escaped(text)}</p>'


def percent(probability: float) -> str:
    """A probability as people read it; small ones are not rounded to nothing."""
    share = 100 * probability
    return f"{share:.1f} %" if share >= 0.1 or share == 0 else f"{share:.1g} %" if share >= 1e-4 else "< 0.0001 %"


def shown(piece: Piece) -> str:
    """The text of a token with visible whitespace."""
    return escaped(piece.visible) or "&#8709;"


def about(piece: Piece) -> str:
    """The id and the bytes of a token."""
    data = " ".join(f"{byte:02x}" for byte in piece.data)
    return f"id {piece.id}, " + (f"bytes {data}" if data else "control token")


def token(piece: Piece, *, attributes: str = "", heat: float | None = None, classes: str = "", note: str = "") -> str:
    """A token as a button.

    Args:
        heat: from 0 to 1; None: no colour.
        note: what is said of it besides its id and bytes.
    """
    title = escaped("; ".join(part for part in (about(piece), note) if part))
    style = "" if heat is None else f' style="--heat:{min(max(heat, 0), 1):.3f}"'
    kind = f"sg-token {'sg-control' if piece.is_control else ''} {classes}".strip()
    label = escaped(f"token {piece.visible}, ") + title
    names = f'{attributes} title="{title}" aria-label="{label}"'
    button = f'<button type="button" class="{kind}"{style} {names}>{shown(piece)}</button>'
    return button + ("<br>" if piece.text.endswith("\n") else "")


def bar(share: float, classes: str = "") -> str:
    """A horizontal bar from 0 to 1."""
    width = f"{100 * min(max(share, 0), 1):.2f}%"
    return f'<span class="sg-bar {classes}" aria-hidden="true"><i style="width:{width}"></i></span>'


def table(head: Sequence[str], rows: Sequence[str], classes: str = "") -> str:
    """A table of ready rows."""
    titles = "".join(f'<th scope="col">{escaped(title)}</th>' for title in head)
    return f'<table class="sg-table {classes}"><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def row(*cells: str, classes: str = "") -> str:
    """A row of ready cells; the first one is its header."""
    first, *others = cells
    inner = "".join(f"<td>{cell}</td>" for cell in others)
    return f'<tr class="{classes}"><th scope="row">{first}</th>{inner}</tr>'


def data_attributes(values: Mapping[str, Any]) -> str:
    """Values that the script of the page reads, as JSON in `data-` attributes."""
    return " ".join(f'data-{name}="{escaped(json.dumps(value))}"' for name, value in values.items())


def map_picture(weights: Tensor, size: int | None = None) -> str:
    """The address of a picture of an attention map, (query_seq, key_seq): the more weight, the less transparent.

    The triangle of the future is grey.

    Args:
        size: the largest number of rows and columns; larger maps show the highest weight of each part.
    """
    future = torch.ones_like(weights).triu(1)
    step = 1 if size is None else -(-len(weights) // size)
    if step > 1:
        length = -(-len(weights) // step) * step
        padded = weights.new_zeros(length, length)
        padded[: len(weights), : len(weights)] = weights
        weights = padded.unfold(0, step, step).unfold(1, step, step).amax(dim=(-1, -2))
        future = torch.ones_like(weights).triu(1)
    seen = (weights.clamp(0, 1).sqrt() * 255).round()  # the root makes small weights visible
    colours = torch.where(future[..., None] > 0, torch.tensor(FUTURE), torch.tensor(LOOK))
    pixels = torch.cat([colours, torch.where(future > 0, FUTURE_ALPHA, seen)[..., None]], dim=-1)
    return "data:image/png;base64," + base64.b64encode(png(pixels.byte())).decode()


def png(pixels: Tensor) -> bytes:
    """A PNG file. https://www.w3.org/TR/png-3/

    Args:
        pixels: (height, width, 4), bytes of red, green, blue and alpha.
    """
    height, width, _ = pixels.shape
    lines = pixels.new_zeros((height, 1 + 4 * width))  # each line begins with its filter, 0
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)  # 8 bits of each
    data = zlib.compress(lines.numpy().tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, (b"IHDR", b"IDAT", b"IEND"), (header, data, b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
