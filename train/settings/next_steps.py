"""What to do after a command has succeeded: command lines to type, with the paths of this one."""

import inspect
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .corpus import CorpusArguments
from .defaults import PLANNED_BATCH
from .options import options_of
from .run_folder import MODEL_FOLDER, RECIPE_FILE
from .training import ModelArguments, TrainArguments

Values = Mapping[str, Any]
Steps = list[list[str]]  # each is a command and its arguments

LAUNCHER = "accelerate"  # a command of its own
CORPUS = options_of([CorpusArguments])
PRETRAIN = options_of([ModelArguments, TrainArguments])


def next_steps(command: str, values: Values) -> Steps:
    """The commands that usually follow.

    Args:
        command: that has succeeded.
        values: its options, without those that have their default.
    """
    follow = FOLLOWING.get(command)
    return follow(values) if follow else []


def after_train_tokenizer(values: Values) -> Steps:
    """Encode the same text."""
    folder = Path(values["output_dir"])
    step = ["prepare_data", "--tokenizer", str(folder), "--output_dir", str(folder.with_name("data"))]
    return [step + as_options({name: values[name] for name in CORPUS if name in values})]


def after_prepare_data(values: Values) -> Steps:
    """Train a model that suits the data and the machine."""
    folder = Path(values["output_dir"])
    places = ["--data_dir", str(folder), "--output_dir", str(folder.with_name("run"))]
    return [["pretrain", "--minutes", "5", *places]]


def after_pretrain(values: Values) -> Steps:
    """Use, measure and publish the model."""
    model = str(Path(values["output_dir"]) / MODEL_FOLDER)
    prompt = next(iter(values.get("sample_prompts", [])), "Once upon a time").splitlines()[0]
    chat = str(Path(values["output_dir"]).with_name("chat"))
    return [
        ["generate", "--model", model, "--prompt", prompt],
        ["evaluate", "--model", model, "--data_dir", values["data_dir"]],
        ["finetune", "--model", model, "--train_file", "conversations.jsonl", "--output_dir", chat],
        publish(model),
    ]


def after_plan(values: Values) -> Steps:
    """Train the planned model. Nothing with --tokens, because pretrain takes --max_steps instead."""
    if "tokens" in values:
        return []
    shared = {name: value for name, value in values.items() if name in PRETRAIN}
    shared.setdefault("global_batch_size", PLANNED_BATCH)
    options = [*as_options(shared), "--data_dir", "runs/data", "--output_dir", "runs/mine"]
    if values.get("num_gpus", 1) == 1:
        return [["pretrain", *options]]
    module = f"{__name__.removesuffix('.settings.next_steps')}.pretrain"
    return [[LAUNCHER, "launch", "--num_processes", str(values["num_gpus"]), "-m", module, *options]]


def after_finetune(values: Values) -> Steps:
    """Talk to the assistant, and publish it."""
    model = str(Path(values["output_dir"]) / MODEL_FOLDER)
    return [["chat", "--model", model], publish(model)]


def after_finetune_classifier(values: Values) -> Steps:
    """Label other texts, and publish the classifier."""
    model = str(Path(values["output_dir"]) / MODEL_FOLDER)
    return [["classify", "--model", model, "--text", "a text to label"], publish(model)]


def after_rollback(values: Values) -> Steps:
    """Continue the run, with the command that its recipe belongs to."""
    recipe = Path(values["output_dir"]) / RECIPE_FILE
    names = (
        {line.partition(":")[0] for line in recipe.read_text(encoding="utf-8").splitlines()}
        if recipe.exists()
        else set()
    )
    command = "pretrain" if "data_dir" in names else "finetune_classifier" if "label_column" in names else "finetune"
    return [[command, str(recipe)]] if names else []


def after_pull(values: Values) -> Steps:
    """Use the model."""
    return [["generate", "--model", values.get("local_dir") or values["model"]]]


def after_publish(values: Values) -> Steps:
    """Really publish after a dry run."""
    changed = {name: value for name, value in values.items() if name != "dry_run"}
    return [["publish", *as_options(changed)]] if values.get("dry_run") else []


def publish(model: str) -> list[str]:
    """Show what would be published."""
    return ["publish", "--folder_path", model, "--repo_id", "my-model", "--dry_run"]


FOLLOWING: dict[str, Callable[[Values], Steps]] = {
    "train_tokenizer": after_train_tokenizer,
    "prepare_data": after_prepare_data,
    "plan": after_plan,
    "pretrain": after_pretrain,
    "finetune": after_finetune,
    "finetune_classifier": after_finetune_classifier,
    "rollback": after_rollback,
    "pull": after_pull,
    "publish": after_publish,
}


def as_options(values: Values) -> list[str]:
    """Values as the arguments of a command line."""
    arguments = []
    for name, value in values.items():
        several = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else value]
        arguments += [f"--{name}", *map(str, several)]
    return arguments


def print_next_steps(main: Callable[..., Any], values: Values) -> None:
    """Print the commands that usually follow the command with this `main`, once per run.

    To stderr: scripts read what a command prints, such as the path from `pull`.
    """
    place = inspect.unwrap(main).__globals__
    spec = place.get("__spec__")
    if spec is None or os.environ.get("RANK", "0") != "0":
        return
    package, _, command = spec.name.rpartition(".")
    steps = next_steps(command, values)
    prefix = f"{python()} -m {package}." if place["__name__"] == "__main__" else f"{program()} "
    if steps:
        print("\n".join(["\nnext:", *(f"  {command_line(step, prefix)}" for step in steps)]), file=sys.stderr)


def command_line(step: Sequence[str], prefix: str) -> str:
    """A command as it can be typed."""
    return shlex.join(step) if step[0] == LAUNCHER else prefix + shlex.join(step)


def program() -> str:
    """`scratch-gpt` as a person can type it: by its path if the virtual environment is not activated."""
    script = Path(sys.executable).with_name("scratch-gpt")
    return "scratch-gpt" if shutil.which("scratch-gpt") or not script.exists() else shortest(script)


def python() -> str:
    """The Python of this process as a person can type it."""
    is_first = shutil.which("python") == sys.executable  # the link of a virtual environment is not what it points to
    return "python" if is_first else shortest(Path(sys.executable))


def shortest(path: Path) -> str:
    """A path, relative to the current folder if it is inside."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
