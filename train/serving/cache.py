"""The cache for requests that are answered together."""

from dataclasses import fields
from typing import Any

import torch
from transformers import ContinuousBatchingConfig

from ..model.load import memory_bytes

PAGE_SIZE = 32  # tokens
BATCH_TOKENS = 512  # of prompts and answers in one forward pass; longer prompts are read in parts
CACHE_SHARE = 0.25  # of the memory, at most


def batching_config(model: Any, max_length: int, max_requests: int) -> ContinuousBatchingConfig:
    """A cache for all requests at full length, or for as many as fit into a part of the memory.

    Raises:
        ValueError: not even one fits.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    page_bytes = 2 * PAGE_SIZE * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    pages_each = -(-max_length // PAGE_SIZE) + 1
    affordable = int(CACHE_SHARE * free_bytes(model.device)) // page_bytes
    if affordable < pages_each:
        raise ValueError(
            f"continuous batching needs {pages_each * page_bytes / 1e9:.1f} GB of memory for one request of "
            f"{max_length:,} tokens, more than a quarter of what there is: lower --max_length, or give "
            "--continuous_batching false."
        )
    values: dict[str, Any] = {
        "page_size": PAGE_SIZE,
        "block_size": PAGE_SIZE,  # the name of page_size in transformers 5.17
        "num_blocks": min(affordable, pages_each * max_requests),
        "max_batch_tokens": max(BATCH_TOKENS, max_requests),
        "max_requests_per_batch": max_requests,
        "per_request_processors": True,
        "auto_switch_to_flash": False,  # it would download kernels
    }
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    known -= {"block_size"} if "page_size" in known else set()
    return ContinuousBatchingConfig(**{name: value for name, value in values.items() if name in known})


def free_bytes(device: torch.device) -> int:
    """The memory of a device: all of this machine, or what is free on a GPU."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else memory_bytes()
