"""The cards of models that were tuned: a classifier, an assistant."""

from typing import Any

import torch

from .model_card import processor

FRONT = """\
---
library_name: transformers
pipeline_tag: {task}
tags: [scratch_gpt, from-scratch]
---

# {title}

{summary}

![training and validation loss](loss_curve.png)

"""

CLASSIFIER = """\
| | |
|---|---|
{figures}

On the test texts, which nothing was chosen by:

{table}

![confusion matrix of the test](confusion_matrix.png)

## Use it

```python
import hf_scratch_gpt
from transformers import pipeline

classify = pipeline("text-classification", model="path/to/this/folder")
print(classify("some text", truncation=True))
```

## How it was trained

`python -m train.finetune_classifier recipe.yaml` with this recipe.yaml, and --model, --data and --output_dir:

```yaml
{recipe}```

## Limits

It knows the labels above and nothing else: any text gets one of them. Texts unlike its training data get labels that
mean little, with probabilities that may still be high.
"""

ASSISTANT = """\
| | before | after |
|---|---|---|
{figures}

## Before and after

Held-out prompts, greedy answers. "Reference" is what the data says.

{samples}

## Use it

```python
import hf_scratch_gpt
from transformers import pipeline

chat = pipeline("text-generation", model="path/to/this/folder")
messages = [{{"role": "user", "content": {example!r}}}]
print(chat(messages, max_new_tokens=100, do_sample=False)[0]["generated_text"][-1]["content"])
```

## How it was trained

`python -m train.finetune recipe.yaml` with this recipe.yaml, and --model, --data and --output_dir:

```yaml
{recipe}```

## Limits

It answers in the form of its training data. What it says is not to be relied on, and it was not tuned to be safe.
"""


def classifier_card(recipe: str, results: dict[str, Any], table: str) -> str:
    """Write the README.md of a classifier.

    Args:
        recipe: its settings, as YAML.
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
    summary = "A text classifier, fine-tuned with hf_scratch_gpt."
    front = FRONT.format(task="text-classification", title="scratch-gpt classifier", summary=summary)
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    return front + CLASSIFIER.format(figures=rows, table=table, recipe=recipe)


def assistant_card(recipe: str, metrics: list[dict[str, Any]], shown: list[dict[str, str]], step: int) -> str:
    """Write the README.md of a model that was tuned on conversations.

    Args:
        recipe: its settings, as YAML.
        metrics: the lines of metrics.jsonl.
        shown: `prompt`, `before`, `after` and `reference` of some held-out conversations.
        step: of the weights.
    """
    evaluations = [record for record in metrics if "eval_loss" in record]
    first, final = evaluations[0], next(record for record in evaluations if record["step"] == step)
    rows = "\n".join(
        f"| {title} | {first[name]:.4f} | {final[name]:.4f} |"
        for title, name in (
            ("loss on held-out answers (nats per token)", "eval_loss"),
            ("perplexity", "eval_perplexity"),
            ("bits per byte", "eval_bits_per_byte"),
        )
    )
    samples = "\n\n".join(
        f"```text\n{sample['prompt']}\n\nbefore:    {sample['before']}\nafter:     {sample['after']}\n"
        f"reference: {sample['reference']}\n```"
        for sample in shown
    )
    summary = f"A model tuned on conversations with hf_scratch_gpt; the weights are those of step {step}."
    front = FRONT.format(task="text-generation", title="scratch-gpt assistant", summary=summary)
    example = shown[0]["prompt"] if shown else "Hello!"
    return front + ASSISTANT.format(figures=rows, samples=samples, example=example, recipe=recipe)
