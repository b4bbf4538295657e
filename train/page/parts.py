"""Parts that several tabs use."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from ..settings.sampling import DEFAULT_TOP_K, SamplingArguments
from .library import Library
from .writing import Writing

HERE = Path(__file__).parent
WIDTH = 240  # pixels of a slider
ON_LOAD = "window.scratchGPT.attach(element, trigger, watch)"  # in script.js


@dataclass
class Page:
    """What all tabs of a page share.

    Attributes:
        model: the component with the name of the model.
        max_new_tokens: the limit of all visitors.
        running: the text that is written in each session.
    """

    library: Library
    model: Any
    max_new_tokens: int
    running: dict[str, Writing] = field(default_factory=dict)

    def stop(self, request: gr.Request) -> None:
        """End the text that is written in a session."""
        if (writing := self.running.get(session(request))) is not None:
            writing.stop()


def session(request: gr.Request | None) -> str:
    """The name of a session."""
    return str(getattr(request, "session_hash", None))


def view(element: str, value: str = "", **settings: Any) -> gr.HTML:
    """A place for HTML of our own, whose buttons send a `select` event."""
    return gr.HTML(
        value, elem_id=element, elem_classes=["sg-view"], js_on_load=ON_LOAD, apply_default_css=False, **settings
    )


def sentence(element: str) -> gr.HTML:
    """A place for the sentence of an error."""
    return gr.HTML(elem_id=element, elem_classes=["sg-view", "sg-sentence"], apply_default_css=False)


def sampling_sliders(max_new_tokens: int | None) -> list[Any]:
    """The settings of sampling: temperature, top-k, top-p, min-p, repetition penalty, seed, and the length.

    Args:
        max_new_tokens: the limit of the length; None: it is not asked for.
    """
    with gr.Accordion("How the next token is chosen", open=True, elem_classes="sg-sliders"), gr.Row():
        sliders = [
            slider("Temperature (0: always the most probable)", 0, 2, 0.8, 0.05),
            slider("Top-k: only the k most probable (0: all)", 0, 200, DEFAULT_TOP_K, 1),
            slider("Top-p: only the most probable that reach p", 0.05, 1, 1, 0.01),
            slider("Min-p: at least this share of the best", 0, 0.95, 0, 0.01),
            slider("Repetition penalty (1: none)", 0.5, 2, 1, 0.05),
            gr.Number(0, label="Seed: the same seed, the same text", precision=0, minimum=0, min_width=WIDTH),
        ]
        if max_new_tokens is not None:
            sliders.append(slider("Length: new tokens", 1, max_new_tokens, min(128, max_new_tokens), 1))
    return sliders


def slider(label: str, lowest: float, highest: float, value: float, step: float) -> Any:
    """A slider; its element can be found by the first word of its label."""
    name = label.split()[0].strip(":").lower()
    return gr.Slider(
        lowest, highest, value, step=step, label=label, buttons=[], min_width=WIDTH, elem_classes=f"sg-{name}"
    )


def sampling_of(
    temperature: float, top_k: float, top_p: float, min_p: float, repetition_penalty: float, seed: float | None
) -> SamplingArguments:
    """The settings of the sliders, checked as those of a command line.

    Raises:
        ValueError: a setting is out of range.
    """
    is_greedy = temperature == 0
    return SamplingArguments(
        temperature=float(temperature),
        top_k=None if is_greedy else int(top_k),
        top_p=None if is_greedy else float(top_p),
        min_p=None if is_greedy else float(min_p),
        repetition_penalty=float(repetition_penalty),
        seed=int(seed or 0),
    )


def length_of(wanted: float, limit: int) -> int:
    """The number of new tokens.

    Raises:
        ValueError: more than the limit of the page, or less than one.
    """
    if not 1 <= wanted <= limit:
        raise ValueError(f"Length is {wanted:g}: it must be from 1 to {limit}.")
    return int(wanted)
