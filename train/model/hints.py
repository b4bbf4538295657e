"""What the user may have meant by a path that is not a model, and the command to run next."""

import json
from pathlib import Path
from typing import Any

import yaml

from hf_scratch_gpt.conversion import is_openai_folder

from ..data.blocks import TOKENIZER_FOLDER
from ..settings.near_paths import near_paths
from ..settings.run_folder import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FOLDER,
    CHECKPOINT_PREFIX,
    CONFIG_FILE,
    LOCK_FILE,
    MODEL_FOLDER,
    RECIPE_FILE,
    STATUS_FILE,
    TOKENIZER_FILE,
)

QUICKSTART_MODEL = "scratch-gpt quickstart writes runs/quickstart/run/model"
# an option that only one training command has -> the command
COMMAND_OF_OPTION = {"label_column": "finetune_classifier", "chat_template": "finetune", "data_dir": "pretrain"}


def is_model(folder: Path) -> bool:
    """Whether a folder has the config of a model or an adapter."""
    return (folder / CONFIG_FILE).exists() or (folder / ADAPTER_CONFIG_FILE).exists()


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run."""
    return any((folder / name).exists() for name in (STATUS_FILE, RECIPE_FILE, LOCK_FILE))


def about_missing(path: Path) -> str:
    """A sentence about a path that does not exist."""
    if path.name == MODEL_FOLDER and is_run(path.parent):
        return f"does not exist yet: {about_unfinished(path.parent)}"
    if near := near_paths(path, only_folders=True):
        return f"does not exist: did you mean {' or '.join(near)}?"
    return f"does not exist; {QUICKSTART_MODEL}."


def about_folder(folder: Path) -> str:
    """A sentence about a folder that is not a model."""
    if folder.is_file():
        return f"is a file: give its folder, {folder.parent}."
    if is_run(folder):
        if is_model(folder / MODEL_FOLDER):
            return f"is the folder of a run: its model is {folder / MODEL_FOLDER}."
        return f"is the folder of a run without a finished model: {about_unfinished(folder)}"
    inside = [path.parent for depth in ("*", f"*/{MODEL_FOLDER}") for path in folder.glob(f"{depth}/{CONFIG_FILE}")]
    if inside:
        return f"is not a model folder: did you mean {' or '.join(map(str, sorted(inside)[:3]))}?"
    if is_openai_folder(folder):
        return f"has OpenAI's own files of GPT-2: convert them with scratch-gpt convert --model {folder}."
    found = sorted(entry.name for entry in folder.iterdir())
    return f"is not a model folder: it has no {CONFIG_FILE} (found: {', '.join(found[:8]) or 'nothing'})."


def about_unfinished(run: Path) -> str:
    """What became of a run without a model, and how to continue it."""
    status = _read(run / STATUS_FILE, json.loads)
    state, step, max_steps = (status.get(name) for name in ("state", "step", "max_steps"))
    where = f" at step {step} of {max_steps}" if isinstance(step, int) and isinstance(max_steps, int) else ""
    ending = f"continue it with {continue_command(run)}"
    checkpoints = sorted(path.name for path in run.glob(f"{CHECKPOINT_PREFIX}*") if is_model(path))
    if checkpoints:
        ending += f", or use its last checkpoint, {run / checkpoints[-1]}"
    if state == "running":
        return f"the run is training{where}. Wait for it; if it was killed, {ending}."
    if state == "failed" and status.get("reason"):
        return f"the run failed{where} ({status['reason']!s:.200}). When the cause is removed, {ending}."
    return f"the run stopped{where or ' before its end'}: {ending}."


def continue_command(run: Path) -> str:
    """The command that continues a run."""
    recipe = _read(run / RECIPE_FILE, yaml.safe_load)
    command = next((name for option, name in COMMAND_OF_OPTION.items() if option in recipe), None)
    return f"scratch-gpt {command} {run / RECIPE_FILE}" if command else "the command that started it"


def data_of_model(model: Path) -> Path | None:
    """The prepared data that a model in the folder of its run was pretrained on; None if it no longer exists."""
    is_of_run = model.name in (MODEL_FOLDER, ADAPTER_FOLDER) or model.name.startswith(CHECKPOINT_PREFIX)
    folder = _read(model.parent / RECIPE_FILE, yaml.safe_load).get("data_dir") if is_of_run else None
    return Path(folder) if isinstance(folder, str) and Path(folder).is_dir() else None


def tokenizer_of_run(run: Path) -> Path | None:
    """The folder of the tokenizer that a run was started with; None if it no longer exists."""
    recipe = _read(run / RECIPE_FILE, yaml.safe_load)
    named = [recipe.get("tokenizer"), recipe.get("model")]
    data = recipe.get("data_dir")
    folders = [run / MODEL_FOLDER, *(Path(name) for name in named if isinstance(name, str))]
    folders += [Path(data) / TOKENIZER_FOLDER] if isinstance(data, str) else []
    return next((folder for folder in folders if (folder / TOKENIZER_FILE).exists()), None)


def _read(path: Path, parse: Any) -> dict[str, Any]:
    """The object in a file; empty if there is none: a hint must not fail."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}
