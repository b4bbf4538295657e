"""The commands into which faults are injected, their inputs, and what must be equal in the end."""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .disk import Tree, read_tree, write_tree
from .trial import Trial, run

SHAPE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "residual_dropout": 0.1, "max_position_embeddings": 32,
}  # fmt: skip
TRAINING = {
    "global_batch_size": 2, "micro_batch_size": 1, "learning_rate": 3e-3, "precision": "fp32", "logging_steps": 1,
    "max_new_tokens": 2, "max_steps": 2, "save_steps": 1, "eval_steps": 2, "save_total_limit": 1, "max_eval_samples": 2,
}  # fmt: skip
# facts of a record that differ each time: times, and the hash of the model card, which names the speed
TIMES = {"time", "tokens_per_second", "mfu", "seconds", "reason", "README.md", "seal"}
SPEED = re.compile(rb"tokens per second.*")  # in a model card
LEFTOVER = re.compile(r"(^|/)(\.tmp|\.trash)|\.(partial|tmp)$")
RANDOM_NAME = re.compile(r"\.tmp([A-Za-z0-9]{6}|-\w+-[A-Za-z0-9_]{8})(?=/|\.json$|$)")
CHECKPOINT = re.compile(r"checkpoint-\d{8}$")


@dataclass(frozen=True)
class Operation:
    """A command and the folder that it writes.

    Args:
        folder: watched; it contains the output folder.
        output: the output folder in it.
        before: `folder` at the start.
        older: results that were complete at the start.
    """

    name: str
    command: str
    arguments: Sequence[str]
    folder: Path
    output: str
    before: Tree
    older: Tree

    def trial(self, **changes: Any) -> Trial:
        """A trial of the command."""
        return Trial(self.command, self.arguments, output=self.folder.with_suffix(".txt"), **changes)

    def part_of(self, path: str) -> str:
        """The part of the operation that a path belongs to."""
        if self.command in ("prepare_data", "train_tokenizer"):
            return self.command
        if "checkpoint-" in path:
            return "checkpoint"
        is_result = re.search(r"/(\.tmp-|\.trash-|\.old-)?(model|adapter)\b|test_results", path)
        return "model" if is_result else "run folder"


def operation(name: str, root: Path, inputs: "Inputs") -> Operation:
    """One of OPERATIONS, which works below `root`.

    Raises:
        ValueError: an unknown operation.
    """
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}: choose from {', '.join(OPERATIONS)}.")
    title, command, options = OPERATIONS[name]
    folder = root / "work"
    values = options(inputs) | {"output_dir": folder / "out"}
    arguments = [f"--{key}={value}" for key, value in values.items()]
    before = finished(operation("pretrain", root, inputs)) if name == "extended" else {}
    return Operation(title, command, arguments, folder, "out", before, results_of(before))


def finished(operation: Operation) -> Tree:
    """The folder after a run without faults."""
    write_tree(operation.folder, operation.before)
    ending = run(operation.trial())
    if ending.code:
        raise ValueError(f"{operation.name} fails without any fault:\n{ending.text[-3000:]}")
    return read_tree(operation.folder)


class Inputs:
    """Tiny inputs of all commands, in one folder; each is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.text, self.held_out = (
            self._text(name, "".join(f"def {word}_{i}(x):\n    return x + {i}\n\n" for i in range(60)))
            for name, word in (("text.txt", "function"), ("held_out.txt", "method"))
        )
        self.config = self._text("config.json", json.dumps(SHAPE))
        colors = [(f"It is {color} {i}.", color) for i in range(12) for color in ("red", "green", "blue")]
        self.labels = folder / "labels.csv"
        with self.labels.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *colors])
        rows = [{"prompt": f"What {i}?", "completion": text} for i, (text, _) in enumerate(colors)]
        self.conversations = self._text("chat.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    @cached_property
    def tokenizer(self) -> Path:
        """A tokenizer."""
        return self._run("train_tokenizer", "tokenizer", text=self.text, vocab_size=280)

    @cached_property
    def blocks(self) -> Path:
        """Prepared data."""
        files = {"text": self.text, "validation_text": self.held_out}
        return self._run("prepare_data", "blocks", tokenizer=self.tokenizer, block_size=16, **files)

    @cached_property
    def model(self) -> Path:
        """A base model."""
        return self._run("pretrain", "base", **pretrain_options(self)) / "model"

    def _text(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def _run(self, command: str, output: str, **options: Any) -> Path:
        folder = self.folder / output
        arguments = [f"--{name}={value}" for name, value in (options | {"output_dir": folder}).items()]
        ending = run(Trial(command, arguments, self.folder / "output.txt"))
        if ending.code:
            raise ValueError(f"{command} {' '.join(arguments)} failed:\n{ending.text[-3000:]}")
        return folder


def pretrain_options(inputs: Inputs) -> dict[str, Any]:
    """Options of a run with two checkpoints."""
    return TRAINING | {"data_dir": inputs.blocks, "config": inputs.config, "sample_prompts": "def "}


def lora_options(inputs: Inputs) -> dict[str, Any]:
    """Options that train an adapter on conversations."""
    data = {"model": inputs.model, "train_file": inputs.conversations}
    return TRAINING | data | {"spike_sigmas": 0, "trainable": "lora", "lora_r": 2}


def classifier_options(inputs: Inputs) -> dict[str, Any]:
    """Options that train a classifier."""
    return TRAINING | {"model": inputs.model, "train_file": inputs.labels, "spike_sigmas": 0}


def data_options(inputs: Inputs) -> dict[str, Any]:
    """Options that prepare data."""
    files = {"text": inputs.text, "validation_text": inputs.held_out}
    return {"tokenizer": inputs.tokenizer, "block_size": 16} | files


OPERATIONS: dict[str, tuple[str, str, Callable[[Inputs], dict[str, Any]]]] = {
    "pretrain": ("pretrain", "pretrain", pretrain_options),
    "async_save": ("pretrain --async_save", "pretrain", lambda i: pretrain_options(i) | {"async_save": "true"}),
    "lora": ("finetune --trainable lora", "finetune", lora_options),
    "classifier": ("finetune_classifier", "finetune_classifier", classifier_options),
    "prepare_data": ("prepare_data", "prepare_data", data_options),
    "train_tokenizer": ("train_tokenizer", "train_tokenizer", lambda i: {"text": i.text, "vocab_size": 280}),
    "extended": (
        "pretrain, extended",
        "pretrain",
        lambda i: pretrain_options(i) | {"max_steps": 3, "allow_change": "max_steps"},
    ),
}


# What a folder contains, without times
def digests(tree: Tree) -> dict[str, str]:
    """The SHA-256 of each file, without times and random names; "" for a folder.

    Not compared: heartbeats, and the note in a folder that was moved away.
    """
    return {
        RANDOM_NAME.sub(".tmp??????", name): "" if content is None else _sha256(name, content)
        for name, content in tree.items()
        if not name.endswith("/reason.txt") and "/.heartbeat" not in name
    }


def _sha256(name: str, content: bytes) -> str:
    if name.endswith((".jsonl", "status.json", "data.json", "model/training.json")):
        whole = name.endswith(".json")
        lines = [content] if whole else content.split(b"\n")
        content = b"\n".join(_timeless(line) for line in lines)
    if name.endswith("README.md"):
        content = SPEED.sub(b"", content)
    return hashlib.sha256(content).hexdigest()


def _timeless(text: bytes) -> bytes:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return json.dumps(_without_times(value)).encode()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(one) for name, one in value.items() if name not in TIMES}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def fingerprint(tree: Tree) -> str:
    """Equal for folders from which a command does the same."""
    return hashlib.sha256(json.dumps(digests(tree), sort_keys=True).encode()).hexdigest()


def results_of(tree: Tree) -> Tree:
    """The part of a tree that is the result of a command: the model, an adapter, or all prepared data."""
    if any(name.endswith("/.lock") for name in tree):
        return {name: content for name, content in tree.items() if re.match(r"out/(model|adapter)(/|$)", name)}
    return {name: content for name, content in tree.items() if re.match("out(/|$)", name)}


def differences(expected: Tree, found: Tree) -> str:
    """What is not as it must be at the end; empty if all is well.

    Older checkpoints may have been removed to make room, and damaged ones moved away.
    """
    want, have = digests(expected), digests(found)
    newest = max((name for name in want if CHECKPOINT.search(name)), default="")
    problems = []
    for name in sorted(want):
        is_older = "checkpoint-" in name and not name.startswith(newest)
        if name not in have:
            problems += [] if is_older else [f"{name} is missing"]
        elif want[name] != have[name]:
            problems.append(f"{name} differs")
    problems += [f"{name} is left over" for name in have if name not in want and LEFTOVER.search(name)]
    problems += [f"{name} is shipped" for name in digests(results_of(found)) if name not in want]
    return ", ".join(problems[:3])
