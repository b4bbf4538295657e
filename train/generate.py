"""Complete prompts with a trained model.

    scratch-gpt generate --model runs/quickstart/run/model --prompt "def "
    scratch-gpt generate --model alice/tiny --temperature 0 --max_new_tokens 50

A model is a folder, or a name on the Hugging Face Hub.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from .model.inference import load_for_inference
from .settings.checks import check_bounds
from .settings.command import run_command
from .settings.recipe import option, option_list, parse_recipe, required


@dataclass
class GenerateArguments:
    """The model, the prompts, and how to sample."""

    model: str = required("Model or adapter: a folder, or a name on the Hugging Face Hub.", is_path=True)
    prompt: list[str] = option_list("Texts to complete (default: one sample from an empty prompt).")
    max_new_tokens: int | None = option(
        "Maximum number of tokens to generate (default: 128, or half of the maximum length of the model if less)."
    )
    temperature: float = option("Sampling temperature; 0: greedy decoding.", 0.8)
    top_k: int = option("Sample from the K most probable tokens; 0: all.", 50)
    top_p: float = option("Sample from the most probable tokens that together have this probability; 1: all.", 1.0)
    seed: int = option("Random seed of the samples.", 0)

    def __post_init__(self) -> None:
        check_bounds(self, {"max_new_tokens": 1, "temperature": 0, "top_k": 0})
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p is {self.top_p}: it must be above 0 and at most 1.")


def main(argv: Sequence[str] | None = None) -> None:
    """Print each prompt, and its completion as it is generated."""
    (arguments,) = parse_recipe([GenerateArguments], argv, description=__doc__ or "")
    model, tokenizer = load_for_inference(arguments.model)
    for prompt in arguments.prompt or [""]:
        torch.manual_seed(arguments.seed)
        complete(model, tokenizer, prompt, arguments)


def complete(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, arguments: GenerateArguments) -> None:
    """Stream a prompt and its completion to stdout.

    Raises:
        ValueError: the prompt cannot be encoded, no room for it, or damaged weights.
    """
    try:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.bos_token_id]
    except Exception as error:  # tokenizers raises a plain Exception for a character not in the vocabulary
        raise ValueError(
            f"--prompt {prompt!r}: the tokenizer of {arguments.model} cannot encode it ({error})."
        ) from None
    positions = model.config.max_position_embeddings
    max_new_tokens = arguments.max_new_tokens or min(128, positions // 2)
    longest = positions - max_new_tokens
    if longest < 1:
        raise ValueError(
            f"--max_new_tokens ({max_new_tokens}) leaves no room for a prompt: the model reads {positions} tokens: "
            "lower it."
        )
    if len(ids) > longest:
        print(f"warning: only the last {longest} of the prompt's {len(ids)} tokens are used", file=sys.stderr)
    input_ids = torch.tensor([ids[-longest:]], device=model.device)
    if not torch.isfinite(model(input_ids, logits_to_keep=1).logits).all():
        raise ValueError(f"the outputs of {arguments.model} are not finite: its weights are damaged.")
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
