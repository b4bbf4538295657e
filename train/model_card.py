"""What a person sees of a finished run: the model card and the picture of its loss."""

import math
import platform
import statistics
import textwrap
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData

from .card_data import PLACE, fenced, front, how_to_load

CARD_NAME, PICTURE_NAME = "README.md", "loss_curve.png"
TRAIN_COLOUR, VALIDATION_COLOUR, INK = "#9bb8d3", "#c4502c", "#33373d"


def draw_loss_curve(
    records: list[dict[str, Any]], path: Path, *, title: str, num_choices: int, per: str = "token"
) -> None:
    """Draw training loss (light) and validation loss (points, the last one labelled) over the tokens seen.

    Args:
        records: the lines of metrics.jsonl: `tokens_seen` with `loss` or with `eval_loss`.
        path: the PNG to write.
        title: what was trained.
        per: what the loss is a mean over.
        num_choices: its logarithm, the loss of a model that knows nothing, bounds the picture.
    """
    from matplotlib.figure import Figure  # no pyplot: it would pick a window system

    training = [(r["tokens_seen"] / 1e6, r["loss"]) for r in records if "loss" in r]
    validation = [(r["tokens_seen"] / 1e6, r["eval_loss"]) for r in records if "eval_loss" in r]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*training, strict=True), color=TRAIN_COLOUR, linewidth=0.8, alpha=0.5)  # one batch each
    axes.plot(*zip(*smoothed(training), strict=True), color=TRAIN_COLOUR, linewidth=2, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color=VALIDATION_COLOUR, markersize=4, label="validation")
        axes.annotate(
            f"{validation[-1][1]:.3f}", validation[-1], xytext=(6, 0), textcoords="offset points",
            color=VALIDATION_COLOUR, va="center", fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    last_tokens = max(tokens for tokens, _ in training + validation)
    axes.axhline(math.log(num_choices), color=INK, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"guessing: ln({num_choices}) = {math.log(num_choices):.2f}", (last_tokens, math.log(num_choices)),
        xytext=(0, -11), textcoords="offset points", ha="right", fontsize=8, color=INK,
    )  # fmt: skip
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel(f"loss (nats per {per})")
    axes.set_title(textwrap.fill(title, 90), loc="left", fontsize=10, color=INK)
    axes.grid(axis="y", color="#e8e8e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))
    figure.savefig(path)


def smoothed(points: list[tuple[float, float]], reach: int = 4) -> list[tuple[float, float]]:
    """Each point's y replaced by the mean of up to `reach` neighbours on either side, equally many on both."""
    means = []
    for i, (x, _) in enumerate(points):
        width = min(reach, i, len(points) - 1 - i)
        means.append((x, statistics.fmean(y for _, y in points[i - width : i + width + 1])))
    return means


def run_figures(records: list[dict[str, Any]]) -> dict[str, str]:
    """The figures of a whole run, from the lines of its metrics.jsonl."""
    last = last_evaluation(records)
    speeds = [record["tokens_per_second"] for record in records if "tokens_per_second" in record]
    return {
        "validation loss (nats per token)": f"{last['eval_loss']:.4f}",
        "validation perplexity (per token)": f"{last['eval_perplexity']:.2f}",
        "validation bits per byte": f"{last['eval_bits_per_byte']:.4f}",
        "steps": f"{last['step']:,}",
        "tokens seen": f"{last['tokens_seen']:,}",
        "tokens per second (median)": f"{statistics.median(speeds):,.0f}",
        "trained with": f"{processor()}, torch {torch.__version__}",
    }


def last_evaluation(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The last line of metrics.jsonl that holds figures of an evaluation."""
    return next(record for record in reversed(records) if "eval_loss" in record)


def processor() -> str:
    """The GPU, or else the kind of CPU, that this process computes on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"


def model_card(
    data: ModelCardData, facts: dict[str, Any], figures: dict[str, str], samples: list[dict[str, str]]
) -> str:
    """Write the README.md of a pretrained model.

    Args:
        data: its metadata.
        facts: `name`, `corpus` and `recipe` of the run, `data`: a Markdown list, and `measured`: on what.
        figures: rows of the table of results, each with its unit in the name.
        samples: `prompt` and `text` of the last evaluation.
    """
    shown = "\n\n".join(fenced(sample["prompt"] + sample["text"]) for sample in samples)
    prompt = repr(samples[0]["prompt"] if samples else "Once").replace("{", "{{").replace("}", "}}")
    text = CARD.format(
        name=facts["name"],
        corpus=facts["corpus"],
        rows="\n".join(f"| {name} | {value} |" for name, value in figures.items()),
        measured=facts["measured"],
        command=facts["recipe"].command,
        use=how_to_load(USE.replace("PROMPT", prompt), data),
        samples=shown or "No prompts were given.",
        data=facts["data"],
        recipe=fenced(facts["recipe"].text, "yaml"),
        place=PLACE,
    )
    return front(data, text)


USE = f"""\
{{first}}from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{PLACE}"{{extra}})
model = AutoModelForCausalLM.from_pretrained("{PLACE}"{{extra}})
inputs = tokenizer(PROMPT, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50, do_sample=True)[0]))
"""

CARD = """\
# {name}

A small GPT, pretrained from random weights with hf_scratch_gpt on {corpus}.

![training and validation loss](loss_curve.png)

| | |
|---|---|
{rows}

The figures were computed by `{command}` after its last step, on {measured}. On any other text:
`python -m train.evaluate --model {place} --text your.txt`.

## Use it

{use}

## What it writes

Continuations sampled at the last evaluation, prompt included:

{samples}

## What it was trained on

{data}

## How it was trained

`{command}` with this recipe.yaml:

{recipe}

## Limits

It continues text in the style of its training data and does nothing else: it has no knowledge of the world to rely on,
was not tuned to follow instructions or to be safe, and writes code that does not run.
"""
