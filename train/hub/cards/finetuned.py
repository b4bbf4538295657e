"""The cards of models that were tuned: a classifier, an assistant, and the adapter of either."""

from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import ModelCardData

from ...metrics.evaluate_metrics import classification_metrics
from .metadata import PLACE, Origin, adapter_data, fenced, front, how_to_load, processor


def table_of_labels(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Precision, recall, F1 and number of examples of each label, as a Markdown table."""
    lines = ["| label | precision | recall | F1 | examples |", "|---|---|---|---|---|"]
    for number, name in enumerate(names):
        row = classification_metrics(confusion, positive=number)
        figures = " | ".join(f"{row[f'positive_{figure}']:.4f}" for figure in ("precision", "recall", "f1"))
        lines.append(f"| {name} | {figures} | {sum(confusion[number])} |")
    return "\n".join(lines)


BASE_PLACE = "path/to/the/base/model"
HEAD = """\
# {title}

{summary}

![training and validation loss](loss_curve.png)

"""
CLASSIFIER = """\
| | |
|---|---|
{figures}

The figures were computed by `{command}` with the weights of step {step}, on the test texts, which nothing was chosen
by:

{table}

![confusion matrix of the test](confusion_matrix.png)
"""
ASSISTANT = """\
| | before | after |
|---|---|---|
{figures}

The figures were computed by `{command}` on held-out conversations ({measured}), before the first step and with the
weights of step {step}.

## Before and after

Held-out prompts, greedy answers. "Reference" is what the data says.

{samples}
"""
REST = """
## Use it

{use}

## What it was trained on

{data}

## How it was trained

`{command}` with this recipe.yaml:

{recipe}

## Limits

{limits}
"""
LIMITS_OF_CLASSIFIERS = """\
It knows the labels above and nothing else: any text gets one of them. Texts unlike its training data get labels that
mean little, with probabilities that may still be high."""
LIMITS_OF_ASSISTANTS = """\
It answers in the form of its training data. What it says is not to be relied on, and it was not tuned to be safe."""
CLASSIFY = f"""\
{{first}}from transformers import pipeline

classify = pipeline("text-classification", model="{PLACE}"{{extra}})
print(classify("some text", truncation=True))
"""
CHAT = f"""\
{{first}}from transformers import pipeline

chat = pipeline("text-generation", model="{PLACE}"{{extra}})
messages = [{{{{"role": "user", "content": EXAMPLE}}}}]
print(chat(messages, max_new_tokens=100, do_sample=False)[0]["generated_text"][-1]["content"])
"""
ADAPTER = """\
# {title}: adapter

A LoRA adapter for {base}, trained with hf_scratch_gpt by `{command}`. It changes nothing without that model.

## Use it

{use}
"""
ADAPT = f"""\
{{first}}from peft import PeftModel
from transformers import {{auto_class}}, AutoTokenizer

base = {{auto_class}}.from_pretrained("{{base}}"{{extra}}{{labels}})
model = PeftModel.from_pretrained(base, "{PLACE}")
tokenizer = AutoTokenizer.from_pretrained("{PLACE}")
"""


def classifier_card(data: ModelCardData, origin: Origin, notes: list[str], results: dict[str, Any], table: str) -> str:
    """Write the README.md of a classifier.

    Args:
        data: its metadata.
        origin: what it was made from.
        notes: how many texts there are.
        results: the figures of the test, and the `step` of the weights.
        table: the figures per label, as Markdown.
    """
    figures = {
        "test accuracy": f"{results['test_accuracy']:.2%}",
        "test F1 (mean over labels)": f"{results['test_f1']:.4f}",
        "test loss (nats per text)": f"{results['test_loss']:.4f}",
        "weights of step": f"{results['step']}",
        "trained with": f"{processor()}, torch {torch.__version__}",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    text = CLASSIFIER.format(figures=rows, table=table, command=origin.recipe.command, step=results["step"])
    summary = f"A text classifier, fine-tuned from {origin.base_in_words} with hf_scratch_gpt."
    head = HEAD.format(title=data.model_name, summary=summary)
    return front(data, head + text + rest_of_card(data, origin, notes, CLASSIFY, LIMITS_OF_CLASSIFIERS))


def assistant_card(
    data: ModelCardData, origin: Origin, notes: list[str], evaluations: list[dict[str, Any]],
    shown: list[dict[str, str]],
) -> str:  # fmt: skip
    """Write the README.md of a model that was tuned on conversations.

    Args:
        data: its metadata.
        origin: what it was made from.
        notes: how many conversations there are.
        evaluations: the first one, and that of the weights.
        shown: `prompt`, `before`, `after` and `reference` of some held-out conversations.
    """
    first, final = evaluations
    rows = "\n".join(
        f"| {title} | {first[name]:.4f} | {final[name]:.4f} |"
        for title, name in (
            ("loss on held-out answers (nats per token)", "eval_loss"),
            ("perplexity", "eval_perplexity"),
            ("bits per byte", "eval_bits_per_byte"),
        )
    )
    samples = "\n\n".join(
        fenced(
            f"{sample['prompt']}\n\nbefore:    {sample['before']}\nafter:     {sample['after']}\n"
            f"reference: {sample['reference']}"
        )
        for sample in shown
    )
    facts = {"command": origin.recipe.command, "measured": origin.measured_on.description, "step": final["step"]}
    text = ASSISTANT.format(figures=rows, samples=samples, **facts)
    summary = (
        f"A model tuned from {origin.base_in_words} on conversations with hf_scratch_gpt; "
        f"the weights are those of step {final['step']}."
    )
    example = repr(shown[0]["prompt"] if shown else "Hello!").replace("{", "{{").replace("}", "}}")
    head = HEAD.format(title=data.model_name, summary=summary)
    program = CHAT.replace("EXAMPLE", example)
    return front(data, head + text + rest_of_card(data, origin, notes, program, LIMITS_OF_ASSISTANTS))


def rest_of_card(data: ModelCardData, origin: Origin, notes: list[str], program: str, limits: str) -> str:
    """How to load it, what it was made from and how, and what it cannot."""
    lines = [f"train: {origin.trained_on.in_words}", f"measured on: {origin.measured_on.in_words}", *notes]
    return REST.format(
        use=how_to_load(program, data),
        data="\n".join(f"- {' '.join(line.split())}" for line in lines),
        command=origin.recipe.command,
        recipe=fenced(origin.recipe.text, "yaml"),
        limits=limits,
    )


def adapter_card(data: ModelCardData, origin: Origin, num_labels: int | None = None) -> str:
    """Write the README.md of an adapter.

    Args:
        data: the metadata of the model that it was merged into.
        origin: what it was made from.
        num_labels: of a classifier.
    """
    program = ADAPT.format(
        first="{first}",
        extra="{extra}",
        auto_class="AutoModelForSequenceClassification" if num_labels else "AutoModelForCausalLM",
        base=origin.base_model or BASE_PLACE,
        labels=f", num_labels={num_labels}" if num_labels else "",
    )
    use = how_to_load(program, data, "that lie beside the base model")
    command = origin.recipe.command
    text = ADAPTER.format(title=data.model_name, base=origin.base_in_words, command=command, use=use)
    return front(adapter_data(data), text)
