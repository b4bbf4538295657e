"""Which settings may change when a run continues, and what to say when others did."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..settings.options import shortened
from ..settings.training import allowable
from .manifest import versions

MAX_SHOWN = 10  # differences in a message
# what the fingerprints are of
SUBJECTS = {
    "base": "the weights of --model",
    "tokenizer_sha256": "the tokenizer",
    "data.tokenizer_sha256": "the tokenizer of the data",
    "data.tokens_sha256.train": "the training data",
    "data.tokens_sha256.validation": "the validation data",
    "data.train": "the training rows",
    "data.validation": "the validation rows",
}
FINGERPRINT = re.compile(r"([0-9a-f]{64})+")  # SHA-256


def check_settings(
    run: Path, manifest: Mapping[str, Any], settings: Mapping[str, Any], allow_change: Sequence[str], num_processes: int
) -> list[str]:
    """Refuse to continue with settings that would have given another run; return messages about allowed changes.

    Args:
        manifest: of the checkpoint to continue from.
        settings: of this call.
        allow_change: names of settings that may differ.
        num_processes: of this call; another number changes rounding only.

    Raises:
        ValueError: the settings that differ, with old and new value.
    """
    changes = changed_settings(manifest["settings"], settings)
    changes = {name: line.replace(name, SUBJECTS.get(name, name), 1) for name, line in changes.items()}
    refused = [line for name, line in changes.items() if name.partition(".")[0] not in allow_change]
    if refused:
        names = sorted({name.partition(".")[0] for name in changes})
        more = [f"and {len(refused) - MAX_SHOWN} more"] if len(refused) > MAX_SHOWN else []
        allow = f", or allow the change with --allow_change {' '.join(names)}" if {*names} <= allowable() else ""
        raise ValueError(
            f"{run} was started with other settings:\n  "
            + "\n  ".join([*refused[:MAX_SHOWN], *more])
            + f"\nContinue with the old ones, start a new run with another --output_dir{allow}."
        )
    now = {"processes": num_processes, **versions()}
    before = {"processes": manifest["num_processes"], **manifest["versions"]}
    return [f"changed as allowed: {line}" for line in changes.values()] + [
        f"{name}: was {before[name]}, now {now[name]}. The run continues with the same examples, but it is no longer "
        "bit-identical to an uninterrupted one."
        for name in before
        if before[name] != now[name]
    ]


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """The dotted name of each setting that differs, and in words how."""
    saved, current = json.loads(json.dumps([saved, current]))
    changes: dict[str, str] = {}
    for name in sorted({*saved, *current}):
        old, new = saved.get(name), current.get(name)
        if isinstance(old, dict) or isinstance(new, dict):
            parts = [value if isinstance(value, dict) else {} for value in (old, new)]
            changes |= {f"{name}.{inner}": f"{name}.{line}" for inner, line in changed_settings(*parts).items()}
        elif old != new:
            changes[name] = f"{name}: {difference(old, new)}"
    return changes


def difference(old: Any, new: Any) -> str:
    """How a setting has changed. Fingerprints say nothing to people."""
    values = [value for value in (old, new) if value is not None]
    if all(isinstance(value, str) and FINGERPRINT.fullmatch(value) for value in values):
        return (
            "other contents than before"
            if len(values) == 2
            else "not there before"
            if old is None
            else "not there any more"
        )
    was, now = ("not set" if value is None else shortened(value) for value in (old, new))
    return f"was {was}, now {now}"
