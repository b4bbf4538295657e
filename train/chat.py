"""Chat with a fine-tuned model in the terminal.

    scratch-gpt chat --model runs/assistant/model

Each line is a message; the model sees the whole conversation. Commands: /help, /reset, /system, /save, /exit. Ctrl-C
stops an answer, Ctrl-D quits. Control tokens in a message, such as <|end|>, are read as text.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .data.plain_text import Message, prompt_ids
from .model.compiled import compile_generation
from .model.conversation import Conversation
from .model.generation import TextStream, check_outputs, generate_text, max_positions
from .model.inference import load_for_inference
from .settings.checks import check_bounds
from .settings.command import interruptible, run_command
from .settings.durable import replace_text
from .settings.inference import GenerationModelArguments
from .settings.recipe import option, parse_recipe, required
from .settings.sampling import SamplingArguments
from .settings.standard_input import PATIENCE, is_terminal, saying_after

COMMANDS = {
    "/help": "list the commands",
    "/reset": "start a new conversation",
    "/system TEXT": "set the system message, and start a new conversation; without a text: none",
    "/save FILE": "write the conversation to a new file, as a row of data for finetune (.jsonl)",
    "/exit": "quit, like Ctrl-D",
}


@dataclass
class ChatArguments:
    """The model, and the length of its answers."""

    model: str = required(
        "Model with a chat template, or its adapter: a folder, or a name on the Hugging Face Hub.", is_path=True
    )
    system: str | None = option("System message at the start of each conversation.")
    max_new_tokens: int | None = option(
        "Maximum number of tokens per answer (default: 128, or what the conversation leaves of the maximum length of "
        "the model)."
    )

    def __post_init__(self) -> None:
        check_bounds(self, {"max_new_tokens": 1})


@dataclass
class ChatSampling(SamplingArguments):
    """How the next token is chosen."""

    temperature: float = option("Sampling temperature; 0: always the most probable token.", 0.0)


@interruptible
def main(argv: Sequence[str] | None = None) -> None:
    """Read messages line by line, and answer each."""
    arguments, loading, sampling = parse_recipe(
        [ChatArguments, GenerationModelArguments, ChatSampling], argv, description=__doc__ or ""
    )
    model, tokenizer = load_for_inference(arguments.model, quantization=loading.quantization)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{arguments.model} has no chat template: fine-tune it with scratch-gpt finetune, or complete prompts with "
            f"scratch-gpt generate --model {arguments.model}."
        )
    conversation = start(arguments, model, tokenizer)
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "?"}])
    check_outputs(arguments.model, model, ids)
    if loading.torch_compile:
        compile_generation(f"--model {arguments.model}", model, ids[0])
    torch.manual_seed(sampling.seed)
    if is_terminal():
        print("Type a message. /help lists the commands, Ctrl-D quits.")
    line = first_line()
    while line not in (None, "/exit"):
        if is_command(line or ""):
            obey(str(line), conversation)
        elif line:
            respond(line, conversation, model, sampling)
        line = next_line()


def is_command(line: str) -> bool:
    """Whether a line is a command or a mistyped one, not a message that begins with a slash."""
    return bool(re.fullmatch(r"/(?:[a-z]+|(?:system|save)\s.*)", line))


def start(arguments: ChatArguments, model: Any, tokenizer: PreTrainedTokenizerBase) -> Conversation:
    """An empty conversation.

    Raises:
        ValueError: the system message or the length of an answer leaves no room for a question.
    """
    system: list[Message] = [{"role": "system", "content": arguments.system}] if arguments.system else []
    conversation = Conversation(tokenizer, system, max_positions(model), arguments.max_new_tokens)
    shortest = conversation.count([{"role": "user", "content": "?"}])
    if shortest + conversation.limit_of_answer(is_last=True) > conversation.positions:
        given = {
            "--system": arguments.system,
            f"--max_new_tokens ({arguments.max_new_tokens})": arguments.max_new_tokens,
        }
        longest = " and ".join(name for name, value in given.items() if value) or "the chat template"
        raise ValueError(
            f"{longest} leaves no room for a question: the model reads {conversation.positions} tokens. Shorten it."
        )
    return conversation


def first_line() -> str | None:
    """As `next_line`, but input that is not typed must have one.

    Raises:
        ValueError: standard input is empty or closed.
    """
    if is_terminal():
        return next_line()
    with saying_after(PATIENCE, "waiting for a message per line on standard input"):
        line = next_line() if sys.stdin else None
    if line is None:
        raise ValueError("standard input is empty: chat reads a message per line, from a terminal, a pipe or a file.")
    return line


def next_line() -> str | None:
    """The next line that the user types, or None at the end of the input; Ctrl-C is /exit."""
    try:
        return input("> " if is_terminal() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return "/exit"
    except UnicodeDecodeError:
        notice("this line is not UTF-8 text.")
        return ""


def obey(line: str, conversation: Conversation) -> None:
    """Carry out a command."""
    command, _, value = line.partition(" ")
    value = value.strip()
    if command == "/reset" and not value:
        conversation.turns = []
        notice("new conversation.")
    elif command == "/system":
        set_system(value, conversation)
    elif command == "/save":
        save(value, conversation)
    elif command == "/help" and not value:
        width = max(map(len, COMMANDS)) + 2
        print("\n".join(f"{name:<{width}}{meaning}" for name, meaning in COMMANDS.items()))
    else:
        notice(f"{line} is not a command. Commands: {', '.join(COMMANDS)}.")


def set_system(text: str, conversation: Conversation) -> None:
    """Start a new conversation with another system message, unless it leaves no room for a question."""
    system: list[Message] = [{"role": "system", "content": text}] if text else []
    other = Conversation(conversation.tokenizer, system, conversation.positions, conversation.limit)
    try:
        other.add_question("?")
    except ValueError:
        notice(f"this system message leaves no room for a question: the model reads {other.positions:,} tokens.")
        return
    conversation.system, conversation.turns = system, []
    notice(f"new conversation, {'with this' if text else 'without a'} system message.")


def save(name: str, conversation: Conversation) -> None:
    """Write the conversation to a new file."""
    path = Path(name).expanduser()
    if not name:
        notice("/save needs the name of a file, such as /save talk.jsonl.")
    elif not conversation.turns:
        notice("there is nothing to save yet.")
    elif path.exists():
        notice(f"{path} exists: give the name of a new file.")
    else:
        try:
            replace_text(path, json.dumps({"messages": conversation.messages}, ensure_ascii=False) + "\n")
            notice(f"saved to {path}.")
        except OSError as error:
            notice(f"{path} cannot be written: {(error.strerror or str(error)).lower()}.")


def respond(question: str, conversation: Conversation, model: Any, sampling: SamplingArguments) -> None:
    """Answer a question; a question that cannot be answered is refused in one sentence, and the session goes on."""
    try:
        num_dropped = conversation.add_question(question)
    except ValueError as error:
        notice(str(error))
        return
    if num_dropped:
        notice(
            f"the conversation no longer fits into the model's {conversation.positions} tokens: dropped its beginning."
        )
    answer = answer_to(conversation, model, sampling)
    conversation.turns.append({"role": "assistant", "content": answer})


def answer_to(conversation: Conversation, model: Any, sampling: SamplingArguments) -> str:
    """Generate an answer and print it as it is generated; Ctrl-C ends it."""
    tokenizer = conversation.tokenizer
    stream = TextStream(tokenizer, lambda text: print(text, end="", flush=True))
    ids = prompt_ids(tokenizer, conversation.messages)
    try:
        generate_text(model, tokenizer, ids, stream, max_new_tokens=conversation.room, **sampling.generation)
    except KeyboardInterrupt:
        print(" ...", end="")
    print()
    return stream.text


def notice(text: str) -> None:
    """Tell the user something that is not part of the conversation."""
    print(f"({text})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
