"""Talk to a tuned model in the terminal: `scratch-gpt chat --model runs/assistant/model`

Each line is a message; an empty line begins a new conversation, Ctrl-D ends.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from .data.conversations import Message
from .model.pretrained import load_model
from .settings.command import run_command
from .settings.recipe import option, parse_recipe, required


@dataclass
class ChatArguments:
    """Settings of train.chat."""

    model: str = required("Folder of a model with a chat template, its adapter, or a name on the Hugging Face Hub.")
    system: str | None = option("What the model is told before the conversation.")
    max_new_tokens: int = option("Longest answer in tokens.", 128)
    temperature: float = option("0: always the most probable token; above: sample.", 0.0)
    seed: int = option("Decides what is sampled.", 0)

    def __post_init__(self) -> None:
        """Refuse values that generate() would silently take."""
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens is {self.max_new_tokens}: it must be at least 1.")
        if self.temperature < 0:
            raise ValueError(f"--temperature is {self.temperature}: it must be 0 (greedy) or more.")


def main(argv: Sequence[str] | None = None) -> None:
    """Read messages until the input ends, and answer each."""
    (arguments,) = parse_recipe([ChatArguments], argv, description=__doc__ or "")
    model, tokenizer = load_model(arguments.model)
    if tokenizer.chat_template is None:
        raise ValueError(f"{arguments.model} has no chat template: tune it with train.finetune, or use train.generate.")
    room = model.config.max_position_embeddings - arguments.max_new_tokens
    if room < 1:
        raise ValueError(f"--max_new_tokens ({arguments.max_new_tokens}) leaves no room for a question: ask for fewer.")
    torch.manual_seed(arguments.seed)
    beginning = [{"role": "system", "content": arguments.system}] if arguments.system else []
    turns: list[Message] = []
    while (line := next_line()) is not None:
        if not line:
            turns = []
            continue
        turns = shortened(tokenizer, beginning, [*turns, {"role": "user", "content": line}], room)
        answer = answer_to(model, tokenizer, [*beginning, *turns], arguments)
        turns.append({"role": "assistant", "content": answer})


def next_line() -> str | None:
    """What the user types, None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def shortened(
    tokenizer: PreTrainedTokenizerBase, beginning: list[Message], turns: list[Message], room: int
) -> list[Message]:
    """The last turns that fit into `room` tokens; question and answer are forgotten together.

    Raises:
        ValueError: the question alone is too long.
    """
    while len(prompt(tokenizer, [*beginning, *turns])[0]) > room:
        if len(turns) < 3:
            raise ValueError(f"the question is longer than the {room} tokens that fit beside an answer: shorten it.")
        turns = turns[2:]
    return turns


def prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> torch.Tensor:
    """The conversation up to where the assistant speaks, (1, tokens)."""
    inputs: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids: torch.Tensor = inputs["input_ids"]
    return ids


def answer_to(model: Any, tokenizer: PreTrainedTokenizerBase, messages: list[Message], arguments: ChatArguments) -> str:
    """The answer, which also appears on the screen while it is made."""
    input_ids = prompt(tokenizer, messages).to(model.device)
    sampling = {"temperature": arguments.temperature} if arguments.temperature > 0 else {}
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        max_new_tokens=arguments.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=arguments.temperature > 0,
        **sampling,
    )
    text: Any = tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True)
    return str(text)


if __name__ == "__main__":
    sys.exit(run_command(main))
