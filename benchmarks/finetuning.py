"""Which batch, rate, epochs and optimizer suit how many rows? `python -m benchmarks.finetuning --model MODEL`.

First it makes conversations about the packages installed here (from their docstrings, like examples/python_assistant),
and descriptions labelled with their package. Then each job fine-tunes MODEL with other settings, several at a time, and
appends its validation losses to a file; run the same command again to continue. Finally it prints one table per task
and number of rows.
"""

import ast
import itertools
import math
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from examples.python_assistant.make_data import Entry, conversations, entries_of, hash_of, is_public, without_copies
from train import finetune
from train.data.conversations import Conversation, Encoded, PackedConversations, encode_conversations
from train.data.labelled_texts import LabelledTexts
from train.distributed.device import build_accelerator
from train.loop.classification import TextClassification
from train.loop.language_modeling import LanguageModeling, skips_logits
from train.loop.run import Run, build_run
from train.metrics.perplexity import token_byte_lengths
from train.model.pretrained import choose_trained, load_base
from train.settings.command import run_command
from train.settings.finetuning import BaseArguments, FinetuneArguments
from train.settings.recipe import option, option_list, parse_recipe

from .report import print_table
from .sweep import Job, compared, read_results, run_jobs

NUM_VALIDATION = 1_000  # rows
NUM_SHOWN = 8  # rows of a printed table
NUM_LABELS = 8  # the packages with most descriptions
LARGEST_HELD_OUT = 0.01  # of the objects; larger packages are for training
MAX_FILE_SIZE = 2_000_000  # bytes; larger files are generated


TRAINABLE: dict[str, Any] = {"assistant": "all", "lora": "lora", "classifier": "all"}  # of each task
TASKS = tuple(TRAINABLE)


@dataclass
class SweepArguments:
    """Options of the benchmark."""

    model: str = option("The pretrained model that every job starts from.", "runs/quickstart/run/model", is_path=True)
    data_dir: str = option("Folder for the rows as tokens.", "runs/finetuning/data", is_path=True)
    results: str = option("File of JSON lines, one per finished job.", "runs/finetuning/results.jsonl", is_path=True)
    processes: int = option("Jobs at the same time.", 2)
    seconds: float = option("Give up jobs that are not finished by then.", 3600.0)
    rows: list[int] = option_list("Numbers of rows (default: all of the grid).")
    tasks: list[str] = option_list(f"Which of {' '.join(TASKS)} (default: all).")

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"--tasks {task}: must be one of {', '.join(TASKS)}.")


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data if it is not there, run the jobs, and print the tables."""
    (arguments,) = parse_recipe([SweepArguments], argv, description=__doc__ or "")
    folder, results = Path(arguments.data_dir), Path(arguments.results)
    if not (folder / "labels.npz").exists():
        make_data(folder, arguments.model)
    results.parent.mkdir(parents=True, exist_ok=True)
    common = {"model": arguments.model, "data_dir": arguments.data_dir}
    jobs = [job | common for job in all_jobs() if job["task"] in (arguments.tasks or TASKS)]
    jobs = [job for job in jobs if not arguments.rows or job["rows"] in arguments.rows]
    run_jobs(build_run_of, jobs, results, arguments.processes, arguments.seconds)
    print_tables(results)


# Jobs
# (task, optimizer, rows, batches, epochs, learning rates)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
GRID: tuple[tuple[str, str, int, tuple[int, ...], tuple[int, ...], tuple[float, ...]], ...] = (
    ("assistant", "muon", 200, (4, 8, 16), (3, 6), RATES),
    ("assistant", "muon", 200, (4,), (3, 6), (5e-4,)),
    ("assistant", "adamw", 200, (4,), (3,), (3e-4, 1e-3)),
    ("assistant", "muon", 1_100, (8, 16, 32), (3,), RATES),
    ("assistant", "muon", 1_100, (8, 16), (3,), (5e-4,)),
    ("assistant", "muon", 1_100, (16,), (5,), (1e-3,)),
    ("assistant", "adamw", 1_100, (16,), (3,), (3e-4, 1e-3, 3e-3)),
    ("lora", "muon", 1_100, (16,), (3,), (1e-3, 3e-3, 1e-2)),
    ("lora", "adamw", 1_100, (16,), (3,), (1e-3, 3e-3, 1e-2)),
    ("classifier", "muon", 200, (4,), (3,), (5e-4, 1e-3, 2e-3)),
    ("classifier", "muon", 1_100, (16,), (3,), (5e-4, 1e-3, 2e-3)),
    ("classifier", "adamw", 1_100, (16,), (3,), (3e-4, 1e-3)),
    ("assistant", "muon", 50_000, (64,), (3,), RATES),
    ("assistant", "adamw", 50_000, (64,), (3,), (4e-3,)),
)


def all_jobs() -> list[Job]:
    """The jobs of the grid, the short ones first."""
    return [
        {"task": task, "rows": rows, "optimizer": optimizer, "batch": batch, "epochs": epochs, "rate": rate}
        for task, optimizer, rows, *choices in GRID
        for batch, epochs, rate in itertools.product(*choices)
    ]


# One training, in another process
def build_run_of(job: Job) -> Run:
    """The run of a job, as `finetune` and `finetune_classifier` build it, without samples."""
    steps = math.ceil(job["epochs"] * job["rows"] / job["batch"])
    arguments = FinetuneArguments(
        output_dir=job["folder"],
        optimizer=job["optimizer"],
        learning_rate=job["rate"],
        global_batch_size=job["batch"],
        micro_batch_size=job["batch"],
        max_steps=steps,
        eval_steps=math.ceil(steps / 10),
        max_eval_samples=0,
        weight_decay=0.01,
        adam_beta2=0.98,
    )
    base_arguments = BaseArguments(job["model"], trainable=TRAINABLE[job["task"]])
    build = build_classifier if job["task"].startswith("classifier") else build_assistant
    return build(base_arguments, arguments, Path(job["data_dir"]), job["rows"])


def build_assistant(base_arguments: BaseArguments, arguments: FinetuneArguments, folder: Path, num_rows: int) -> Run:
    """A run on the first `num_rows` conversations."""
    base = load_base(base_arguments, arguments.seed, AutoModelForCausalLM)
    new_tokens = finetune.learn_to_chat(base, "model")
    pad_id = base.tokenizer.pad_token_id
    train = PackedConversations(read_conversations(folder / "train.npz")[:num_rows], pad_id)
    validation = PackedConversations(read_conversations(folder / "validation.npz"), pad_id)
    kwargs = {} if base_arguments.trainable == "lora" else skips_logits(base.model)
    model = choose_trained(base, base_arguments, new_tokens)
    objective = LanguageModeling(base.tokenizer, token_byte_lengths(base.tokenizer), forward_kwargs=kwargs)
    return build_run(arguments, build_accelerator("auto"), model, objective, train, validation, {})


def build_classifier(base_arguments: BaseArguments, arguments: FinetuneArguments, folder: Path, num_rows: int) -> Run:
    """A run on the first `num_rows` labelled descriptions."""
    base = load_base(base_arguments, arguments.seed, AutoModelForSequenceClassification, num_labels=NUM_LABELS)
    side, pad_id = base.tokenizer.padding_side, base.tokenizer.pad_token_id
    texts, labels = read_labels(folder / "labels.npz")
    start = len(texts) - NUM_VALIDATION
    train = LabelledTexts(texts[:num_rows], labels[:num_rows], pad_id, side)
    validation = LabelledTexts(texts[start:], labels[start:], pad_id, side)
    model = choose_trained(base, base_arguments, [])
    objective = TextClassification([str(number) for number in range(NUM_LABELS)], torch.ones(NUM_LABELS))
    return build_run(arguments, build_accelerator("auto"), model, objective, train, validation, {})


# Data
def make_data(folder: Path, model: str) -> None:
    """Write the conversations and the labelled descriptions, as tokens of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    base = load_base(BaseArguments(model), 0, AutoModelForCausalLM)
    finetune.learn_to_chat(base, "model")
    found = sorted(without_copies(installed_entries()), key=lambda entry: hash_of(entry.name))
    held_out = held_out_packages(found)
    for part, is_held_out in (("train", False), ("validation", True)):
        entries = [entry for entry in found if (entry.package in held_out) == is_held_out]
        rows = [row for entry in entries for row in conversations(entry)]
        rows = rows[:NUM_VALIDATION] if is_held_out else rows[:50_000]
        parsed = [Conversation(str(number), row) for number, row in enumerate(rows)]
        write_conversations(folder / f"{part}.npz", encode_conversations(base.tokenizer, parsed))
        print(f"{part}: {len(rows):,} conversations about {len({entry.package for entry in entries})} packages")
    packages = [name for name, _ in Counter(entry.package for entry in found).most_common(NUM_LABELS)]
    labelled = [entry for entry in found if entry.package in packages]
    texts = base.tokenizer([entry.summary for entry in labelled])["input_ids"]
    write_ragged(folder / "labels.npz", texts, labels=[packages.index(entry.package) for entry in labelled])
    print(f"{len(texts):,} descriptions of {', '.join(packages)}")


def installed_entries() -> Iterator[Entry]:
    """The documented objects of all installed packages, without tests and vendored copies."""
    root = Path(sysconfig.get_path("purelib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not all(is_public(part) or part == "__init__" for part in parts) or {"tests", "vendor"} & set(parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        try:
            with warnings.catch_warnings():  # of strange escapes in the packages
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8")) if path.stat().st_size < MAX_FILE_SIZE else None
        except (SyntaxError, ValueError):  # for another Python, or in another encoding
            continue
        if tree is not None:
            yield from entries_of(tree, module, module)


def held_out_packages(found: Sequence[Entry]) -> set[str]:
    """Small packages, in the order of the hashes of their names, with enough objects for the validation rows."""
    sizes = Counter(entry.package for entry in found)
    held_out: set[str] = set()
    for package in sorted(sizes, key=hash_of):
        if sizes[package] <= LARGEST_HELD_OUT * len(found) and sum(sizes[name] for name in held_out) < NUM_VALIDATION:
            held_out.add(package)
    return held_out


def write_conversations(path: Path, encoded: Sequence[Encoded]) -> None:
    """Store conversations as arrays."""
    write_ragged(path, [one.ids for one in encoded], is_answer=np.concatenate([one.is_answer for one in encoded]))


@cache
def read_conversations(path: Path) -> list[Encoded]:
    """Read what `write_conversations` has written."""
    ids, is_answer = read_ragged(path, "is_answer")
    ends = np.cumsum([len(one) for one in ids])
    return [Encoded(*pair) for pair in zip(ids, np.split(is_answer, ends[:-1]), strict=True)]


@cache
def read_labels(path: Path) -> tuple[list[list[int]], np.ndarray]:
    """Token ids and label of each text."""
    ids, labels = read_ragged(path, "labels")
    return [one.tolist() for one in ids], labels


def write_ragged(path: Path, ids: Sequence[Any], **more: Any) -> None:
    """Store lists of ids, one after the other."""
    lengths = np.array([len(one) for one in ids], np.int32)
    np.savez_compressed(path, ids=np.concatenate([np.asarray(one, np.int32) for one in ids]), lengths=lengths, **more)


def read_ragged(path: Path, more: str) -> tuple[list[np.ndarray], np.ndarray]:
    """The lists of ids, and the array `more`."""
    with np.load(path) as file:
        return np.split(file["ids"], np.cumsum(file["lengths"])[:-1]), file[more]


def print_tables(results: Path) -> None:
    """A table for each task and number of rows."""
    lines = read_results(results)
    for task, rows in sorted({(line["job"]["task"], line["job"]["rows"]) for line in lines}):
        some = [line for line in lines if (line["job"]["task"], line["job"]["rows"]) == (task, rows)]
        print_table(
            f"{task}, {rows:,} rows: the best of {len(some)} settings",
            ["optimizer", "batch", "epochs", "learning rate", "updates", "validation loss", "above the best"],
            compared(some, ("optimizer", "batch", "epochs", "rate"))[:NUM_SHOWN],
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
