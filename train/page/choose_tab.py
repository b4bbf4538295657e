"""The tab Choose: one step of generation under the glass, and texts that branch."""

from typing import Any

import gradio as gr
import torch

from ..settings.sampling import SamplingArguments
from ..views.branches import Branches
from ..views.choice import Choice, Knobs, choose
from ..views.predictions import candidates
from .events import when
from .library import INSIDE_TOKENS, OpenModel
from .markup import bar, caption, escaped, percent, picks, row, table, token
from .parts import Page, sampling_of, sampling_sliders, sentence, view

NUM_CANDIDATES = 15
NUM_TEXTS = 12
NAMES = {
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "repetition_penalty": "repetition penalty",
}


def build(page: Page) -> None:
    """Add the tab to the page."""
    gr.Markdown("Choose each token yourself, and see what every setting does to the probabilities.")
    with gr.Row(equal_height=False):
        text = gr.Textbox(
            "The mouse ate the", label="Beginning", lines=2, max_lines=6, elem_id="choose-text", scale=5, min_width=240
        )
        go = gr.Button("Start", variant="primary", elem_id="choose-go", scale=1, min_width=120)
    errors = sentence("choose-error")
    texts = view("choose-texts")
    with gr.Row(elem_classes="sg-buttons"):
        sample = gr.Button("Let the model choose", elem_id="choose-sample", min_width=150)
        cut = gr.Button("Delete what follows", elem_id="choose-cut", min_width=150)
    step = view("choose-step")
    sliders = sampling_sliders(None)
    state = gr.State(None)  # the name of the model, and the branches
    outputs, steps = [texts, step, state], Steps(page)

    def on(triggers: list[Any], function: Any, inputs: list[Any], **settings: Any) -> None:
        when(triggers, function, [*inputs, *sliders], outputs, errors, show_progress="hidden", **settings)

    on([go.click], steps.start, [page.model, text], api_name="choose")
    on([slider.change for slider in sliders], steps.draw_again, [state], trigger_mode="always_last")
    on([step.select], steps.take, [state])
    on([sample.click], steps.take_sample, [state])
    on([texts.select], steps.go, [state])
    on([cut.click], steps.delete, [state])


class Steps:
    """What the buttons of the tab do. Each returns the texts and the next step as HTML, and the state."""

    def __init__(self, page: Page) -> None:
        self.library = page.library

    def start(self, name: str, text: str, *settings: Any) -> tuple[Any, ...]:
        """Begin with a text."""
        with self.library.lock:
            opened = self.library.open(name)
            opened.refuse_classifier()
            return self._drawn(name, Branches.of(opened.ids(text, min(INSIDE_TOKENS, opened.positions))), settings)

    def draw_again(self, state: Any, *settings: Any) -> tuple[Any, ...]:
        """Show the step with other settings."""
        if state is None:
            return gr.skip(), gr.skip(), state
        name, branches = state
        return self._drawn(name, branches, settings)

    def take(self, event: gr.EventData, state: Any, *settings: Any) -> tuple[Any, ...]:
        """Go on with the token that was clicked."""
        name, branches = started(state)
        return self._drawn(name, limited(branches.take(int(event._data["token"]))), settings)

    def take_sample(self, state: Any, *settings: Any) -> tuple[Any, ...]:
        """Go on with the token that `generate` would choose."""
        name, branches = started(state)
        sampling = sampling_of(*settings)
        with self.library.lock:
            token = next_choice(self.library.open(name), branches, sampling).sample(sampling.seed)
        return self._drawn(name, limited(branches.take(token)), settings)

    def go(self, event: gr.EventData, state: Any, *settings: Any) -> tuple[Any, ...]:
        """Go to the token that was clicked."""
        name, branches = started(state)
        return self._drawn(name, branches.go(int(event._data["text"]), int(event._data["at"])), settings)

    def delete(self, state: Any, *settings: Any) -> tuple[Any, ...]:
        """Delete what follows."""
        name, branches = started(state)
        return self._drawn(name, branches.cut(), settings)

    def _drawn(self, name: str, branches: Branches, settings: Any) -> tuple[Any, ...]:
        with self.library.lock:
            opened = self.library.open(name)
            choice = next_choice(opened, branches, sampling_of(*settings))
            return texts_view(opened, branches), step_view(opened, choice), (name, branches)


def started(state: Any) -> tuple[str, Branches]:
    """The model and the branches.

    Raises:
        ValueError: there are none yet.
    """
    if state is None:
        raise ValueError("Type a beginning and press Start.")
    name, branches = state
    return name, branches


def limited(branches: Branches) -> Branches:
    """The branches, if they are not too many and not too long.

    Raises:
        ValueError: they are.
    """
    if len(branches.texts) > NUM_TEXTS:
        raise ValueError(f"There are {NUM_TEXTS} texts already: go on with one of them, or start again.")
    if len(branches.ids) > INSIDE_TOKENS:
        raise ValueError(f"This text has {INSIDE_TOKENS} tokens, the limit of this view: start again.")
    return branches


def next_choice(opened: OpenModel, branches: Branches, sampling: SamplingArguments) -> Choice:
    """What may follow the place of the branches."""
    ids = list(branches.ids)[-opened.positions :]
    with torch.no_grad():
        logits = opened.model(torch.tensor([ids], device=opened.model.device), use_cache=False).logits[0, -1]
    return choose(logits.cpu(), ids, knobs_of(sampling))


def knobs_of(sampling: SamplingArguments) -> Knobs:
    """The settings that `generate` would use."""
    values = sampling.generation
    return Knobs(
        temperature=sampling.temperature,
        top_k=values.get("top_k", 0),
        top_p=values.get("top_p", 1.0),
        min_p=values.get("min_p", 0.0),
        repetition_penalty=sampling.repetition_penalty,
    )


def texts_view(opened: OpenModel, branches: Branches) -> str:
    """All texts; each token after the beginning can be clicked to choose again after it."""
    lines = []
    for number, text in enumerate(branches.texts):
        buttons = []
        for place, piece in enumerate(opened.pieces(text), start=1):
            can_go = place >= branches.prompt_length
            is_here = number == branches.current and place == branches.at
            attributes = f'{picks(text=number, at=place)} data-key="{number}-{place}"' if can_go else "disabled"
            attributes += f' aria-pressed="{str(is_here).lower()}"'
            is_later = number == branches.current and place > branches.at
            buttons.append(token(piece, attributes=attributes, classes="sg-later" if is_later else ""))
        current = " sg-current" if number == branches.current else ""
        lines.append(f'<div class="sg-text{current}"><span>{number + 1}</span><div>{"".join(buttons)}</div></div>')
    how = "The next token follows the marked one. Click a token to go back; another choice begins a text beside it."
    return caption(how) + "".join(lines)


def step_view(opened: OpenModel, choice: Choice) -> str:
    """The most probable next tokens before and after the settings; a click forces one."""
    found = candidates(choice.before, NUM_CANDIDATES)
    rows = []
    for one, piece in zip(found, opened.pieces([one.id for one in found]), strict=True):
        after, knob = float(choice.after[one.id]), choice.cut_by(one.id)
        cut = f'<span class="sg-cut">cut off by {NAMES[knob]}</span>' if knob else percent(after)
        name = token(piece, attributes=f'{picks(token=one.id)} data-key="candidate-{one.rank}"')
        rows.append(row(name, percent(one.probability), bar(one.probability, "sg-before"), cut, bar(after),
                        classes="sg-gone" if knob else ""))  # fmt: skip
    return (
        caption("Left: what the model says. Right: what remains after the settings. Click a token to take it.")
        + table(["next token", "before", "", "after", ""], rows, "sg-choice")
        + stages_view(choice)
    )


def stages_view(choice: Choice) -> str:
    """What each setting did, in the order in which they act."""
    if not choice.stages:
        return '<p class="sg-facts">No setting changes anything: temperature 1, no top-k, top-p, min-p or penalty.</p>'
    items = []
    for stage in choice.stages:
        done = f"cut off {len(stage.cut):,} tokens with {percent(stage.cut_mass)} of the probability"
        kept = int((stage.probabilities > 0).sum())
        what = f"{done}; {kept:,} remain" if stage.cut else "changed the probabilities and cut off nothing"
        items.append(f"<li><b>{NAMES[stage.name]}</b> {escaped(what)}.</li>")
    return f'<p class="sg-facts">In this order:</p><ol class="sg-stages">{"".join(items)}</ol>'
