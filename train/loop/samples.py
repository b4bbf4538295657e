"""Complete several prompts at once; each completion is what it would be alone."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper


class RowSampler(LogitsProcessor):
    """Makes the greedy choice of each row a random one: the Gumbel-max trick.

    The token with the highest logit + Gumbel noise is a sample of softmax(logits). The noise of a row comes from its
    own seed, on the CPU, so neither the other rows nor the device change it.

    Args:
        seeds: one per row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add noise to `scores`, (rows, vocab)."""
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=one) for one in self.generators])  # (rows, vocab)
        return scores - torch.log(-torch.log(uniform)).to(scores.device)


def complete(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    generation: Mapping[str, Any],
    pad_token_id: int,
) -> list[list[int]]:
    """The new tokens of each prompt, without the one that ends a text.

    Args:
        prompts: token ids.
        seeds: one per prompt.
        generation: `max_new_tokens`, and with `do_sample` a `temperature` and `top_k`.
    """
    length = max(map(len, prompts))
    rows = [[pad_token_id] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    masks = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    processors: list[LogitsProcessor] = []
    if generation["do_sample"]:
        warpers = [TemperatureLogitsWarper(generation["temperature"]), TopKLogitsWarper(generation["top_k"])]
        processors = [*warpers, RowSampler(seeds)]
    output = model.generate(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(masks, device=model.device),
        pad_token_id=pad_token_id,
        max_new_tokens=generation["max_new_tokens"],
        do_sample=False,
        logits_processor=LogitsProcessorList(processors),
    )  # (prompts, prompt + completion)
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    return [list(takewhile(lambda token: token not in ends, row)) for row in output[:, length:].tolist()]
