"""Merge the metadata of a local model card with that of the card on the Hub, which people may have edited."""

import copy
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

DESCRIBE_FILES = ("library_name", "pipeline_tag", "base_model", "base_model_relation")  # the local values win
JOINED = ("tags", "datasets", "language", "metrics")


def merge_metadata(
    ours: ModelCardData, theirs: ModelCardData, given: Mapping[str, Any]
) -> tuple[ModelCardData, list[str]]:
    """Merge the local metadata with that on the Hub.

    Values from the command line win. The local values of DESCRIBE_FILES replace the Hub's. The lists in JOINED and
    evaluation results are joined. For everything else the Hub's value is kept.

    Args:
        ours: local metadata.
        theirs: metadata on the Hub.
        given: values from the command line; None and [] stand for "not given".

    Returns:
        the merged metadata, and a note about each value that differs.
    """
    given = {key: value for key, value in given.items() if value not in (None, [])}
    merged, notes = copy.deepcopy(vars(theirs)), []
    for key, value in copy.deepcopy(vars(ours)).items():
        on_hub = theirs.get(key)
        if value is None or key in given or key in ("eval_results", "model_name"):
            continue
        if key in JOINED:
            merged[key] = _joined(value, on_hub)
        elif on_hub is None or on_hub == value or key in DESCRIBE_FILES:
            merged[key] = value
            if on_hub not in (None, value):
                notes.append(f"{key}: {value} replaces {on_hub} on the Hub")
        else:
            notes.append(f"{key}: keeping {on_hub} from the Hub; --{key} {value} would replace it")
    if theirs.base_model and not ours.base_model and "base_model" not in given:
        notes.append(f"base_model: keeping {theirs.base_model} from the Hub; the local card has none")
    merged |= _joined_results(ours, theirs) | given
    if merged.get("language") is not None:
        merged["language"] = _norwegian(merged["language"])
    return ModelCardData(**merged), notes


def _joined(ours: Any, theirs: Any) -> list[Any]:
    both = [*_as_list(ours), *_as_list(theirs)]
    return [one for number, one in enumerate(both) if one not in both[:number]]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _norwegian(language: Any) -> Any:
    """PyYAML reads the language code `no` as False and would write it back so."""
    if isinstance(language, list):
        return [_norwegian(one) for one in language]
    return "no" if language is False else language


def _joined_results(ours: ModelCardData, theirs: ModelCardData) -> dict[str, Any]:
    """Our results, and those of theirs that measure something else."""
    measured = [_measure(result) for result in ours.eval_results or []]
    others = [result for result in theirs.eval_results or [] if _measure(result) not in measured]
    results = copy.deepcopy([*(ours.eval_results or []), *others])
    name = ours.model_name if ours.eval_results else theirs.model_name
    return {"eval_results": results or None, "model_name": name}


def _measure(result: EvalResult) -> tuple[Any, ...]:
    """The task, dataset and metric of a result."""
    dataset = (result.dataset_type, result.dataset_config, result.dataset_split)
    return result.task_type, dataset, (result.metric_type, result.metric_config, result.metric_args)
