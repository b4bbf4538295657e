"""The tab Inside: what the model computes for each token of a text."""

from typing import Any

import gradio as gr

from .events import when
from .inside_markup import heads_view, lens_view, map_view, next_view, norms_view, tokens_view
from .library import OpenModel
from .parts import Page, sentence, view

EXAMPLES = [
    "The mouse ate the cheese",
    "def add(first, second):\n    return first + second",
    "red green blue red green blue red green",
]
START = {"position": 0, "layer": 0, "head": 0}


def build(page: Page) -> None:
    """Add the tab to the page."""
    gr.Markdown("What the model sees, expects and computes at each token of a text.")
    with gr.Row(equal_height=False):
        text = gr.Textbox(
            EXAMPLES[0], label="Text", lines=2, max_lines=6, elem_id="inside-text", scale=5, min_width=240
        )
        go = gr.Button("Look inside", variant="primary", elem_id="inside-go", scale=1, min_width=120)
    gr.Examples(EXAMPLES, text, label="Texts", elem_id="inside-examples")
    errors = sentence("inside-error")
    tokens = view("inside-tokens")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            following = view("inside-next")
        with gr.Column(min_width=320):
            lens, norms = view("inside-lens"), view("inside-norms")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            heads = view("inside-heads")
        with gr.Column(min_width=320):
            attention = view("inside-map")
    seen = gr.State(("", ""))  # the model and the text of the views
    at = gr.State(START)
    at_position = [following, lens, norms]
    everything = [tokens, *at_position, heads, attention, seen, at]

    def look(name: str, text: str) -> tuple[Any, ...]:
        with page.library.lock:
            opened = page.library.open(name)
            inside = opened.inside(text)
            at = START | {"position": len(inside.ids) - 1}
            return (*all_views(opened, text, at), (name, text), at)

    def pick_token(event: gr.EventData, seen: tuple[str, str], at: dict[str, int]) -> tuple[Any, ...]:
        at = at | {"position": int(event._data["position"])}
        with page.library.lock:
            opened = page.library.open(seen[0])
            return (*views_of_position(opened, seen[1], at["position"]), at)

    def pick_head(event: gr.EventData, seen: tuple[str, str], at: dict[str, int]) -> tuple[Any, ...]:
        at = at | {name: int(event._data[name]) for name in ("layer", "head")}
        with page.library.lock:
            opened = page.library.open(seen[0])
            return map_view(opened, opened.inside(seen[1]), at["layer"], at["head"], at["position"]), at

    when([go.click, text.submit], look, [page.model, text], everything, errors, api_name="inside")
    when([tokens.select], pick_token, [seen, at], [*at_position, at], errors, show_progress="hidden")
    when([heads.select], pick_head, [seen, at], [attention, at], errors, show_progress="hidden")


def all_views(opened: OpenModel, text: str, at: dict[str, int]) -> list[str]:
    """Tokens, next token, lens, norms, heads, and the map of a head."""
    inside = opened.inside(text)
    place = at["layer"], at["head"]
    return [
        tokens_view(opened, inside, at["position"]),
        *views_of_position(opened, text, at["position"]),
        heads_view(inside, opened.head_words(), *place),
        map_view(opened, inside, *place, at["position"]),
    ]


def views_of_position(opened: OpenModel, text: str, position: int) -> list[str]:
    """Next token, lens and norms.

    Raises:
        ValueError: the text has no such position.
    """
    inside = opened.inside(text)
    if not 0 <= position < len(inside.ids):
        raise ValueError(f"The text has no token {position}.")
    return [next_view(opened, inside, position), lens_view(opened, inside, position), norms_view(inside, position)]
