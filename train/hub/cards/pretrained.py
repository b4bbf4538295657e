"""The model card of a pretrained model."""

import statistics
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...data.blocks import SPLITS, PreparedData
from ...settings.run_folder import CARD_FILE
from ...settings.words import counted
from .metadata import LANGUAGE_METRICS, model_metadata, model_tags
from .origin import Recipe, Source
from .template import hardware, render_card


def write_pretrained_card(
    folder: Path,
    model: PreTrainedModel,
    data: PreparedData,
    recipe: Recipe,
    records: list[dict[str, Any]],
    samples: list[dict[str, Any]],
    max_eval_samples: int,
    base: str | None = None,
) -> None:
    """Write the README.md of a pretrained model.

    Args:
        folder: contains the model.
        model: the trained model.
        data: its training and validation blocks.
        recipe: the settings of the run.
        records: the lines of metrics.jsonl.
        samples: the lines of samples.jsonl; the card shows those of the last evaluation.
        max_eval_samples: validation blocks per evaluation; 0: all.
        base: the model whose pretraining was continued, by its name on the Hub or in words; None: a new model.
    """
    num_parameters, last = model.num_parameters(), last_evaluation(records)
    name = f"scratch-gpt-{num_parameters / 1e6:.1f}M"
    tags = model_tags(str(model.config.model_type), folder, *([] if base else ["from-scratch"]))
    metrics = {metric: last[f"eval_{metric}"] for metric in LANGUAGE_METRICS}
    trained_on, measured_on = (corpus_source(data, split) for split in SPLITS)
    final_samples = [sample for sample in samples if sample["step"] == last["step"]]
    card = render_card(
        "pretrained.md.jinja",
        model_metadata(name, "text-generation", tags, trained_on, measured_on, metrics),
        title=name,
        corpus=trained_on.description,
        base=base,
        step=last["step"],
        metrics={"parameters": f"{num_parameters:,}"} | run_metrics(records),
        measured=evaluated_blocks(data, max_eval_samples),
        recipe=recipe,
        data=describe_splits(data),
        prompt=final_samples[0]["prompt"] if final_samples else "Once",
        samples=[sample["prompt"] + sample["text"] for sample in final_samples],
    )
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def run_metrics(records: list[dict[str, Any]]) -> dict[str, str]:
    """The metrics of a whole run, from the lines of metrics.jsonl, by names that include the units."""
    last = last_evaluation(records)
    speeds = [record["tokens_per_second"] for record in records if "tokens_per_second" in record]
    return {
        "validation loss (nats per token)": f"{last['eval_loss']:.4f}",
        "validation perplexity (per token)": f"{last['eval_perplexity']:.2f}",
        "validation bits per byte": f"{last['eval_bits_per_byte']:.4f}",
        "steps": f"{last['step']:,}",
        **({"tokens seen": f"{last['tokens_seen']:,}"} if "tokens_seen" in last else {}),  # not in a damaged log
        **({"tokens per second (median)": f"{statistics.median(speeds):,.0f}"} if speeds else {}),
        "trained with": hardware(),
    }


def last_evaluation(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The last line of metrics.jsonl with the metrics of an evaluation."""
    return next(record for record in reversed(records) if "eval_loss" in record)


def describe_splits(data: PreparedData) -> list[str]:
    """A line about the text of each split: its source and size."""
    return [
        f"{split}: {corpus_source(data, split).markdown}: {counted(facts['num_documents'], 'document')}, "
        f"{counted(facts['num_bytes'], 'byte')}, {counted(facts['num_tokens'], 'token')}"
        for split, facts in data.manifest["splits"].items()
    ]


def evaluated_blocks(data: PreparedData, max_eval_samples: int) -> str:
    """The part of the validation split that the metrics were computed on."""
    total = len(data.validation)
    count = min(max_eval_samples or total, total)
    return f"{count:,} of {total:,} blocks of {corpus_source(data, 'validation').description}"


def corpus_source(data: PreparedData, split: str) -> Source:
    """The source of the text of a split. Data prepared by earlier versions does not record a dataset on the Hub."""
    return Source(data.manifest["corpus"][split]["description"], **data.manifest["splits"][split].get("origin", {}))
