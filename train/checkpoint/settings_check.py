"""Which settings may change when a run continues, and what to say when others did."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..settings.finetuning import REQUIRED_TRAINABLE
from .manifest import versions

# What a run is made of: with another base model, or another trained part of it, nothing can be continued.
NEVER_CHANGE = {"base", "tokenizer_sha256", "trainable", "class_weights", *REQUIRED_TRAINABLE}
FINGERPRINTS = {
    "data": "the data are not those that the run was started with",
    "base": "the weights of --model are not those that the run was started with",
    "tokenizer_sha256": "the tokenizer is not the one that the run was started with",
}
SHA256 = re.compile(r"[0-9a-f]{64}")


def check_settings(
    run: Path, manifest: Mapping[str, Any], settings: Mapping[str, Any], allow_change: Sequence[str], num_processes: int
) -> list[str]:
    """Refuse to continue with settings that would have given another run; return messages about allowed changes.

    Args:
        manifest: of the checkpoint to continue from, or of the finished model.
        settings: of this call.
        allow_change: names of settings that may differ.
        num_processes: of this call; another number changes rounding only.

    Raises:
        ValueError: the settings that differ, with old and new value.
    """
    changes = changed_settings(manifest["settings"], settings)
    refused = {name: line for name, line in changes.items() if name.partition(".")[0] not in allow_change}
    if refused:
        names = sorted({name.partition(".")[0] for name in changes})
        allow = f", or allow the change with --allow_change {' '.join(names)}"
        raise ValueError(
            f"{run} was started with other settings:\n  "
            + "\n  ".join(dict.fromkeys(refused.values()))
            + "\nContinue with the old ones, or start a new run with another --output_dir"
            + ("" if NEVER_CHANGE.intersection(names) else allow)
            + "."
        )
    now = {"processes": num_processes, **versions()}
    before = {"processes": manifest["num_processes"], **manifest["versions"]}
    return [f"changed as allowed: {line}" for line in dict.fromkeys(changes.values())] + [
        f"{name}: was {before[name]}, now {now.get(name, 'missing')}. The run continues with the same examples, but it "
        "is no longer bit-identical to an uninterrupted one."
        for name in before
        if before[name] != now.get(name)
    ]


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """The dotted name of each setting that differs, and "name: was old, now new"; fingerprints become a sentence."""
    saved, current = json.loads(json.dumps([saved, current]))
    changes: dict[str, str] = {}
    for name in sorted({*saved, *current}):
        old, new = saved.get(name), current.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            for inner, line in changed_settings(old, new).items():
                changes[f"{name}.{inner}"] = f"{name}.{line}"
        elif old != new:
            changes[name] = f"{name}: was {old!r}, now {new!r}"
    for name in changes:
        if (sentence := FINGERPRINTS.get(name.partition(".")[0])) and SHA256.search(changes[name]):
            changes[name] = sentence
    return changes
