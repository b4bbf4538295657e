"""The console command `scratch-gpt`, which lists the commands and runs one of them."""

# Installed as `scratch_gpt_cli`: a module below `hf_scratch_gpt` could not be imported without torch, and
# `scratch-gpt --help` must not wait for that.

import importlib
import sys
from collections.abc import Sequence

from .early import check_command_line

PROGRAM = "scratch-gpt"
# in the order in which a user meets them
COMMANDS = {
    "quickstart": "tokenizer, data, pretraining and generation in one command",
    "train_tokenizer": "train a tokenizer on text: BPE, unigram, characters or bytes",
    "compare_tokenizers": "compare tokenizers on a text, with bits per byte after equal compute",
    "prepare_data": "encode text into blocks of tokens",
    "plan": "estimate memory, traffic and time before a run",
    "pretrain": "pretrain a model from scratch, or continue a run",
    "evaluate": "perplexity, bits per byte and minimal pairs of a model",
    "generate": "complete prompts",
    "finetune": "fine-tune a model on conversations",
    "chat": "chat with a fine-tuned model in the terminal",
    "demo": "try a model in the browser, and look inside it",
    "serve": "serve a model with OpenAI's API",
    "finetune_classifier": "fine-tune a model to classify texts",
    "classify": "label texts with a fine-tuned classifier",
    "convert": "convert a model from or to GPT-2, Llama and Qwen3, or to GGUF or ONNX",
    "report": "compare runs on one page",
    "rollback": "rewind a run to an earlier checkpoint and skip steps",
    "publish": "upload a model to the Hugging Face Hub",
    "pull": "download a model and verify its checksums",
}


def main(argv: Sequence[str] | None = None, package: str = "hf_scratch_gpt.training") -> int:
    """Run `scratch-gpt COMMAND ...`; returns its exit code.

    Args:
        argv: the command line without the program; None: that of this process.
        package: where the commands are; `train` in a checkout.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"{PROGRAM} {importlib.import_module('importlib.metadata').version('hf_scratch_gpt')}")
        return 0
    if arguments[0] == "--completion":
        print(f'complete -o default -W "{" ".join(COMMANDS)}" {PROGRAM}')
        return 0
    name = arguments[0].replace("-", "_")
    if name not in COMMANDS:
        print(f"error: unknown command {arguments[0]!r}{suggestion(name)}", file=sys.stderr)
        return 2
    sys.argv[0] = f"{PROGRAM} {name}"  # the name in `--help`
    if (code := check_command_line(package, name, arguments[1:])) is not None:
        return code
    try:
        command = importlib.import_module(f"{package}.{name}")
        run_command = importlib.import_module(f"{package}.settings.command").run_command
    except ModuleNotFoundError as error:
        print(f'error: {error.name} is not installed: pip install "hf_scratch_gpt[train]"', file=sys.stderr)
        return 2
    exit_code: int = run_command(command.main, arguments[1:])
    return exit_code


def usage() -> str:
    """The text of `scratch-gpt --help`."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [recipe.yaml ...] [--name value ...]",
            "",
            "commands:",
            *(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()),
            "",
            f"{PROGRAM} COMMAND --help lists the options of a command.",
            f'Shell completion of command names: eval "$({PROGRAM} --completion)"   (zsh: bashcompinit first)',
        ]
    )


def suggestion(name: str) -> str:
    """The nearest command, or a pointer to the list."""
    import difflib

    nearest = difflib.get_close_matches(name, COMMANDS, n=1)
    return f": did you mean {nearest[0]}?" if nearest else f". {PROGRAM} --help lists the commands."
