"""The page as a whole, and its server."""

import os
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported; no request leaves this machine

import gradio as gr

from . import chat_tab, choose_tab, compare_tab, inside_tab, labels_tab, training_tab, write_tab
from .events import when
from .library import Library, OpenModel
from .parts import Page, sentence

HERE = Path(__file__).parent
TABS: dict[str, Any] = {
    "Write": write_tab,
    "Chat": chat_tab,
    "Inside": inside_tab,
    "Choose": choose_tab,
    "Compare": compare_tab,
    "Training": training_tab,
    "Labels": labels_tab,
}
TITLE = "scratch-gpt: a look inside"


def build_page(library: Library, max_new_tokens: int) -> Any:
    """The page, whose first model is the first one of the library.

    Raises:
        ValueError, OSError: that model cannot be opened.
    """
    first = library.open(library.names[0])
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML('<h1 class="sg-title">scratch-gpt <span>a look inside</span></h1>', elem_classes=["sg-view"])
        model = gr.Dropdown(
            library.names, value=first.name, label="Model", elem_id="model",
            allow_custom_value=library.is_private,
            info="A folder, or a name on the Hugging Face Hub" if library.is_private else None,
        )  # fmt: skip
        errors = sentence("model-error")
        page = Page(library, model, max_new_tokens)
        with gr.Tabs(elem_id="tabs", selected=first_tab(first)) as tabs:
            opened = {label: build_tab(page, label, is_of_use(label, first)) for label in TABS}

    def choose(name: str) -> list[Any]:
        with library.lock:
            chosen = library.open(name)
        # gradio does not hide a tab again; one that is of no use says so in a sentence
        shown = [gr.Tab(visible=True) if is_of_use(label, chosen) else gr.skip() for label in TABS]
        return [gr.Tabs(selected="labels") if chosen.is_classifier else gr.skip(), *shown]

    with blocks:
        when([model.change], choose, [model], [tabs, *opened.values()], errors, show_progress_on=[model])
    return blocks


def build_tab(page: Page, label: str, visible: bool) -> Any:
    """A tab with its parts."""
    name = label.lower()
    with gr.Tab(label, id=name, elem_id=f"tab-{name}", visible=visible) as tab:
        if TABS[label] is training_tab:
            training_tab.build(page, tab)
        else:
            TABS[label].build(page)
    return tab


def is_of_use(label: str, opened: OpenModel) -> bool:
    """Whether a tab says something about a model."""
    if label == "Training":
        return True
    if label == "Chat":
        return not opened.is_classifier and opened.tokenizer.chat_template is not None
    return opened.is_classifier == (label == "Labels")


def first_tab(opened: OpenModel) -> str:
    """The tab that a model begins with."""
    return "labels" if opened.is_classifier else "write"


def launch_settings() -> dict[str, Any]:
    """How the page looks: arguments of `launch`."""
    theme = gr.themes.Base(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))  # no file to load
    script = (HERE / "script.js").read_text(encoding="utf-8")
    return {
        "theme": theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"),
        "css": (HERE / "style.css").read_text(encoding="utf-8"),
        "head": f'<script>{script}</script><meta name="color-scheme" content="light dark">',
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
    }
