"""The YAML metadata of a model card, which the Hub filters by and displays."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .origin import Origin, Source

CODE_TAG = "custom_code"  # the Hub's tag for models that bring Python files
LOSS_UNITS = {"text-generation": "token", "text-classification": "text"}
# name in a run: name on the Hub, title, arguments of the metric
METRICS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "loss": ("loss", "Loss (nats per {unit})", None),
    "perplexity": ("perplexity", "Perplexity (per token)", None),
    "bits_per_byte": ("bits_per_byte", "Bits per byte", None),
    "accuracy": ("accuracy", "Accuracy", None),
    "f1": ("f1", "F1 (mean over labels)", {"average": "macro"}),
}
LANGUAGE_METRICS, LABEL_METRICS = ("loss", "perplexity", "bits_per_byte"), ("accuracy", "f1", "loss")


def model_metadata(
    name: str,
    task: str,
    tags: Sequence[str],
    trained_on: Source,
    measured_on: Source,
    metrics: Mapping[str, float],
    base_model: str | None = None,
) -> ModelCardData:
    """The metadata of any model. A run knows neither licence nor the language of its text: `publish` adds them.

    Args:
        name: shown in lists of results.
        task: pipeline tag.
        metrics: values by the names in METRICS.
        base_model: name on the Hub.
    """
    results = eval_results(task, measured_on, metrics)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=list(tags),
        language=list(trained_on.language) or None,
        datasets=[trained_on.dataset] if trained_on.dataset else None,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        metrics=[METRICS[metric][0] for metric in metrics],
        model_name=name if results else None,
        eval_results=results or None,
    )


def finetuned_metadata(
    name: str, task: str, tags: Sequence[str], origin: Origin, metrics: Mapping[str, float]
) -> ModelCardData:
    """The metadata of a fine-tuned model."""
    return model_metadata(name, task, tags, origin.trained_on, origin.measured_on, metrics, origin.base_model)


def adapter_metadata(merged: ModelCardData) -> ModelCardData:
    """The metadata of an adapter, from that of the model it was merged into; both have the same metrics."""
    tags = ["lora", *(tag for tag in merged.tags or [] if tag != CODE_TAG)]
    relation = "adapter" if merged.base_model else None
    return ModelCardData(**vars(merged) | {"library_name": "peft", "tags": tags, "base_model_relation": relation})


def model_tags(model_type: str, folder: Path, *more: str) -> list[str]:
    """The tags of the model in a folder, with CODE_TAG if the folder has Python files."""
    return [model_type, *more, *([CODE_TAG] if any(path.suffix == ".py" for path in folder.iterdir()) else [])]


def eval_results(task: str, measured_on: Source, metrics: Mapping[str, float]) -> list[EvalResult]:
    """The metrics in the Hub's format. Values that are not finite are omitted: JSON has none."""
    results = []
    for name, value in metrics.items():
        metric_type, title, arguments = METRICS[name]
        if math.isfinite(value):
            result = EvalResult(
                task_type=task,
                task_name=task.replace("-", " ").capitalize(),
                dataset_type=measured_on.identifier,
                dataset_name=measured_on.description,
                dataset_config=measured_on.config,
                dataset_split=measured_on.split,
                metric_type=metric_type,
                metric_name=title.format(unit=LOSS_UNITS[task]),
                metric_value=round(float(value), 6),
                metric_args=arguments,
            )
            results.append(result)
    return results
