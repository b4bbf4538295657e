"""Which settings may change when a run continues, and what to say when others did."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .manifest import versions


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
    refused = [line for name, line in changes.items() if name.partition(".")[0] not in allow_change]
    if refused:
        names = sorted({name.partition(".")[0] for name in changes})
        raise ValueError(
            f"{run} was started with other settings:\n  "
            + "\n  ".join(refused)
            + "\nContinue with the old ones, start a new run with another --output_dir, or allow the change with "
            f"--allow_change {' '.join(names)}."
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
    """The dotted name of each setting that differs, and "name: was old, now new"."""
    saved, current = json.loads(json.dumps([saved, current]))
    changes: dict[str, str] = {}
    for name in sorted({*saved, *current}):
        old, new = saved.get(name), current.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes |= {f"{name}.{inner}": f"{name}.{line}" for inner, line in changed_settings(old, new).items()}
        elif old != new:
            changes[name] = f"{name}: was {old!r}, now {new!r}"
    return changes
