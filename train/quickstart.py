"""Train a tokenizer and a model, and load them with transformers. Run the same command again to continue.

    scratch-gpt quickstart
    scratch-gpt quickstart --text book.txt --output_dir runs/book --minutes 30

By default it trains on Python's own standard library and documentation. Each stage prints the equivalent
command. A finished run is never changed.
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hf_scratch_gpt import ScratchGPTTokenizer

from . import prepare_data, pretrain, train_tokenizer
from .checkpoint.state import TrainState
from .data.blocks import MANIFEST, TOKENIZER_FOLDER, TokenBlocks, TooShortError, open_data, read_manifest
from .data.prompts import held_out_prompts
from .distributed.device import build_accelerator, keep_freed_memory
from .loop.evaluation import evaluate, sample
from .loop.forecast import format_duration
from .loop.train import train_step
from .model.inference import load_for_inference
from .settings.command import run_command
from .settings.corpus import CorpusArguments
from .settings.next_steps import as_options, command_line, program
from .settings.recipe import option, parse_recipe
from .settings.run_folder import CARD_FILE, LOSS_CURVE_FILE, METRICS_FILE, MODEL_FOLDER, SAMPLES_FILE, TOKENIZER_FILE
from .settings.training import DataArguments, ModelArguments, TrainArguments

NUM_PROMPTS = 4
# so that a small model does not repeat itself
SAMPLING = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.1, "max_new_tokens": 64}
NUM_EVALUATIONS = 8
MIN_STEPS, FEW_STEPS = 20, 200
# Up to 4 passes over a text are worth as much as new text, and more than 16 hardly anything
# (https://huggingface.co/papers/2305.16264).
MAX_EPOCHS = 10
SHORTEST_BLOCK = 32
SPARE = 0.1  # fraction of the time for loading, checkpoints and slowdowns of the machine
TIMING_SECONDS = 12.0


@dataclass
class QuickstartArguments:
    """Where to write, and how long to train."""

    output_dir: str = option("Folder for the tokenizer, the data and the run.", "runs/quickstart", is_path=True)
    minutes: float = option(
        "Training time. A few steps are timed to choose the number of steps; of a short text, fewer are enough.", 5.0
    )

    def __post_init__(self) -> None:
        if not 0 < self.minutes < float("inf"):
            raise ValueError(f"--minutes is {self.minutes}: it must be a positive number.")


@dataclass(frozen=True)
class Size:
    """The model and the batches for a kind of machine."""

    preset: str
    vocab_size: int
    block_size: int
    global_batch_size: int
    micro_batch_size: int


SIZES = {"cpu": Size("laptop", 4096, 256, 8, 8), "gpu": Size("small", 8192, 512, 64, 32)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages that are not done yet; returns the exit code."""
    arguments, corpus = parse_recipe([QuickstartArguments, CorpusArguments], argv, description=__doc__ or "")
    folder = Path(arguments.output_dir)
    for text in corpus.text:
        if Path(text).resolve() in folder.resolve().parents:
            raise ValueError(f"--output_dir {folder} is inside --text {text}: choose a folder outside of the text.")
    size = SIZES["gpu" if torch.accelerator.is_available() else "cpu"]
    keep_freed_memory()
    make_tokenizer(folder / "tokenizer", size, corpus)
    make_data(folder, size, corpus)
    if code := make_model(folder, size, arguments.minutes):
        return code
    prompts = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["sample_prompts"]
    try_model(folder / "run" / MODEL_FOLDER, prompts)
    print(closing_text(folder, prompts[0].splitlines()[0]))
    return 0


def make_tokenizer(folder: Path, size: Size, corpus: CorpusArguments) -> None:
    """Stage 1; keeps an existing tokenizer."""
    options = ["--output_dir", str(folder), "--vocab_size", str(size.vocab_size), *corpus_options(corpus)]
    announce("1/4  Train a tokenizer", "train_tokenizer", options)
    corpus_file = folder / "corpus.yaml"
    if (folder / TOKENIZER_FILE).exists():
        check_corpus(corpus_file, corpus)
        print(f"already done: {folder}")
    else:
        train_tokenizer.main(options)
        corpus_file.write_text(yaml.safe_dump(vars(corpus)), encoding="utf-8")


def check_corpus(corpus_file: Path, corpus: CorpusArguments) -> None:
    """Refuse to continue with the tokenizer of another text.

    Raises:
        ValueError: the text that the tokenizer was trained on.
    """
    before = yaml.safe_load(corpus_file.read_text(encoding="utf-8")) if corpus_file.exists() else vars(corpus)
    if before != vars(corpus):
        known = {name: value for name, value in before.items() if name in vars(corpus)}  # earlier versions had others
        text = " ".join(corpus_options(CorpusArguments(**known))) or "Python's own text"
        raise ValueError(f"{corpus_file.parent} was trained on {text}: choose another --output_dir for another text.")


def make_data(folder: Path, size: Size, corpus: CorpusArguments) -> None:
    """Stage 2. Of a text that is shorter than a block, shorter blocks are made.

    Raises:
        ValueError: the text is too short to train on.
    """
    data = folder / "data"
    block_size = read_manifest(data)["block_size"] if (data / MANIFEST).exists() else size.block_size
    while True:
        options = ["--tokenizer", str(folder / "tokenizer"), "--output_dir", str(data)]
        options += ["--block_size", str(block_size), *corpus_options(corpus)]
        announce("2/4  Turn the text into blocks of tokens", "prepare_data", options)
        try:
            prepare_data.main(options)
        except TooShortError:
            if block_size <= SHORTEST_BLOCK:
                raise ValueError("the text is too short to train on: give at least a few thousand words.") from None
            print(f"The text is shorter than a block of {block_size} tokens: trying shorter ones.")
            block_size //= 2
        else:
            return


def make_model(folder: Path, size: Size, minutes: float) -> int:
    """Stage 3; returns the exit code of pretraining. The recipe is written once and then kept."""
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        print(f"\nTiming a few steps to fill {minutes:g} minutes ...", flush=True)
        settings = recipe_for(folder, size)
        length = choose_length(open_data(folder / "data").train, settings, minutes, *seconds_needed(settings))
        print(length.explanation)
        settings |= schedule_for(length.steps, length.evaluations)
        recipe.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    announce("3/4  Train the model", "pretrain", [str(recipe)])
    return pretrain.main([str(recipe)])


@dataclass(frozen=True)
class Length:
    """How long to train, and why."""

    steps: int
    evaluations: int
    explanation: str


def choose_length(
    blocks: TokenBlocks, settings: dict[str, Any], minutes: float, step: float, evaluation: float
) -> Length:
    """As many steps as fit into `minutes`, but no more than the text is worth.

    Evaluations take at most a quarter of the time, unless there would be fewer than two.

    Args:
        blocks: to train on.
        step: seconds.
        evaluation: seconds, with samples.
    """
    seconds = minutes * 60 * (1 - SPARE)
    evaluations = min(NUM_EVALUATIONS, max(2, int(seconds / 4 / max(evaluation, 1e-9))))
    fitting = int((seconds - evaluations * evaluation) / step)
    worthwhile = math.ceil(MAX_EPOCHS * len(blocks) / settings["global_batch_size"])
    steps = max(MIN_STEPS, min(fitting, worthwhile))
    expected = format_duration(steps * step + evaluations * evaluation)
    lines = [f"{steps:,} steps of {step:.2g} s and {evaluations} evaluations of {evaluation:.2g} s: about {expected}"]
    if worthwhile < fitting:
        lines.append(
            f"The text has {len(blocks) * blocks.block_size:,} tokens. More than {MAX_EPOCHS} passes over it would "
            f"teach the model little, so training ends before the {minutes:g} minutes; more text would make it better."
        )
    elif fitting < FEW_STEPS:
        needed = math.ceil((FEW_STEPS * step + evaluations * evaluation) / (1 - SPARE) / 60)
        lines.append(
            f"WARNING: only {max(0, fitting)} steps fit into {minutes:g} minutes, because a step takes {step:.2g} s "
            "here (is the machine busy with something else?). After so few steps a model writes hardly a word. Go on, "
            f"or stop with Ctrl-C and start with another --output_dir and --minutes {needed}, which is enough for "
            f"{FEW_STEPS} steps."
        )
    return Length(steps, evaluations, "\n".join(lines))


def recipe_for(folder: Path, size: Size) -> dict[str, Any]:
    """The settings of the run that do not depend on its length."""
    tokenizer = ScratchGPTTokenizer.from_pretrained(folder / "data" / TOKENIZER_FOLDER)
    validation = open_data(folder / "data").validation
    return {
        "config": size.preset,
        "data_dir": str(folder / "data"),
        "output_dir": str(folder / "run"),
        "global_batch_size": size.global_batch_size,
        "micro_batch_size": size.micro_batch_size,
        "min_lr_ratio": 0.0,
        "max_eval_samples": 128,
        "sample_prompts": held_out_prompts(validation, tokenizer, NUM_PROMPTS),
    }


def schedule_for(steps: int, evaluations: int = NUM_EVALUATIONS) -> dict[str, object]:
    """The settings that depend on the number of steps. Each evaluation is saved, so that the best can be used."""
    every = math.ceil(steps / evaluations)
    return {
        "max_steps": steps,
        "warmup_steps": min(50, steps // 10),
        "logging_steps": max(1, steps // 100),
        "eval_steps": every,
        "save_steps": every,
        "load_best_model_at_end": True,
    }


def seconds_needed(settings: dict[str, Any]) -> tuple[float, float]:
    """The median time of a step, and the time of an evaluation with samples, of a model that is then discarded."""
    with tempfile.TemporaryDirectory() as scratch:
        options = [f"--{name}={value}" for name, value in settings.items() if name != "sample_prompts"]
        options += [f"--output_dir={scratch}", "--sample_prompts", *settings["sample_prompts"]]
        kinds = (ModelArguments, DataArguments, TrainArguments)
        model, data, arguments = parse_recipe(kinds, options)
        accelerator = build_accelerator(arguments.precision)
        tokenizer = ScratchGPTTokenizer.from_pretrained(Path(data.data_dir) / TOKENIZER_FOLDER)
        run = pretrain.build_pretraining(model, arguments, open_data(data.data_dir), tokenizer, accelerator)
        seconds: list[float] = []
        while len(seconds) < 6 or sum(seconds) < TIMING_SECONDS:
            seconds.append(train_step(run, TrainState(step=len(seconds))).seconds)
        started = time.perf_counter()
        evaluate(run)
        sample(run)
    return statistics.median(seconds[2:]), time.perf_counter() - started


def try_model(model: Path, prompts: Sequence[str]) -> None:
    """Stage 4: load the model folder in new processes, as its users will, and print samples."""
    load_for_inference(str(model))  # refuses a damaged model, whose missing weights transformers would make up
    first_line = prompts[0].splitlines()[0]
    announce("4/4  Load the model in new processes", "generate", ["--model", str(model), "--prompt", first_line])
    print("\nPrompts (>) are beginnings of held-out paragraphs; the model continues them (|).")
    for title, preamble, trust in (
        ("with the package", "import hf_scratch_gpt", False),
        ("without the package, by the code in the folder (trust_remote_code=True)", HIDE_PACKAGE, True),
    ):
        print(f"\n--- AutoTokenizer and AutoModelForCausalLM {title}", flush=True)
        program = USE_MODEL.format(preamble=preamble, trust=trust, model=str(model), prompts=prompts, sampling=SAMPLING)
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)


HIDE_PACKAGE = """\
class Hidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "hf_scratch_gpt":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden)"""
USE_MODEL = """\
import sys, textwrap, torch
{preamble}
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.utils import logging
logging.disable_progress_bar()
tokenizer = AutoTokenizer.from_pretrained({model!r}, trust_remote_code={trust})
model = AutoModelForCausalLM.from_pretrained({model!r}, trust_remote_code={trust})
write = pipeline("text-generation", model=model, tokenizer=tokenizer)
print(f"{{type(tokenizer).__name__}}, {{type(model).__module__}}.{{type(model).__name__}}")
for prompt in {prompts!r}:
    torch.manual_seed(0)
    text = write(prompt, return_full_text=False, **{sampling!r})[0]["generated_text"]
    print(textwrap.indent(prompt.removesuffix("\\n"), "    > ", lambda line: True))
    print(textwrap.indent(text.rstrip(), "    | ", lambda line: True), end="\\n\\n")
"""


def corpus_options(corpus: CorpusArguments) -> list[str]:
    """`corpus` as command-line options."""
    defaults = vars(CorpusArguments())
    return as_options({name: value for name, value in vars(corpus).items() if value != defaults[name]})


def announce(title: str, name: str, options: Sequence[str]) -> None:
    """Print the next stage and the command that does the same."""
    print(f"\n=== {title}\n$ {command_line([name, *options], program() + ' ')}", flush=True)


def closing_text(folder: Path, prompt: str) -> str:
    """The files that were written, and commands to try next."""
    run, model = folder / "run", folder / "run" / MODEL_FOLDER
    files = {
        model: "the model, for AutoModelForCausalLM.from_pretrained",
        model / CARD_FILE: "its model card with all metrics",
        model / LOSS_CURVE_FILE: "its loss curve",
        run / METRICS_FILE: "metrics of every logged step",
        run / SAMPLES_FILE: "samples of every evaluation",
        folder / "recipe.yaml": "the settings of the run",
    }
    lines = [f"{path!s:<44}{meaning}" for path, meaning in files.items()]
    return "\n".join(["\n=== All done", *lines, "\nnext:", *closing_commands(folder, model, prompt)])


def closing_commands(folder: Path, model: Path, prompt: str) -> list[str]:
    """Command lines to try next."""
    longer = folder.with_name(f"{folder.name}-longer")
    steps = [
        ["generate", "--model", str(model), "--prompt", prompt],
        ["evaluate", "--model", str(model), "--data_dir", str(folder / "data")],
        ["quickstart", "--text", "your_book.txt", "--output_dir", str(folder.with_name("book"))],
        ["pretrain", str(folder / "recipe.yaml"), "--output_dir", str(longer), "--max_steps", "5000"],
        ["publish", "--folder_path", str(model), "--repo_id", "my-first-gpt", "--dry_run"],
    ]
    return [f"  {command_line(step, program() + ' ')}" for step in steps]


if __name__ == "__main__":
    sys.exit(run_command(main))
