"""The tab Write: the model goes on with a text that the user can edit at any time."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .events import when
from .markup import escaped
from .parts import Page, length_of, sampling_of, sampling_sliders, sentence, session
from .writing import Writing, fitting

EXAMPLES = ["The mouse ate the cheese", "def main(argv=None):\n    ", "Once upon a time"]


def status(text: str) -> str:
    """A line under the text whose height never changes."""
    return f'<p class="sg-status" aria-live="polite">{escaped(text)}</p>'


def build(page: Page) -> None:
    """Add the tab to the page."""
    gr.Markdown("The model continues your text, token by token. Edit the text at any time and let it write on.")
    text = gr.Textbox(
        EXAMPLES[0], label="Text", lines=9, max_lines=9, elem_id="write-text",
        max_length=page.library.max_prompt_tokens * 16, placeholder="Type the beginning of a text",
    )  # fmt: skip
    facts = gr.HTML(status("Ready."), elem_id="write-status", elem_classes=["sg-view"], apply_default_css=False)
    with gr.Row(elem_classes="sg-buttons"):
        go = gr.Button("Write on", variant="primary", elem_id="write-go", min_width=90)
        stop = gr.Button("Stop", variant="stop", elem_id="write-stop", min_width=90)
        again = gr.Button("Another way", elem_id="write-again", min_width=90)
        undo = gr.Button("Undo", elem_id="write-undo", min_width=90)
    errors = sentence("write-error")
    sliders = sampling_sliders(page.max_new_tokens)
    gr.Examples(EXAMPLES, text, label="Beginnings", elem_id="write-examples")
    before = gr.State("")  # the text that the last continuation began with
    seed = sliders[5]

    def write(request: gr.Request, name: str, text: str, *settings: Any) -> Iterator[tuple[Any, ...]]:
        yield from continued(page, name, text, settings, session(request))

    def rewrite(request: gr.Request, name: str, before: str, *settings: Any) -> Iterator[tuple[Any, ...]]:
        changed = (*settings[:5], int(settings[5] or 0) + 1, *settings[6:])
        for outputs in continued(page, name, before, changed, session(request)):
            yield (*outputs, changed[5])

    outputs = [text, facts, before]
    when([go.click], write, [page.model, text, *sliders], outputs, errors, api_name="write", show_progress="hidden")
    when([again.click], rewrite, [page.model, before, *sliders], [*outputs, seed], errors, show_progress="hidden")
    for event in (stop.click, undo.click):
        event(page.stop, queue=False, api_visibility="private")
    # waits for the text that was stopped: what it still shows would replace this
    when([undo.click], undone, [before], [text, facts], errors, show_progress="hidden")


def undone(before: str) -> tuple[str, str]:
    """The text before the last continuation, and the line under it."""
    return before, status("Undone.")


def continued(page: Page, name: str, text: str, settings: Any, visitor: str) -> Iterator[tuple[str, str, str]]:
    """The text with its continuation so far, the line under it, and the text that it began with."""
    with page.library.lock:
        opened = page.library.open(name)
    opened.refuse_classifier()
    *chosen, wanted = settings
    length = length_of(wanted, page.max_new_tokens)
    ids = opened.ids(text)
    kept = fitting(opened, ids, min(length, opened.positions - 1))
    writing = Writing(page.library, opened, kept, sampling_of(*chosen), min(length, opened.positions - 1))
    page.running[visitor] = writing
    new = ""
    try:
        yield text, status("Reading the text ..."), text
        for new in writing.texts():
            yield text + new, status(f"Writing: {writing.pace}"), text
    finally:
        page.running.pop(visitor, None)
    end = "Stopped" if writing.was_stopped else "Done"
    note = f" (only the last {len(kept)} of {len(ids)} tokens were read)" if len(kept) < len(ids) else ""
    yield text + new, status(f"{end}: {writing.pace}{note}"), text
