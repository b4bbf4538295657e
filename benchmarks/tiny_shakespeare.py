"""Loss and time on Tiny Shakespeare: `python -m benchmarks.tiny_shakespeare --text input.txt`.

Runs the recipes of examples/tiny_shakespeare on
https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt. With --nanogpt, the folder of
a clone of https://github.com/karpathy/nanoGPT, it also runs nanoGPT with its own recipe for a CPU (4 layers, 4 heads,
hidden size 128, 2000 steps of 12 x 64 characters, no dropout).

best.yaml reads parts of words instead of characters, about 260 characters at once. Its loss is the sum over all tokens
divided by the number of characters, also measured on blocks of about 64 characters. Training seconds are steps x the
median time of a logged step, without start and evaluations; seconds are those of the whole command, without the
preparation of the data.
"""

import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from hf_scratch_gpt import ScratchGPTForCausalLM
from train import prepare_data, pretrain, train_tokenizer
from train.data.blocks import TOKENIZER_FOLDER, open_data
from train.data.tokens import load_data_tokenizer
from train.evaluate import data_streams, score_streams
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe, required
from train.settings.run_folder import MODEL_FOLDER

from .report import print_table

SPLIT = ("--validation_fraction=0.1", "--validation_part=end")
# Options of train_tokenizer and prepare_data for each recipe, as in the README of the example, and the number of tokens
# in about 64 characters. The text is ASCII, so a byte is a character.
RECIPES = {
    "fast": (("--type=characters",), "--block_size=64", 64),
    "pretrain": (("--type=characters",), "--block_size=64", 64),
    "best": (("--vocab_size=512", *SPLIT), "--block_size=128", 32),
}
EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny_shakespeare"
NANOGPT_CONFIG = "config/train_shakespeare_char.py"
# From nanoGPT's README, section "I only have a macbook". Its last evaluation is longer, so that it covers as many
# characters (150 x 12 x 64) as ours; earlier ones are skipped.
NANOGPT_OPTIONS = (
    *("--device=cpu", "--compile=False", "--log_interval=100", "--eval_interval=2000", "--eval_iters=150"),
    *("--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128"),
    *("--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
)


@dataclass
class ShakespeareArguments:
    """Options of the benchmark."""

    text: str = required("The text, a file of 1,115,394 characters.", is_path=True)
    nanogpt: str | None = option("Folder of a clone of nanoGPT, to run it too.", is_path=True)
    seed: int = option("Seed of our run.", 0)

    def __post_init__(self) -> None:
        if self.nanogpt and not Path(self.nanogpt, NANOGPT_CONFIG).exists():
            raise ValueError(
                f"--nanogpt {self.nanogpt} does not contain {NANOGPT_CONFIG}: give the folder of a clone of nanoGPT."
            )


@dataclass
class Result:
    """The result of one training."""

    name: str
    num_parameters: str
    steps: int
    loss: float  # nats per character of the validation part
    short_loss: float  # the same on blocks of about 64 characters
    training_seconds: float
    seconds: float

    def row(self) -> list[str]:
        """Its row of the table."""
        seconds = [f"{self.training_seconds:.1f}", f"{self.seconds:.1f}"]
        losses = [f"{self.loss:.4f}", f"{self.short_loss:.4f}"]
        return [self.name, self.num_parameters, f"{self.steps:,}", *losses, *seconds]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([ShakespeareArguments], argv, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        results = run_ours(arguments.text, Path(folder), arguments.seed)
        if arguments.nanogpt:
            results.insert(0, run_nanogpt(Path(arguments.nanogpt), arguments.text, Path(folder, "nanogpt")))
    print_table(
        "Tiny Shakespeare",
        ["", "parameters", "steps", "nats per character", "on blocks of 64", "training seconds", "seconds"],
        [result.row() for result in results],
    )


def run_ours(text: str, folder: Path, seed: int) -> list[Result]:
    """Run the commands of the example's README."""
    results = []
    for recipe, (kind, blocks, _) in RECIPES.items():
        tokenizer, data = str(folder / f"tokenizer_{recipe}"), str(folder / f"data_{recipe}")
        train_tokenizer.main(["--text", text, "--output_dir", tokenizer, *kind])
        prepare_data.main(["--tokenizer", tokenizer, "--text", text, "--output_dir", data, *SPLIT, blocks])
        results.append(train_ours(recipe, data, folder / recipe, seed))
    return results


def train_ours(recipe: str, data: str, run: Path, seed: int) -> Result:
    """Run a recipe of the example.

    Raises:
        ValueError: training was stopped.
    """
    started = time.perf_counter()
    options = [f"--config={EXAMPLE}", f"--data_dir={data}", f"--output_dir={run}", f"--seed={seed}"]
    if code := pretrain.main([str(EXAMPLE / f"{recipe}.yaml"), *options]):
        raise ValueError(f"scratch-gpt pretrain ended with exit code {code}.")
    seconds = time.perf_counter() - started
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(one for one in reversed(records) if "eval_loss" in one)
    speed = statistics.median(one["tokens_per_second"] for one in records if "tokens_per_second" in one)
    loss = last["eval_bits_per_byte"] * math.log(2)
    size = f"{num_parameters(run / MODEL_FOLDER) / 1e6:.2f}M"
    losses = loss, short_loss(run / MODEL_FOLDER, data, RECIPES[recipe][2])
    times = last["tokens_seen"] / speed, seconds
    return Result(f"ours, {recipe}.yaml, seed {seed}", size, last["step"], *losses, *times)


def short_loss(model: Path, data: str, block_size: int) -> float:
    """Nats per character of the validation part in blocks of `block_size` tokens."""
    tokenizer = load_data_tokenizer("the prepared data", Path(data) / TOKENIZER_FOLDER)
    network = ScratchGPTForCausalLM.from_pretrained(model).eval()
    ((_, scores),) = score_streams(network, data_streams(open_data(data)), block_size, 64, tokenizer)
    return scores.nats / scores.num_bytes


def num_parameters(model: Path) -> int:
    """Parameters of a saved model; a tied head counts once."""
    with safe_open(model / "model.safetensors", "pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118  not a dictionary
    return sum(math.prod(shape) for shape in shapes)


def run_nanogpt(clone: Path, text: str, folder: Path) -> Result:
    """Run nanoGPT's own scripts in a copy of the clone.

    Raises:
        ValueError: its output has an unknown format.
    """
    shutil.copytree(clone, folder, ignore=shutil.ignore_patterns(".git"))
    data = folder / "data" / "shakespeare_char"
    shutil.copy(text, data / "input.txt")
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True)
    started = time.perf_counter()
    command = [sys.executable, "train.py", NANOGPT_CONFIG, *NANOGPT_OPTIONS]
    output = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds = time.perf_counter() - started
    parameters = re.search(r"number of parameters: (\S+)", output)
    losses = re.findall(r"step \d+: train loss \S+, val loss (\S+)", output)
    times = [float(found) for found in re.findall(r"iter \d+: loss \S+, time (\S+)ms", output)]
    if not (parameters and losses and len(times) > 2):
        raise ValueError(f"no result in the output of nanoGPT, which ends with {output[-300:]!r}")
    training_seconds = 2000 * statistics.median(times[1:-1]) / 1e3  # the first and the last include an evaluation
    loss = float(losses[-1])
    return Result("nanoGPT", parameters[1], 2000, loss, loss, training_seconds, seconds)


if __name__ == "__main__":
    sys.exit(run_command(main))
