"""Numbers that tell how a run does: bits per byte, perplexity, and the file they are written to."""

import json
import math
import os
from pathlib import Path
from typing import Any

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
        if is_byte_level and index not in added:
            lengths[index] = len(token)
        else:
            lengths[index] = len(tokenizer.decode([index]).encode())
    return lengths


def _decoder_types(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)  # tokenizers in pure Python have none
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    return {part["type"] for part in (decoder or {}).get("decoders", [decoder]) if part}


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """Bits that the model needs per byte of text: comparable between tokenizers, unlike the loss.

    The end-of-text tokens count among the nats but have no bytes: the figure is that of a
    compressor which also stores where documents end.
    """
    return total_nats / math.log(2) / num_bytes if num_bytes else math.inf


def perplexity(loss: float) -> float:
    """exp(loss in nats per token), infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


class JsonLines:
    """A file of one JSON object per line, each with its `step`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole records; a line that a kill has cut off is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def cut_back(self, step: int) -> None:
        """Removes what was written after `step`: a continued run writes it again."""
        kept = [record for record in self.read() if record["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text(
            "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept),
            encoding="utf-8",
        )
        os.replace(partial, self.path)
