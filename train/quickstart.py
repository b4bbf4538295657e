"""The whole road once: tokenizer, data, pretraining, and back through AutoModel. `scratch-gpt quickstart`

Without options it trains on the text that every Python carries: the sources of its standard library and its language
documentation. Each stage is one of the scripts of this folder, and the command that does it is printed. A second call
continues where the first one stopped, and never changes a finished run.
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

import torch
import yaml

from hf_scratch_gpt import ScratchGPTTokenizer

from . import prepare_data, pretrain, train_tokenizer
from .checkpoint.state import TrainState
from .data.blocks import TOKENIZER_FOLDER, open_data
from .distributed.device import build_accelerator, keep_freed_memory
from .loop.evaluation import evaluate, sample
from .loop.train import train_step
from .settings.command import run_command
from .settings.corpus import CorpusArguments
from .settings.recipe import option, parse_recipe
from .settings.run_folder import CARD_FILE, LOSS_CURVE_FILE, MODEL_FOLDER
from .settings.training import DataArguments, ModelArguments, TrainArguments

PROMPTS = ("def read_", "class Queue:\n", "import os\n", 'The "for" statement')
NUM_EVALUATIONS = 8
SPARE = 0.1  # of the time: for loading, checkpoints and a machine that slows down
TIMING_SECONDS = 12.0


@dataclass
class QuickstartArguments:
    """Settings of train.quickstart."""

    output_dir: str = option("Folder for everything that is made.", "runs/quickstart")
    minutes: float = option("How long to train; the number of steps is chosen by timing a few of them.", 5.0)

    def __post_init__(self) -> None:
        """Refuse a budget that is none."""
        if not 0 < self.minutes < float("inf"):
            raise ValueError(f"--minutes is {self.minutes}: it must be a positive number.")


@dataclass(frozen=True)
class Size:
    """What to train on a kind of machine."""

    preset: str
    vocab_size: int
    block_size: int
    global_batch_size: int
    micro_batch_size: int
    learning_rate: float


SIZES = {"cpu": Size("laptop", 4096, 256, 8, 8, 8e-3), "gpu": Size("small", 8192, 512, 64, 32, 3e-3)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run all stages that are not done yet."""
    arguments, corpus = parse_recipe([QuickstartArguments, CorpusArguments], argv, description=__doc__ or "")
    folder = Path(arguments.output_dir)
    for text in corpus.text:
        if Path(text).resolve() in folder.resolve().parents:
            raise ValueError(f"--output_dir {folder} lies inside --text {text}: what is made would become corpus.")
    size = SIZES["gpu" if torch.accelerator.is_available() else "cpu"]
    keep_freed_memory()
    make_tokenizer(folder / "tokenizer", size, corpus)
    make_data(folder, size, corpus)
    if code := make_model(folder, size, arguments.minutes):
        return code
    try_model(folder / "run" / MODEL_FOLDER)
    print(closing_words(folder))
    return 0


def make_tokenizer(folder: Path, size: Size, corpus: CorpusArguments) -> None:
    """Stage 1; a tokenizer that lies there is kept."""
    options = ["--output_dir", str(folder), "--vocab_size", str(size.vocab_size), *corpus_options(corpus)]
    announce("1/4  Train a tokenizer", "train_tokenizer", options)
    made_from = folder / "corpus.yaml"
    if (folder / train_tokenizer.TOKENIZER_FILE).exists():
        check_corpus(made_from, corpus)
        print(f"done before: {folder}")
    else:
        train_tokenizer.main(options)
        made_from.write_text(yaml.safe_dump(vars(corpus)), encoding="utf-8")


def check_corpus(made_from: Path, corpus: CorpusArguments) -> None:
    """Refuses to go on with the tokenizer of another text.

    Raises:
        ValueError: the text that it was made from.
    """
    before = yaml.safe_load(made_from.read_text(encoding="utf-8")) if made_from.exists() else vars(corpus)
    if before != vars(corpus):
        text = " ".join(corpus_options(CorpusArguments(**before))) or "Python's own text"
        raise ValueError(f"{made_from.parent} was made from {text}: name another --output_dir for other text.")


def make_data(folder: Path, size: Size, corpus: CorpusArguments) -> None:
    """Stage 2."""
    options = ["--tokenizer", str(folder / "tokenizer"), "--output_dir", str(folder / "data")]
    options += ["--block_size", str(size.block_size), *corpus_options(corpus)]
    announce("2/4  Turn the text into blocks of tokens", "prepare_data", options)
    prepare_data.main(options)


def make_model(folder: Path, size: Size, minutes: float) -> int:
    """Stage 3; returns the exit code of the training. The recipe is chosen once and then kept."""
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


def recipe_for(folder: Path, size: Size) -> dict[str, object]:
    """The settings of the training, but for what depends on its length."""
    return {
        "config": size.preset,
        "data_dir": str(folder / "data"),
        "output_dir": str(folder / "run"),
        "global_batch_size": size.global_batch_size,
        "micro_batch_size": size.micro_batch_size,
        "learning_rate": size.learning_rate,
        "min_lr_ratio": 0.0,
        "max_eval_samples": 128,
        "sample_prompts": list(PROMPTS),
    }


def schedule_for(steps: int) -> dict[str, object]:
    """The settings that depend on the number of steps, such as how often to evaluate; four checkpoints."""
    return {
        "max_steps": steps,
        "warmup_steps": min(50, steps // 10),
        "logging_steps": max(1, steps // 100),
        "eval_steps": math.ceil(steps / NUM_EVALUATIONS),
        "save_steps": math.ceil(steps / 4),
    }


def seconds_needed(settings: dict[str, object]) -> tuple[float, float]:
    """Of a model that is thrown away: the median time of a step, and that of an evaluation with its samples."""
    with tempfile.TemporaryDirectory() as scratch:
        options = [f"--{name}={value}" for name, value in settings.items() if name != "sample_prompts"]
        options += [f"--output_dir={scratch}", "--sample_prompts", *PROMPTS]
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


def try_model(model: Path) -> None:
    """Stage 4: load the folder in new processes, as its users will, and print what it writes."""
    announce("4/4  Load the model in new processes", "generate", ["--model", str(model), "--prompt", PROMPTS[0]])
    for title, preamble, trust in (
        ("with the package", "import hf_scratch_gpt", False),
        ("without the package, by the code in the folder (trust_remote_code=True)", HIDE_PACKAGE, True),
    ):
        print(f"\n--- AutoTokenizer and AutoModelForCausalLM {title}", flush=True)
        program = USE_MODEL.format(preamble=preamble, trust=trust, model=str(model), prompts=PROMPTS)
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
    text = write(prompt, max_new_tokens=48, do_sample=True, temperature=0.7, top_k=50)[0]["generated_text"]
    print(textwrap.indent(text, "    | ", lambda line: True), end="\\n\\n")
"""


def corpus_options(corpus: CorpusArguments) -> list[str]:
    """The command-line options that say the same as `corpus`."""
    options: list[str] = []
    for name, value in vars(corpus).items():
        if value != getattr(CorpusArguments(), name):
            options += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return options


def announce(title: str, script: str, options: Sequence[str]) -> None:
    """Say what comes next and which command does just that."""
    command = " ".join(option if option.isprintable() and " " not in option else repr(option) for option in options)
    print(f"\n=== {title}\n$ {this_python()} -m train.{script} {command}", flush=True)


def this_python() -> str:
    """The interpreter as a person types it: that of a virtual environment here by its path, others by name."""
    path = Path(sys.executable)
    is_here = path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if is_here else "python"


def closing_words(folder: Path) -> str:
    """Where everything lies and what to try next."""
    run, model = folder / "run", folder / "run" / MODEL_FOLDER
    places = {
        model: "the model, for AutoModelForCausalLM.from_pretrained",
        model / CARD_FILE: "its card with all figures",
        model / LOSS_CURVE_FILE: "how the loss fell",
        run / "metrics.jsonl": "every logged step",
        run / "samples.jsonl": "what it wrote at each evaluation",
        folder / "recipe.yaml": "the settings of the training",
    }
    lines = [f"{path!s:<44}{meaning}" for path, meaning in places.items()]
    return "\n".join(["\n=== All done", *lines, NEXT_STEPS.format(folder=folder, model=model, python=this_python())])


NEXT_STEPS = """
Try next:
  {python} -m train.generate --model {model} --prompt "class Stack:"
  {python} -m train.evaluate --model {model} --text README.md
  {python} -m train.quickstart --text your_book.txt --output_dir runs/book
  {python} -m train.pretrain {folder}/recipe.yaml --output_dir runs/longer --max_steps 5000
  {python} -m train.publish --folder_path {model} --repo_id my-first-gpt --dry_run
"""
if __name__ == "__main__":
    sys.exit(run_command(main))
