"""What a person sees of a finished run: the model card and the picture of its loss."""

import statistics
from typing import Any

import torch
from huggingface_hub import ModelCardData

from ...data.blocks import SPLITS, PreparedData
from .metadata import PLACE, Source, fenced, front, how_to_load, processor


def run_metrics(records: list[dict[str, Any]]) -> dict[str, str]:
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
`scratch-gpt evaluate --model {place} --text your.txt`.

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


def data_facts_in_words(data: PreparedData, max_eval_samples: int) -> dict[str, str]:
    """What the card says of the data: the corpus, both splits as a Markdown list, and what the figures were made on."""
    lines = []
    for split, facts in data.manifest["splits"].items():
        size = f"{facts['num_documents']:,} documents, {facts['num_bytes']:,} bytes, {facts['num_tokens']:,} tokens"
        lines.append(f"- {split}: {corpus_source(data, split).in_words}: {size}")
    trained_on, measured_on = (corpus_source(data, split).description for split in SPLITS)
    num_blocks = len(data.validation)
    measured = f"{min(max_eval_samples or num_blocks, num_blocks):,} of {num_blocks:,} blocks of {measured_on}"
    return {"corpus": trained_on, "data": "\n".join(lines), "measured": measured}


def corpus_source(data: PreparedData, split: str) -> Source:
    """Where the text of a split comes from; data of earlier versions does not say whether it is on the Hub."""
    return Source(data.manifest["corpus"][split]["description"], **data.manifest["splits"][split].get("origin", {}))
