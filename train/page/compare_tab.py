"""The tab Compare: two models, or two steps of one run, with the same text."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..views.predictions import surprisals
from .events import when
from .inside_markup import summary
from .library import OpenModel
from .markup import TYPICAL_BITS, caption, escaped, token
from .parts import Page, length_of, sampling_of, sampling_sliders, sentence, session, view
from .write_tab import status
from .writing import Writing, fitting

SIDES = ("a", "b")


def build(page: Page) -> None:
    """Add the tab to the page."""
    gr.Markdown("The same beginning, two models: which one writes better, and which one is less surprised by a text?")
    names = page.library.names
    with gr.Row():
        chosen = [
            gr.Dropdown(
                names, value=names[0] if side == "a" else names[:2][-1], label=f"Model {side.upper()}", min_width=240,
                allow_custom_value=page.library.is_private, elem_id=f"compare-{side}",
            )
            for side in SIDES
        ]  # fmt: skip
    text = gr.Textbox("The mouse ate the cheese", label="Text", lines=2, max_lines=6, elem_id="compare-text")
    with gr.Row(elem_classes="sg-buttons"):
        go = gr.Button("Write on with both", variant="primary", elem_id="compare-go", min_width=150)
        stop = gr.Button("Stop", variant="stop", elem_id="compare-stop", min_width=90)
        score = gr.Button("Score this text with both", elem_id="compare-score", min_width=150)
    errors = sentence("compare-error")
    with gr.Row(equal_height=False):
        views = []
        for side in SIDES:
            with gr.Column(min_width=300):
                views += [view(f"compare-written-{side}"), view(f"compare-scored-{side}")]
    sliders = sampling_sliders(page.max_new_tokens)
    comparison = Comparison(page)
    settings: dict[str, Any] = {"show_progress": "hidden"}
    when([go.click], comparison.write, [text, *chosen, *sliders], views[::2], errors, api_name="compare", **settings)
    when([score.click], comparison.score, [text, *chosen], views[1::2], errors, **settings)
    stop.click(page.stop, queue=False, api_visibility="private")


class Comparison:
    """What the buttons of the tab do. Each returns one view per model."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def write(
        self, request: gr.Request, text: str, first: str, second: str, *settings: Any
    ) -> Iterator[tuple[str, str]]:
        """Both continuations, one after the other."""
        *chosen, wanted = settings
        shown = {first_or_second: "" for first_or_second in SIDES}
        for side, name in zip(SIDES, (first, second), strict=True):
            with self.page.library.lock:
                opened = self.page.library.open(name)
            opened.refuse_classifier()
            length = min(length_of(wanted, self.page.max_new_tokens), opened.positions - 1)
            ids = fitting(opened, opened.ids(text), length)
            writing = Writing(self.page.library, opened, ids, sampling_of(*chosen), length)
            self.page.running[session(request)] = writing
            try:
                for new in writing.texts():
                    shown[side] = written_view(name, text, new, str(writing.pace))
                    yield shown["a"], shown["b"]
            finally:
                self.page.running.pop(session(request), None)
            if writing.was_stopped:
                return

    def score(self, text: str, *names: str) -> tuple[str, ...]:
        """How surprised each model is by each token of the text."""
        found = []
        for name in names:
            with self.page.library.lock:
                found.append(scored_view(self.page.library.open(name), text))
        return tuple(found)


def written_view(name: str, text: str, new: str, pace: str) -> str:
    """A continuation."""
    inner = f"<pre><b>{escaped(text)}</b>{escaped(new)}</pre>"
    return f'<h4>{escaped(name)}</h4><div class="sg-sample">{inner}</div>{status(pace)}'


def scored_view(opened: OpenModel, text: str) -> str:
    """The tokens of a text, coloured by the surprise of a model."""
    inside = opened.inside(text)
    pieces, bits = opened.pieces(inside.ids), surprisals(inside.logits, inside.ids)
    tokens = "".join(
        token(
            piece,
            heat=None if one is None else one / TYPICAL_BITS,
            note="first token" if one is None else f"{one:.2f} bits",
        )
        for piece, one in zip(pieces, bits, strict=True)
    )
    return (
        f"<h4>{escaped(opened.name)}</h4>"
        + caption("The redder a token, the less this model expected it. Fewer bits per byte are better.")
        + f'<div class="sg-tokens">{tokens}</div><p class="sg-facts">{summary(bits, pieces)}</p>'
    )
