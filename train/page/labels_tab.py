"""The tab Labels: what a classifier says of a text."""

import gradio as gr
import torch

from ..data.plain_text import encode_texts
from .events import when
from .library import OpenModel
from .markup import bar, caption, escaped, percent, row, table
from .parts import Page, sentence, view


def build(page: Page) -> None:
    """Add the tab to the page."""
    gr.Markdown("The labels that the classifier gives a text, with their probabilities.")
    with gr.Row(equal_height=False):
        text = gr.Textbox(label="Text", lines=3, max_lines=9, elem_id="labels-text", scale=5, min_width=240)
        go = gr.Button("Label it", variant="primary", elem_id="labels-go", scale=1, min_width=120)
    errors = sentence("labels-error")
    labels = view("labels")

    def label(name: str, text: str) -> tuple[str]:
        with page.library.lock:
            return (labels_view(page.library.open(name), text),)

    when([go.click, text.submit], label, [page.model, text], [labels], errors, api_name="label", show_progress="hidden")


def labels_view(opened: OpenModel, text: str) -> str:
    """All labels of a text, most probable first.

    Raises:
        ValueError: the model is no classifier, or there is no text.
    """
    if not text.strip():
        raise ValueError("There is no text yet: type one.")
    probabilities = label_probabilities(opened, text)
    rows = [
        row(escaped(name), percent(share), bar(share))
        for name, share in sorted(probabilities.items(), key=lambda item: -item[1])
    ]
    return caption("The model's probability for each label; together they are 100 %.") + table(["label", "", ""], rows)


@torch.no_grad()
def label_probabilities(opened: OpenModel, text: str) -> dict[str, float]:
    """The softmax of the classifier's logits, by label.

    Raises:
        ValueError: the model is no classifier, or its outputs are not finite.
    """
    if not opened.is_classifier:
        raise ValueError(f"{opened.name} is a language model: use the other tabs.")
    opened.ids(text)  # which refuses a text that is too long
    (ids,) = encode_texts(opened.tokenizer, [text])
    longest = min(opened.tokenizer.model_max_length, opened.positions)
    logits = opened.model(torch.tensor([ids[:longest]], device=opened.model.device)).logits[0].float()
    if not logits.isfinite().all():
        raise ValueError(f"The outputs of {opened.name} are not finite: its weights are damaged.")
    names = opened.model.config.id2label
    return {str(names[number]): share for number, share in enumerate(logits.softmax(dim=-1).tolist())}
