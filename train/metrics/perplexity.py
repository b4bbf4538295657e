"""TODO."""

import json
import math

import torch
from transformers import PreTrainedTokenizerBase


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """How many bytes of text each token id stands for; (vocab,), 0 for special tokens.

    In a byte-level vocabulary each character of a token is one byte, which is exact even where a
    token ends within a character. For others the decoded token is encoded as UTF-8.
    """
    is_byte_level = "ByteLevel" in _decoder_types(tokenizer)
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    lengths = torch.zeros(len(tokenizer), dtype=torch.long)
    for token, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        if index in added:  # the decoder garbles what it has not encoded
            lengths[index] = len(added[index].content.encode())
        elif is_byte_level:
            lengths[index] = len(token)
        else:
            lengths[index] = len(str(tokenizer.decode([index])).encode())
    return lengths


def _decoder_types(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)  # tokenizers in pure Python have none
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    return {part["type"] for part in (decoder or {}).get("decoders", [decoder]) if part}


def bits_per_byte(total_nats: float, num_bytes: float) -> float:
    """Bits that the model needs per byte of text: comparable between tokenizers, unlike the loss.

    The end-of-text tokens count among the nats but have no bytes: the figure is that of a
    compressor which also stores where documents end.
    """
    return total_nats / math.log(2) / num_bytes if num_bytes else math.inf


def perplexity(loss: float) -> float:
    """exp(loss in nats per token), infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf
