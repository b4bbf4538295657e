"""Train a tokenizer and a model, and load them with transformers. Run the same command again to continue.

    scratch-gpt quickstart
    scratch-gpt quickstart --text book.txt --output_dir runs/book --minutes 30

By default it trains on Python's own standard library and documentation. Each stage prints the equivalent
command. A finished run is never changed.
"""

import math
import os
import shutil
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
from .data.blocks import TOKENIZER_FOLDER, open_data
from .data.prompts import held_out_prompts
from .distributed.device import build_accelerator, keep_freed_memory
from .loop.evaluation import evaluate, sample
from .loop.train import train_step
from .model.inference import load_for_inference
from .settings.command import run_command
from .settings.corpus import CorpusArguments
from .settings.recipe import option, parse_recipe
from .settings.run_folder import CARD_FILE, LOSS_CURVE_FILE, METRICS_FILE, MODEL_FOLDER, SAMPLES_FILE, TOKENIZER_FILE
from .settings.training import DataArguments, ModelArguments, TrainArguments

NUM_PROMPTS = 4
# so that a small model does not repeat itself
SAMPLING = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.1, "max_new_tokens": 64}
NUM_EVALUATIONS = 8
SPARE = 0.1  # fraction of the time for loading, checkpoints and slowdowns of the machine
TIMING_SECONDS = 12.0


@dataclass
class QuickstartArguments:
    """Where to write, and how long to train."""

    output_dir: str = option("Folder for the tokenizer, the data and the run.", "runs/quickstart", is_path=True)
    minutes: float = option("Training time; a few steps are timed to choose the number of steps.", 5.0)

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
    print(closing_text(folder))
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
    """Stage 2."""
    options = ["--tokenizer", str(folder / "tokenizer"), "--output_dir", str(folder / "data")]
    options += ["--block_size", str(size.block_size), *corpus_options(corpus)]
    announce("2/4  Turn the text into blocks of tokens", "prepare_data", options)
    prepare_data.main(options)


def make_model(folder: Path, size: Size, minutes: float) -> int:
    """Stage 3; returns the exit code of pretraining. The recipe is written once and then kept."""
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        print(f"\nTiming a few steps to fill {minutes:g} minutes ...", flush=True)
        settings = recipe_for(folder, size)
        step, evaluation = seconds_needed(settings)
        steps = int((minutes * 60 * (1 - SPARE) - NUM_EVALUATIONS * evaluation) / step)
        settings |= schedule_for(max(steps, 20))
        recipe.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    announce("3/4  Train the model", "pretrain", [str(recipe)])
    return pretrain.main([str(recipe)])


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


def schedule_for(steps: int) -> dict[str, object]:
    """The settings that depend on the number of steps."""
    return {
        "max_steps": steps,
        "warmup_steps": min(50, steps // 10),
        "logging_steps": max(1, steps // 100),
        "eval_steps": math.ceil(steps / NUM_EVALUATIONS),
        "save_steps": math.ceil(steps / 4),
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
    options: list[str] = []
    for name, value in vars(corpus).items():
        if value != getattr(CorpusArguments(), name):
            options += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return options


def announce(title: str, name: str, options: Sequence[str]) -> None:
    """Print the next stage and the command that does the same."""
    command = " ".join(option if option.isprintable() and " " not in option else repr(option) for option in options)
    print(f"\n=== {title}\n$ {program()} {name} {command}", flush=True)


def program() -> str:
    """`scratch-gpt` as a person can type it: by its path if the virtual environment is not activated."""
    script = Path(sys.executable).with_name("scratch-gpt")
    if shutil.which("scratch-gpt") or not script.exists():
        return "scratch-gpt"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def closing_text(folder: Path) -> str:
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
    return "\n".join(["\n=== All done", *lines, NEXT_STEPS.format(program=program(), folder=folder, model=model)])


NEXT_STEPS = """
Try next:
  {program} generate --model {model} --prompt "class Stack:"
  {program} evaluate --model {model} --text README.md
  {program} quickstart --text your_book.txt --output_dir runs/book
  {program} pretrain {folder}/recipe.yaml --output_dir runs/longer --max_steps 5000
  {program} publish --folder_path {model} --repo_id my-first-gpt --dry_run
"""


if __name__ == "__main__":
    sys.exit(run_command(main))
