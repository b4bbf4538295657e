"""The tab Training: how a model has learned, or is learning right now."""

from pathlib import Path
from typing import Any

import gradio as gr

from .curves import curves_view
from .events import when
from .library import run_of
from .markup import caption, escaped
from .parts import Page, sentence, view
from .runs import RunView, fingerprint, read_run

INTERVAL = 2.0  # seconds between two looks at a run that goes on
NO_RUN = "This model is not in the folder of a training run, so there are no curves. That of a run is: runs/.../model."


def build(page: Page, tab: Any) -> None:
    """Add the tab to the page."""
    gr.Markdown(
        "The curves of the run that made the chosen model, live while it trains, and what it wrote at each step."
    )
    errors = sentence("training-error")
    state = view("training-state")
    number = gr.Slider(1, 2, 1, step=1, label="Sample", buttons=[], elem_id="training-slider")
    samples, curves = view("training-samples"), view("training-curves")
    seen = gr.State(None)  # the run and what it had written
    timer = gr.Timer(INTERVAL, active=False)
    outputs = [state, number, samples, curves, seen]

    def show(name: str, number: float) -> tuple[Any, ...]:
        folder = offered_run(page, name)
        return (*drawn(read_run(folder), number), (str(folder), fingerprint(folder)))

    def look_again(name: str, number: float, seen: Any) -> tuple[Any, ...]:
        folder = offered_run(page, name)
        if seen == (str(folder), fingerprint(folder)):
            return tuple(gr.skip() for _ in outputs)
        return show(name, number)

    def slide(name: str, number: float) -> tuple[Any, ...]:
        run = read_run(offered_run(page, name))
        step = step_at(run, number)
        return samples_view(run, step, number), curves_view(run, step)

    quiet: dict[str, Any] = {"show_progress": "hidden", "waits": False}
    when([tab.select, page.model.change], show, [page.model, number], outputs, errors, **quiet)
    when([timer.tick], look_again, [page.model, number, seen], outputs, errors, **quiet)
    when([number.input], slide, [page.model, number], [samples, curves], errors, trigger_mode="always_last", **quiet)
    tab.select(lambda: gr.Timer(active=True), None, timer, queue=False, api_visibility="private")


def offered_run(page: Page, name: str) -> Path:
    """The run of a model.

    Raises:
        ValueError: it has none, or the page does not offer it.
    """
    if not page.library.is_private and name not in page.library.names:
        raise ValueError("This page shows only the models of its list.")
    folder = run_of(name)
    if folder is None:
        raise ValueError(NO_RUN)
    return folder


def drawn(run: RunView, number: float) -> tuple[Any, ...]:
    """The state of the run, the slider, the samples, and the curves."""
    count = max(1, len(run.samples))
    number = min(max(1, number), count)
    step = step_at(run, number)
    slider = gr.Slider(
        minimum=1, maximum=max(2, count), value=number, label=f"Sample (1 to {count}): move it to watch the model learn"
    )
    return state_view(run), slider, samples_view(run, step, number), curves_view(run, step)


def step_at(run: RunView, number: float) -> int | None:
    """The step of a sample; None if there is none."""
    steps = list(run.samples)
    return steps[min(len(steps), max(1, int(number))) - 1] if steps else None


def state_view(run: RunView) -> str:
    """How far the run is."""
    steps = "" if run.step is None else f", step {run.step:,}" + (f" of {run.max_steps:,}" if run.max_steps else "")
    return f'<p class="sg-facts">This run is <b>{escaped(run.state or "of unknown state")}</b>{steps}.</p>'


def samples_view(run: RunView, step: int | None, number: float) -> str:
    """What the model wrote at a step."""
    if step is None:
        return caption("This run has written no samples yet.")
    blocks = "".join(
        f'<div class="sg-sample"><pre><b>{escaped(prompt)}</b>{escaped(text)}</pre></div>'
        for prompt, text in run.samples[step]
    )
    return f"<h3>What it wrote at step {step:,}</h3>" + caption("Grey: the prompt. Black: the model.") + blocks
