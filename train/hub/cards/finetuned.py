"""The model cards of fine-tuned models: an assistant, a classifier, and the adapter of either."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ...metrics.label_scores import label_rows, majority_rate
from ...settings.run_folder import CARD_FILE
from .markdown import plain, table
from .metadata import CODE_TAG, LABEL_METRICS, LANGUAGE_METRICS, adapter_metadata, finetuned_metadata, model_tags
from .origin import Origin
from .template import render_card

ASSISTANT_METRICS = {
    "loss on held-out answers (nats per token)": "eval_loss",
    "perplexity": "eval_perplexity",
    "bits per byte": "eval_bits_per_byte",
}


def write_assistant_card(
    folder: Path,
    adapter: Path,
    model_type: str,
    origin: Origin,
    notes: list[str],
    evaluations: tuple[dict[str, Any], dict[str, Any]],
    samples: list[dict[str, str]],
) -> None:
    """Write the README.md of a model that was fine-tuned on conversations, and of its adapter, if it has one.

    Args:
        folder: contains the model.
        adapter: the folder of the adapter; it does not exist if none was trained.
        model_type: of the model's config.
        origin: the base model, data and recipe.
        notes: lines on the number and length of the conversations.
        evaluations: before the first step, and with the final weights.
        samples: `prompt`, `before`, `after` and `reference` of some held-out conversations.
    """
    first, final = evaluations
    title, tags = f"{model_type.replace('_', '-')} assistant", model_tags(model_type, folder, "conversational")
    metrics = {metric: final[f"eval_{metric}"] for metric in LANGUAGE_METRICS}
    metadata = finetuned_metadata(title, "text-generation", tags, origin, metrics)
    values = _origin_values(title, origin, notes)
    card = render_card(
        "assistant.md.jinja",
        metadata,
        **values,
        step=final["step"],
        metrics={name: (first[key], final[key]) for name, key in ASSISTANT_METRICS.items()},
        measured=origin.measured_on.description,
        prompt=samples[0]["prompt"] if samples else "Hello!",
        samples=samples,
    )
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    if adapter.exists():
        scores = {
            name: f"{final[key]:.4f} (before fine-tuning: {first[key]:.4f})" for name, key in ASSISTANT_METRICS.items()
        }
        (adapter / CARD_FILE).write_text(adapter_card(metadata, values, origin, scores), encoding="utf-8")


def write_classifier_card(
    folder: Path,
    adapter: Path,
    model_type: str,
    origin: Origin,
    notes: list[str],
    results: dict[str, Any],
    labels: Sequence[str],
) -> None:
    """Write the README.md of a classifier, and of its adapter, if it has one.

    Args:
        folder: contains the model.
        adapter: the folder of the adapter; it does not exist if none was trained.
        model_type: of the model's config.
        origin: the base model, data and recipe.
        notes: lines on the number of texts.
        results: the metrics of the test, named `test_...`, and the `step` of the weights.
        labels: names of the labels, in the order of the confusion matrix.
    """
    title, tags = f"{model_type.replace('_', '-')} classifier", model_tags(model_type, folder)
    metrics = {metric: results[f"test_{metric}"] for metric in LABEL_METRICS}
    metadata = finetuned_metadata(title, "text-classification", tags, origin, metrics)
    values, scores = _origin_values(title, origin, notes), classifier_scores(results, labels)
    card = render_card(
        "classifier.md.jinja",
        metadata,
        **values,
        scores=scores,
        table=table_of_labels(results["test_confusion_matrix"], labels),
    )
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    if adapter.exists():
        (adapter / CARD_FILE).write_text(adapter_card(metadata, values, origin, scores, labels), encoding="utf-8")


def classifier_scores(results: dict[str, Any], labels: Sequence[str]) -> dict[str, str]:
    """The test scores by name, with the accuracy of always answering the most frequent label."""
    rate, most_frequent = majority_rate(results["test_confusion_matrix"])
    return {
        "test accuracy": f"{results['test_accuracy']:.2%}",
        f"majority rate (always {plain(labels[most_frequent])})": f"{rate:.2%}",
        "test F1 (mean over labels)": f"{results['test_f1']:.4f}",
        "test loss (nats per text)": f"{results['test_loss']:.4f}",
        "weights of step": str(results["step"]),
    }


def _origin_values(title: str, origin: Origin, notes: list[str]) -> dict[str, Any]:
    """The template variables that assistants and classifiers share."""
    sources = [f"train: {origin.trained_on.markdown}", f"evaluation: {origin.measured_on.markdown}"]
    return {
        "title": title,
        "base_model": origin.base_markdown,
        "recipe": origin.recipe,
        "data": [*sources, *map(plain, notes)],
    }


def table_of_labels(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Precision, recall, F1 and number of examples of each label, as a Markdown table."""
    header, *rows = label_rows(confusion, labels)
    return table(header, [[plain(label), *values] for label, *values in rows])


def adapter_card(
    merged: ModelCardData,
    values: dict[str, Any],
    origin: Origin,
    scores: dict[str, str],
    labels: Sequence[str] = (),
) -> str:
    """The README.md of an adapter.

    Args:
        merged: the metadata of the model that it was merged into.
        values: the template variables of that model's card.
        origin: the base model, data and recipe.
        scores: of that model, by name.
        labels: of a classifier.
    """
    auto_class = "AutoModelForSequenceClassification" if labels else "AutoModelForCausalLM"
    return render_card(
        "adapter.md.jinja",
        adapter_metadata(merged),
        **values | {"has_code": CODE_TAG in (merged.tags or [])},
        base_name=origin.base_model,
        measured=origin.measured_on.description,
        auto_class=auto_class,
        scores=scores,
        labels=", ".join(labels),
        num_labels=len(labels),
    )
