"""Train a tokenizer and a model, and load them with transformers. Run the same command again to continue.

    scratch-gpt quickstart
    scratch-gpt quickstart --text book.txt --output_dir runs/book --minutes 30

By default it trains on Python's own standard library and documentation. Each stage prints the equivalent
command. A finished run is never changed.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hf_scratch_gpt import ScratchGPTTokenizer

from . import prepare_data, pretrain, train_tokenizer
from .data.blocks import MANIFEST, TOKENIZER_FOLDER, TooShortError, open_data, read_manifest
from .data.prompts import held_out_prompts
from .distributed.device import keep_freed_memory
from .model.inference import load_for_inference
from .settings.command import run_command
from .settings.corpus import CorpusArguments
from .settings.next_steps import as_options, command_line, program
from .settings.recipe import option, parse_recipe
from .settings.run_folder import (
    CARD_FILE,
    LOSS_CURVE_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    RECIPE_FILE,
    SAMPLES_FILE,
    TOKENIZER_FILE,
)

NUM_PROMPTS = 4
# so that a small model does not repeat itself
SAMPLING = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.1, "max_new_tokens": 64}
SHORTEST_BLOCK = 32


@dataclass
class QuickstartArguments:
    """Where to write, and how long to train."""

    output_dir: str = option("Folder for the tokenizer, the data and the run.", "runs/quickstart", is_path=True)
    minutes: float = option("Training time. Models of several sizes are timed to choose the best one for it.", 5.0)

    def __post_init__(self) -> None:
        if not 0 < self.minutes < float("inf"):
            raise ValueError(f"--minutes is {self.minutes}: it must be a positive number.")


@dataclass(frozen=True)
class Size:
    """The tokenizer and the blocks for a kind of machine."""

    vocab_size: int
    block_size: int


SIZES = {"cpu": Size(4096, 256), "gpu": Size(8192, 512)}


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
    if code := make_model(folder, arguments.minutes):
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


def make_model(folder: Path, minutes: float) -> int:
    """Stage 3; returns the exit code of pretraining. The recipe is written once and then kept."""
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        recipe.write_text(yaml.safe_dump(recipe_for(folder, minutes), sort_keys=False), encoding="utf-8")
    announce("3/4  Train the model", "pretrain", [str(recipe)])
    return pretrain.main([str(recipe)])


def recipe_for(folder: Path, minutes: float) -> dict[str, Any]:
    """The settings of the run: everything else follows from the minutes."""
    tokenizer = ScratchGPTTokenizer.from_pretrained(folder / "data" / TOKENIZER_FOLDER)
    validation = open_data(folder / "data").validation
    return {
        "minutes": minutes,
        "data_dir": str(folder / "data"),
        "output_dir": str(folder / "run"),
        "max_eval_samples": 128,
        "sample_prompts": held_out_prompts(validation, tokenizer, NUM_PROMPTS),
    }


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
        run / RECIPE_FILE: "the settings of the run",
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
        ["pretrain", str(folder / "recipe.yaml"), "--output_dir", str(longer), "--minutes", "30"],
        ["publish", "--folder_path", str(model), "--repo_id", "my-first-gpt", "--dry_run"],
    ]
    return [f"  {command_line(step, program() + ' ')}" for step in steps]


if __name__ == "__main__":
    sys.exit(run_command(main))
