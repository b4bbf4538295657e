"""The views of the tab Inside as HTML."""

import statistics
from collections.abc import Sequence

from torch import Tensor

from ..views.heads import WORDS, HeadWord
from ..views.inside import Inside
from ..views.lens import NO_LENS, residual_norms
from ..views.predictions import Candidate, candidate, candidates, surprisals, text_bits_per_byte
from ..views.tokens import Piece
from .library import OpenModel
from .markup import (
    TYPICAL_BITS,
    bar,
    caption,
    data_attributes,
    escaped,
    map_picture,
    percent,
    picks,
    row,
    shown,
    table,
    token,
)

NUM_CANDIDATES = 10
THUMBNAIL = 24  # rows and columns of a small map
NO_MAPS = "This architecture has no attention maps."


def tokens_view(opened: OpenModel, inside: Inside, position: int) -> str:
    """The text in tokens, coloured by surprise, and the bits per byte of the whole."""
    pieces, bits = opened.pieces(inside.ids), surprisals(inside.logits, inside.ids)
    buttons = []
    for number, (piece, one) in enumerate(zip(pieces, bits, strict=True)):
        note = "the first token, which nothing predicts" if one is None else f"{one:.2f} bits of surprise"
        pressed = "true" if number == position else "false"
        attributes = f'{picks(position=number)} data-position="{number}" aria-pressed="{pressed}"'
        buttons.append(token(piece, attributes=attributes, heat=None if one is None else one / TYPICAL_BITS, note=note))
    return (
        caption("Each box is a token. The redder it is, the less the model expected it. Click one to look behind it.")
        + f'<div class="sg-tokens" role="group" aria-label="tokens of the text">{"".join(buttons)}</div>'
        + f'<p class="sg-facts">{summary(bits, pieces)}</p>'
    )


def summary(bits: Sequence[float | None], pieces: Sequence[Piece]) -> str:
    """The numbers of the whole text."""
    scored = [one for one in bits if one is not None]
    facts = [f"{len(pieces)} tokens"]
    per_byte = text_bits_per_byte(bits, pieces)
    if scored and per_byte is not None:
        facts += [f"<b>{per_byte:.3f}</b> bits per byte", f"{statistics.fmean(scored):.2f} bits per token"]
    legend = "".join(f'<i style="--heat:{heat}"></i>' for heat in (0, 0.33, 0.66, 1))
    colours = f'Surprise from 0 <span class="sg-legend">{legend}</span> to {TYPICAL_BITS:.0f} bits'
    return f"{', '.join(facts)} (without the first token). {colours}"


def next_view(opened: OpenModel, inside: Inside, position: int) -> str:
    """The distribution of the token after a position; the token that did come is marked."""
    probabilities = inside.probabilities[position]
    true = inside.ids[position + 1] if position + 1 < len(inside.ids) else None
    found = candidates(probabilities, NUM_CANDIDATES, also=true)
    pieces = opened.pieces([one.id for one in found])
    rows = [candidate_row(one, piece, one.id == true) for one, piece in zip(found, pieces, strict=True)]
    (here,) = opened.pieces([inside.ids[position]])
    return (
        f"<h3>What comes after <code>{shown(here)}</code>?</h3>"
        + caption("The model's guesses with their probabilities; the marked one is what the text says next.")
        + table(["guess", "probability", "", "rank"], rows, "sg-candidates")
    )


def candidate_row(one: Candidate, piece: Piece, is_true: bool) -> str:
    """A guess with its bar."""
    mark = ' <span class="sg-mark">in the text</span>' if is_true else ""
    name = f"<code>{shown(piece)}</code>{mark}"
    cells = (name, percent(one.probability), bar(one.probability), f"{one.rank:,}")
    return row(*cells, classes="sg-true" if is_true else "")


def lens_view(opened: OpenModel, inside: Inside, position: int) -> str:
    """What each layer would predict after a position."""
    title = "<h3>Layer by layer: the logit lens</h3>"
    if inside.lens is None:
        return title + caption(NO_LENS)
    probabilities = inside.lens.logits(inside.residuals[:, position]).softmax(dim=-1)  # (layers + 1, vocab)
    true = inside.ids[position + 1] if position + 1 < len(inside.ids) else None
    best = probabilities.max(dim=-1)
    pieces = opened.pieces(best.indices.tolist())
    rows = []
    for number, (share, piece) in enumerate(zip(best.values.tolist(), pieces, strict=True)):
        name = "embedding" if number == 0 else f"layer {number}"
        cells = [name, f"<code>{shown(piece)}</code>", percent(share), bar(share)]
        if true is not None:
            own = candidate(probabilities[number], true)
            cells += [percent(own.probability), f"{own.rank:,}"]
        rows.append(row(*cells))
    more = ["text's next token", "its rank"] if true is not None else []
    return (
        title
        + caption("What the model would say if it stopped after this layer. The last row is its prediction.")
        + table(["after", "best guess", "probability", "", *more], rows, "sg-lens")
    )


def norms_view(inside: Inside, position: int) -> str:
    """The length of the residual stream after each layer, here and on average."""
    norms = residual_norms(inside.residuals)
    own, mean = norms[:, position].tolist(), norms.mean(dim=-1).tolist()
    highest = max(*own, *mean, 1e-9)
    rows = [
        row(
            "embedding" if number == 0 else f"layer {number}",
            f"{here:.1f}",
            f'<span class="sg-marked">{bar(here / highest)}<b style="left:{100 * there / highest:.2f}%"></b></span>',
        )
        for number, (here, there) in enumerate(zip(own, mean, strict=True))
    ]
    return (
        "<h3>How much each layer writes</h3>"
        + caption("The length of this token's vector after each layer; the tick is the mean of all tokens.")
        + table(["after", "length", ""], rows)
    )


def heads_view(inside: Inside, words: Sequence[HeadWord], layer: int, head: int) -> str:
    """Small maps of all heads, with the words of those that have one."""
    if inside.attentions is None:
        return "<h3>Attention</h3>" + caption(NO_MAPS)
    by_place = {(one.layer, one.head): one for one in words}
    buttons = []
    for number, maps in enumerate(inside.attentions):
        inner = "".join(
            head_button(one, by_place.get((number, index)), number, index, (number, index) == (layer, head))
            for index, one in enumerate(maps)
        )
        buttons.append(f'<div class="sg-layer"><span>layer {number + 1}</span>{inner}</div>')
    return (
        "<h3>Attention: which token looks where</h3>"
        + caption(
            "One picture per head. Look for lines: beside the diagonal, down the first column, or broken stripes."
        )
        + f'<div class="sg-heads" role="group" aria-label="heads">{"".join(buttons)}</div>'
        + found_words(words)
    )


def head_button(weights: Tensor, word: HeadWord | None, layer: int, head: int, is_chosen: bool) -> str:
    """A small map that can be clicked."""
    name = f"layer {layer + 1}, head {head + 1}"
    label = f"{word.word} {word.score:.2f}" if word is not None and word.word else ""
    scores = "" if word is None else "; " + ", ".join(f"{key} {value:.2f}" for key, value in word.scores.items())
    pressed = "true" if is_chosen else "false"
    return (
        f'<button type="button" class="sg-head" {picks(layer=layer, head=head)} aria-pressed="{pressed}" '
        f'title="{name}{scores}" aria-label="{name}{", " * bool(label)}{label}">'
        f'<img alt="" src="{map_picture(weights, THUMBNAIL)}"><small>{label or "&nbsp;"}</small></button>'
    )


def found_words(words: Sequence[HeadWord]) -> str:
    """What the words mean that heads of this model have."""
    if not words:
        return ""
    found = {one.word for one in words if one.word}
    meanings = "; ".join(f"<b>{name}</b>: {escaped(meaning)}" for name, meaning in WORDS.items() if name in found)
    measured = "the number is the share of attention that goes there, on random tokens read twice"
    if not meanings:
        found_none = f"No head of this model has a clear pattern ({measured}): small or young models have few."
        return f'<p class="sg-facts">{found_none}</p>'
    return f'<p class="sg-facts">{meanings} ({measured}). Heads without a word have no clear pattern.</p>'


def map_view(opened: OpenModel, inside: Inside, layer: int, head: int, position: int) -> str:
    """The attention map of one head; the script shows the weights under the pointer."""
    if inside.attentions is None:
        return ""
    weights, pieces = inside.attentions[layer, head], opened.pieces(inside.ids)
    rows = [[round(value, 4) for value in line[: number + 1].tolist()] for number, line in enumerate(weights)]
    labels = [piece.visible for piece in pieces]
    keys = "".join(
        f'<span class="sg-key" data-key="{number}">{shown(piece)}</span>' for number, piece in enumerate(pieces)
    )
    name = f"layer {layer + 1}, head {head + 1}"
    return (
        f'<div class="sg-map" {data_attributes({"weights": rows, "labels": labels, "position": position})}>'
        f"<h4>{name.capitalize()}</h4>"
        + caption(
            "Row: the token that looks. Column: where it looks. The grey triangle is the future, which no token sees."
        )
        + f'<div class="sg-square" tabindex="0" role="img" aria-label="attention map of {name}; use the arrow keys">'
        f'<img alt="" src="{map_picture(weights)}"><i class="sg-row"></i></div>'
        '<p class="sg-reading" aria-live="polite">&nbsp;</p>'
        f'<div class="sg-keys" aria-hidden="true">{keys}</div></div>'
    )
