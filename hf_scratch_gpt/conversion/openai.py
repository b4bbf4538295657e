"""GPT-2 as OpenAI released it: a TensorFlow checkpoint, read without TensorFlow.

A folder such as `models/124M` of https://github.com/openai/gpt-2 has hparams.json, encoder.json, vocab.bpe and
model.ckpt.{index,data-00000-of-00001}. The index is a sorted table of keys and values in blocks of prefix-compressed
entries (https://github.com/google/leveldb/blob/main/doc/table_format.md); each value is a `BundleEntryProto`
(tensorflow/core/protobuf/tensor_bundle.proto) that says where the bytes of a tensor are.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .families import LANGUAGE_MODEL
from .gpt2 import GPT2, OPENAI_RULES
from .sources import Source

HPARAMS_FILE = "hparams.json"
INDEX_FILE = "model.ckpt.index"
DATA_FILE = "model.ckpt.data-00000-of-00001"
ENCODER_FILE, MERGES_FILE = "encoder.json", "vocab.bpe"  # of the tokenizer
TABLE_MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes
FLOAT = 1  # DT_FLOAT of tensorflow/core/framework/types.proto

OPENAI_GPT2 = replace(GPT2, rules=OPENAI_RULES, head_rules={LANGUAGE_MODEL: ()})


def is_openai_folder(folder: Path) -> bool:
    """Whether a folder has the files of OpenAI's release."""
    return (folder / HPARAMS_FILE).exists() and (folder / INDEX_FILE).exists()


def openai_config(folder: Path) -> dict[str, Any]:
    """The values of our config for the sizes in hparams.json.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / HPARAMS_FILE
    try:
        sizes = json.loads(path.read_bytes())
        names = {"n_vocab": "vocab_size", "n_ctx": "max_position_embeddings", "n_embd": "hidden_size"}
        names |= {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
        values = {ours: int(sizes[theirs]) for theirs, ours in names.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): copy or download it again.") from None
    fixed = {name: value for name, value in GPT2.export_requires.items() if value is not None}
    eos = values["vocab_size"] - 1
    return (
        values
        | fixed
        | {
            "rms_norm_eps": 1e-5,
            "attention_bias": True,
            "mlp_bias": True,
            "attention_dropout": 0.1,
            "residual_dropout": 0.1,
            "embedding_dropout": 0.1,
            "bos_token_id": eos,
            "eos_token_id": eos,
        }
    )


class OpenAICheckpoint(Source):
    """The tensors of a TensorFlow checkpoint, read one at a time.

    Raises:
        ValueError: a file is missing or damaged, or a tensor is not float32.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / DATA_FILE
        if not self.path.exists():
            raise ValueError(f"{folder}: {DATA_FILE} is missing: copy or download it.")
        self._places: dict[str, tuple[int, int]] = {}
        try:
            for name, value in table_entries((folder / INDEX_FILE).read_bytes()):
                if name:  # the first entry is a header
                    self._add(name.decode(), _fields(value))
        except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"{folder / INDEX_FILE} is damaged ({error!r}): copy or download it again.") from None
        end = max((sum(place) for place in self._places.values()), default=0)
        if self.path.stat().st_size < end:
            raise ValueError(
                f"{self.path} is damaged: it has {self.path.stat().st_size:,} bytes instead of {end:,}. Copy or "
                "download it again."
            )

    def _add(self, name: str, fields: dict[int, list[Any]]) -> None:
        """Remember a tensor: dtype is field 1, shape 2, offset 4 and size 5."""
        if fields[1] != [FLOAT]:
            raise ValueError(f"{self.path}: {name} is not float32, which all of OpenAI's are.")
        dimensions = [_fields(dimension).get(1, [0])[0] for dimension in _fields(fields[2][0]).get(2, [])]
        # the matrices of a layer are convolutions of width 1: (1, input, output)
        self.shapes[name] = tuple(dimensions[1:] if len(dimensions) == 3 and dimensions[0] == 1 else dimensions)
        self.dtypes[name] = torch.float32
        self._places[name] = (fields.get(4, [0])[0], fields[5][0])

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        offset, size = self._places[name]
        with self.path.open("rb") as file:
            file.seek(offset)
            data = bytearray(file.read(size))
        return torch.frombuffer(data, dtype=torch.float32).reshape(self.shapes[name])


def table_entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table whose blocks are not compressed.

    Raises:
        ValueError: it is not such a table.
    """
    footer = data[-FOOTER:]
    if len(footer) < FOOTER or struct.unpack("<Q", footer[-8:])[0] != TABLE_MAGIC:
        raise ValueError("the index is not that of a TensorFlow checkpoint: copy or download it again.")
    place = 0
    for _ in range(2):  # offset and size of the list of tables' statistics, which is empty
        _, place = _varint(footer, place)
    for _, handle in _block(data, *_handle(footer, place)):
        yield from _block(data, *_handle(handle, 0))


def _handle(data: bytes, place: int) -> tuple[int, int]:
    """Offset and size of a block."""
    offset, place = _varint(data, place)
    size, _ = _varint(data, place)
    return offset, size


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block; each key repeats the first bytes of the one before it."""
    if data[offset + size]:
        raise ValueError("the index is compressed, which OpenAI's is not.")
    block = data[offset : offset + size]
    end = size - 4 * (struct.unpack("<I", block[-4:])[0] + 1)  # places where keys are whole, and their number
    key, place = b"", 0
    while place < end:
        shared, place = _varint(block, place)
        rest, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + rest]
        place += rest
        yield key, block[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7


def _fields(message: bytes) -> dict[int, list[Any]]:
    """The fields of a protocol buffer by number (https://protobuf.dev/programming-guides/encoding/)."""
    fields: dict[int, list[Any]] = {}
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        value: Any
        if key & 7 == 0:
            value, place = _varint(message, place)
        elif key & 7 == 2:
            size, place = _varint(message, place)
            value, place = message[place : place + size], place + size
        else:  # a fixed number of 4 or 8 bytes: the checksum
            size = 4 if key & 7 == 5 else 8
            value, place = message[place : place + size], place + size
        fields.setdefault(key >> 3, []).append(value)
    return fields
