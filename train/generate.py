"""Complete prompts with a trained model.

    scratch-gpt generate --model runs/quickstart/run/model --prompt "def "
    scratch-gpt generate --model alice/tiny --temperature 0 --max_new_tokens 50
    scratch-gpt generate --model alice/tiny --prompt "Once" --num_samples 3 --stop "The end"
    scratch-gpt generate --model alice/tiny --prompt "Once" --max_new_tokens 10 --show_top 5
    cat beginning.txt | scratch-gpt generate --model alice/tiny

A model is a folder, or a name on the Hugging Face Hub. Control tokens in a prompt, such as <|endoftext|>, are read as
text.
"""

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .model.compiled import compile_generation
from .model.generation import TextStream, check_outputs, encode_prompt, generate_text, max_positions
from .model.inference import load_for_inference
from .model.top_tokens import TopTokens
from .settings.checks import check_bounds, requires
from .settings.command import interruptible, run_command
from .settings.inference import GenerationModelArguments
from .settings.recipe import option, option_list, parse_recipe, required
from .settings.sampling import SamplingArguments
from .settings.standard_input import read_stdin

DEFAULT_NEW_TOKENS = 128
FROM_STDIN = "-"
MOST_SHOWN = 20  # tokens in a line


@dataclass
class GenerateArguments:
    """The model, the prompts, and the completions."""

    model: str = required("Model or adapter: a folder, or a name on the Hugging Face Hub.", is_path=True)
    prompt: list[str] = option_list(
        'Texts to complete; "-": standard input (default: standard input if it is a pipe or a file, else one sample '
        "from an empty prompt)."
    )
    max_new_tokens: int | None = option(
        "Maximum number of tokens to generate (default: 128, or half of the maximum length of the model if less)."
    )
    num_samples: int = option("Completions of each prompt.", 1)
    stop: list[str] = option_list("Texts that end a completion; they are not printed.")
    show_top: int | None = option("Print a table first: this many most probable next tokens at each step.")

    def __post_init__(self) -> None:
        check_bounds(self, {"max_new_tokens": 1, "num_samples": 1, "show_top": 1}, {"show_top": MOST_SHOWN})
        if "" in self.stop:
            raise ValueError("--stop is an empty text, which would end each completion at once: remove it.")


@interruptible
def main(argv: Sequence[str] | None = None) -> None:
    """Print each prompt, and its completions as they are generated."""
    arguments, loading, sampling = parse_recipe(
        [GenerateArguments, GenerationModelArguments, SamplingArguments], argv, description=__doc__ or ""
    )
    if arguments.num_samples > 1 and sampling.temperature == 0:
        raise ValueError(requires("num_samples", arguments.num_samples, "--temperature above 0: all would be equal"))
    if arguments.show_top is not None and loading.torch_compile:
        raise ValueError(requires("show_top", arguments.show_top, "--torch_compile false"))
    model, tokenizer = load_for_inference(arguments.model, quantization=loading.quantization)
    prompts = read_prompts(arguments.prompt)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    max_new_tokens = new_tokens(model, arguments.max_new_tokens)
    check_outputs(arguments.model, model, encoded[0][:1])
    if loading.torch_compile:
        compile_generation(f"--model {arguments.model}", model, encoded[0][0])
    several = len(prompts) * arguments.num_samples > 1
    for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), start=1):
        torch.manual_seed(sampling.seed)
        ids = shortened(ids, max_positions(model) - max_new_tokens)
        for sample in range(1, arguments.num_samples + 1):
            if several:
                print(f"--- {title(number, len(prompts), sample, arguments.num_samples)}")
            complete(model, tokenizer, prompt, ids, arguments, max_new_tokens=max_new_tokens, **sampling.generation)


def complete(
    model: Any, tokenizer: Any, prompt: str, ids: list[int], arguments: GenerateArguments, **generation: Any
) -> None:
    """Print a prompt and its completion as it is generated, or with `show_top` the table first."""
    if arguments.show_top is not None:
        top = TopTokens(tokenizer, lambda line: print(line, flush=True), arguments.show_top, arguments.stop)
        with top.watching(model):
            generate_text(model, tokenizer, ids, top, **generation)
        print(f"\n{prompt}{top.text}")
        return
    print(prompt, end="", flush=True)
    stream = TextStream(tokenizer, lambda text: print(text, end="", flush=True), arguments.stop)
    generate_text(model, tokenizer, ids, stream, **generation)
    print()


def title(number: int, num_prompts: int, sample: int, num_samples: int) -> str:
    """Which prompt and sample follows."""
    parts = [("prompt", number, num_prompts), ("sample", sample, num_samples)]
    return ", ".join(f"{name} {one} of {count}" for name, one, count in parts if count > 1)


def read_prompts(given: Sequence[str]) -> list[str]:
    """The prompts, with standard input in place of "-"; an empty one if there is none.

    Raises:
        ValueError: "-" is given twice, or standard input is not UTF-8 text.
    """
    if given.count(FROM_STDIN) > 1:
        raise ValueError('--prompt has "-" twice, but standard input can be read only once: remove one of them.')
    if not given and has_input():
        given = [FROM_STDIN]
    return [prompt_from_stdin() if prompt == FROM_STDIN else prompt for prompt in given] or [""]


def has_input() -> bool:
    """Whether standard input is a pipe or a file; it may also be a terminal, closed, or /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def prompt_from_stdin() -> str:
    """Standard input without its last line break."""
    return read_stdin("a prompt", "give --prompt").removesuffix("\n")


def new_tokens(model: Any, given: int | None) -> int:
    """The number of tokens to generate.

    Raises:
        ValueError: they leave no room for a prompt.
    """
    positions = max_positions(model)
    count = given or min(DEFAULT_NEW_TOKENS, positions // 2)
    if count >= positions:
        raise ValueError(
            f"--max_new_tokens ({count}) leaves no room for a prompt: the model reads {positions} tokens. Lower it."
        )
    return count


def shortened(ids: list[int], longest: int) -> list[int]:
    """The last `longest` ids, with a warning if there are more."""
    if len(ids) > longest:
        print(f"warning: only the last {longest} of the prompt's {len(ids)} tokens are used", file=sys.stderr)
    return ids[-longest:]


if __name__ == "__main__":
    sys.exit(run_command(main))
