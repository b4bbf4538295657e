"""Chat with a fine-tuned model in the terminal.

    scratch-gpt chat --model runs/assistant/model

An empty line starts a new conversation, Ctrl-D quits.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from .data.conversations import Message, prompt_ids
from .model.inference import load_for_inference
from .settings.checks import check_bounds
from .settings.command import run_command
from .settings.recipe import option, parse_recipe, required


@dataclass
class ChatArguments:
    """The model, and how it answers."""

    model: str = required(
        "Model with a chat template, or its adapter: a folder, or a name on the Hugging Face Hub.", is_path=True
    )
    system: str | None = option("System message at the start of each conversation.")
    max_new_tokens: int = option("Maximum number of tokens per answer.", 128)
    temperature: float = option("Sampling temperature; 0: greedy decoding.", 0.0)
    seed: int = option("Random seed of the samples.", 0)

    def __post_init__(self) -> None:
        check_bounds(self, {"max_new_tokens": 1, "temperature": 0})


def main(argv: Sequence[str] | None = None) -> None:
    """Read messages line by line, and answer each."""
    (arguments,) = parse_recipe([ChatArguments], argv, description=__doc__ or "")
    model, tokenizer = load_for_inference(arguments.model)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{arguments.model} has no chat template: fine-tune it with scratch-gpt finetune, or complete prompts with "
            "scratch-gpt generate."
        )
    room = model.config.max_position_embeddings - arguments.max_new_tokens
    if room < 1:
        raise ValueError(f"--max_new_tokens ({arguments.max_new_tokens}) leaves no room for a question: lower it.")
    torch.manual_seed(arguments.seed)
    system = [{"role": "system", "content": arguments.system}] if arguments.system else []
    turns: list[Message] = []
    while (line := next_line()) is not None:
        if not line:
            turns = []
            continue
        turns = shortened(tokenizer, system, [*turns, {"role": "user", "content": line}], room)
        answer = answer_to(model, tokenizer, [*system, *turns], arguments)
        turns.append({"role": "assistant", "content": answer})


def next_line() -> str | None:
    """The next line that the user types, or None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def shortened(
    tokenizer: PreTrainedTokenizerBase, system: list[Message], turns: list[Message], room: int
) -> list[Message]:
    """Drop the oldest questions and answers until `system` and `turns` fit into `room` tokens.

    Raises:
        ValueError: the last question alone is too long.
    """
    while len(prompt_ids(tokenizer, [*system, *turns])) > room:
        if len(turns) < 3:
            raise ValueError(f"the question is longer than the {room} tokens that --max_new_tokens leaves: shorten it.")
        turns = turns[2:]
    return turns


def answer_to(model: Any, tokenizer: PreTrainedTokenizerBase, messages: list[Message], arguments: ChatArguments) -> str:
    """Generate an answer and print it as it is generated."""
    input_ids = torch.tensor([prompt_ids(tokenizer, messages)], device=model.device)
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
