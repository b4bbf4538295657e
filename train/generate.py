"""Continue prompts with a trained model: `scratch-gpt generate --model runs/quickstart/run/model --prompt def`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

import hf_scratch_gpt  # noqa: F401  registers the model's classes

from .model.pretrained import load_model
from .settings.command import run_command
from .settings.recipe import option, option_list, parse_recipe, required


@dataclass
class GenerateArguments:
    """Settings of train.generate."""

    model: str = required(
        "Folder of a model, such as runs/quickstart/run/model, or of an adapter, or a name on the Hugging Face Hub."
    )
    prompt: list[str] = option_list("Texts to continue; without one, start from nothing.")
    max_new_tokens: int | None = option("Longest continuation in tokens; without it 128, or half of what fits.")
    temperature: float = option("Below 1: safer; above 1: wilder; 0: always the most probable token.", 0.8)
    top_k: int = option("Choose among this many most probable tokens; 0: all.", 50)
    top_p: float = option("Choose among the most probable tokens that together have this probability.", 1.0)
    seed: int = option("Decides what is sampled.", 0)

    def __post_init__(self) -> None:
        """Refuse values that generate() would silently take."""
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens is {self.max_new_tokens}: it must be at least 1.")
        if self.temperature < 0:
            raise ValueError(f"--temperature is {self.temperature}: it must be 0 (greedy) or more.")
        if self.top_k < 0:
            raise ValueError(f"--top_k is {self.top_k}: it must be 0 (all tokens) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p is {self.top_p}: it must lie above 0 and at most at 1.")


def main(argv: Sequence[str] | None = None) -> None:
    """Print each prompt and its continuation while it is made."""
    (arguments,) = parse_recipe([GenerateArguments], argv, description=__doc__ or "")
    model, tokenizer = load_model(arguments.model)
    for prompt in arguments.prompt or [""]:
        torch.manual_seed(arguments.seed)
        continue_prompt(model, tokenizer, prompt, arguments)


def continue_prompt(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, arguments: GenerateArguments) -> None:
    """Stream one continuation to stdout."""
    try:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.bos_token_id]
    except Exception as error:  # tokenizers has no class of its own for a character that a vocabulary lacks
        raise ValueError(f"--prompt {prompt!r}: {arguments.model} has no token for a part of it ({error}).") from None
    positions = model.config.max_position_embeddings
    max_new_tokens = arguments.max_new_tokens or min(128, positions // 2)
    longest = positions - max_new_tokens
    if longest < 1:
        raise ValueError(
            f"--max_new_tokens ({max_new_tokens}) leaves no room for a prompt: the model reads {positions} tokens; "
            "ask for fewer."
        )
    if len(ids) > longest:
        print(f"note: only the last {longest} of the prompt's {len(ids)} tokens fit", file=sys.stderr)
    input_ids = torch.tensor([ids[-longest:]], device=model.device)
    if not torch.isfinite(model(input_ids, logits_to_keep=1).logits).all():
        raise ValueError(f"{arguments.model} computes numbers that are not finite: its weights are damaged.")
    sampling = {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}
    model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        streamer=TextStreamer(tokenizer, skip_special_tokens=True),
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=arguments.temperature > 0,
        **(sampling if arguments.temperature > 0 else {}),
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
