"""Perplexity and bits per byte, from a sum of log-probabilities."""

import json
import math

import torch
from transformers import PreTrainedTokenizerBase


def perplexity(loss: float) -> float:
    """exp(loss in nats per token), or infinity if that exceeds a float."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_byte(total_nats: float, num_bytes: float) -> float:
    """Bits that the model needs per byte of text. Unlike the loss, it compares models with different tokenizers.

    End-of-text tokens count as nats but have no bytes, as if a compressor also stored where documents end.
    """
    return total_nats / math.log(2) / num_bytes if num_bytes else math.inf


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The bytes of text that each token id stands for, (vocab,); 0 for special tokens.

    In a byte-level vocabulary each character of a token is one byte. This is exact even for a token that ends within
    a UTF-8 character. In other vocabularies the decoded token is encoded as UTF-8.
    """
    is_byte_level = "ByteLevel" in decoder_types(tokenizer)
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    lengths = torch.zeros(len(tokenizer), dtype=torch.long)
    for token, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        if index in added:  # stored as plain text, which a byte-level decoder would garble
            lengths[index] = len(added[index].content.encode())
        elif is_byte_level:
            lengths[index] = len(token)
        else:
            lengths[index] = len(str(tokenizer.decode([index])).encode())
    return lengths


def decoder_types(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The types of the decoders of a tokenizer, such as ByteLevel; empty without a backend in Rust."""
    backend = getattr(tokenizer, "backend_tokenizer", None)  # tokenizers in pure Python have no backend
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    return {part["type"] for part in (decoder or {}).get("decoders", [decoder]) if part}
