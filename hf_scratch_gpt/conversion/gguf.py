"""A folder with a ScratchGPT language model as one GGUF file, for llama.cpp, Ollama and everything built on them.

A model becomes one of three architectures of llama.cpp: `llama`; `qwen3`, with normalized queries and keys; or `gpt2`.
Names of tensors and keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import errno
import fcntl
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig

from ..configuration_scratch_gpt import ScratchGPTConfig
from .families import LANGUAGE_MODEL
from .folders import common_dtype, empty_model, own_shapes
from .gguf_architectures import Architecture, architecture_of
from .gguf_metadata import add_config, rope_factors
from .gguf_tokenizer import load_tokenizer, tokenizer_fields
from .plan import Recipe, Shape, by_layer, check
from .sources import SafetensorsFolder, Source

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

DTYPES = ("f32", "f16", "bf16", "q8_0")
LARGEST = {"F16": 65504, "Q8_0": 127 * 65504}  # numbers that a type can hold
ROWS_AT_ONCE = 4096  # converted to another type at a time, so that no copy of a large tensor is made

# Our modules, and the names of their tensors.
OUTSIDE_LAYERS = {
    "model.embed_tokens": "token_embd",
    "model.embed_positions": "position_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
IN_LAYERS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


# ----------------------------------------------------------------------------------------------------------------------
# Tensors
# ----------------------------------------------------------------------------------------------------------------------


def recipes(config: ScratchGPTConfig, architecture: Architecture) -> dict[str, Recipe]:
    """The tensors of the file, and how each is made from ours."""
    ours = shapes(config)
    sources: dict[str, list[str]] = {}
    for name in ours:
        sources.setdefault(name_in_file(name, architecture), []).append(name)
    found = {name: recipe(name, ours, names, config, architecture) for name, names in sources.items()}
    if architecture.needs_biases:
        for name in [name for name in found if name.startswith("blk.")]:
            found.setdefault(name.replace(".weight", ".bias"), constant(torch.zeros(found[name].shape[0])))
    if (factors := rope_factors(config)) is not None:
        found["rope_freqs.weight"] = constant(factors)
    return found


def recipe(
    name: str, ours: Mapping[str, Shape], sources: list[str], config: ScratchGPTConfig, architecture: Architecture
) -> Recipe:
    """A tensor whose rows are those of `sources`, one after the other."""
    shape = (sum(ours[source][0] for source in sources), *ours[sources[0]][1:])
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if architecture.is_interleaved and heads:
        return Recipe(tuple(sources), shape, lambda tensors: interleaved(tensors[0], heads))
    return Recipe(tuple(sources), shape, torch.cat if len(sources) > 1 else itemgetter(0))


def constant(tensor: torch.Tensor) -> Recipe:
    """A tensor that is not among our weights."""
    return Recipe((), tuple(tensor.shape), lambda tensors: tensor)


def shapes(config: ScratchGPTConfig) -> dict[str, Shape]:
    """Names and shapes of our tensors; tied ones have their first name."""
    return own_shapes(empty_model(LANGUAGE_MODEL, config))


def name_in_file(ours: str, architecture: Architecture) -> str:
    """The name of our tensor in the file: "blk.0.attn_q.weight" of "model.layers.0.self_attn.q_proj.weight"."""
    module, kind = ours.rsplit(".", 1)
    if layer := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module):
        return f"blk.{layer[1]}.{architecture.modules.get(layer[2]) or IN_LAYERS[layer[2]]}.{kind}"
    return f"{OUTSIDE_LAYERS[module]}.{kind}"


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of queries or keys, (heads * head_dim, ...), for llama.cpp's `llama`.

    Our model turns row i of a head's first half together with row i of its second half; there, they are neighbors.
    """
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])  # (heads, 2, half, ...)
    return halves.transpose(1, 2).reshape(tensor.shape)


def type_of(name: str, shape: Shape, dtype: str) -> "GGMLQuantizationType":
    """The type in which a tensor is stored.

    Norms, biases and positions, which llama.cpp adds to numbers of 32 bits, keep 32. A row that is not a multiple of
    the 32 numbers of a quantized block keeps 16, as in llama.cpp's own converter.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1 or name.startswith("position_embd"):
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[dtype.upper()]
    block, _ = GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else GGMLQuantizationType.F16


def stored(tensor: torch.Tensor, kind: "GGMLQuantizationType") -> np.ndarray:
    """The bytes of a tensor, (rows, bytes of a row).

    Raises:
        ValueError: a number is infinite, not a number, or too large for the type.
    """
    from gguf import quantize

    rows = tensor.reshape(-1, tensor.shape[-1])
    bytes_of_rows = np.empty((rows.shape[0], num_bytes(rows.shape[1:], kind)), np.uint8)
    for start in range(0, rows.shape[0], ROWS_AT_ONCE):
        numbers = rows[start : start + ROWS_AT_ONCE].float().numpy()
        largest = np.abs(numbers).max(initial=0)
        if not np.isfinite(largest):
            raise ValueError("has weights that are infinite or not a number")
        if largest > LARGEST.get(kind.name, math.inf):
            raise ValueError(f"has the weight {largest:g}, too large for {kind.name.lower()}: choose bf16 or f32")
        bytes_of_rows[start : start + ROWS_AT_ONCE] = np.ascontiguousarray(quantize(numbers, kind)).view(np.uint8)
    return bytes_of_rows


def num_bytes(shape: Shape, kind: "GGMLQuantizationType") -> int:
    """Size of a tensor in the file."""
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


# ----------------------------------------------------------------------------------------------------------------------
# The file
# ----------------------------------------------------------------------------------------------------------------------


def write_gguf(model_folder: Path, path: Path, dtype: str = "f16", name: str | None = None) -> list[str]:
    """Write the language model in a folder, with its tokenizer and chat template, to a GGUF file.

    Tensors are read one at a time. The file appears under its name when it is whole.

    Args:
        path: a new file.
        dtype: of the matrices: "f32", "f16", "bf16" or "q8_0" (8 bits; each block of 32 has a factor of 16 bits).
        name: of the model, which programs show (default: that of the folder).

    Returns:
        What differs in llama.cpp, as sentences.

    Raises:
        ValueError: `path` exists; fields of the config or of the tokenizer that llama.cpp cannot express (all are
            named); missing, damaged or wrong tensors; not enough space; the package gguf is not installed.
        OSError: the file cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed values: {', '.join(DTYPES)}")
    gguf = imported_gguf()
    config = read_config(model_folder)
    architecture = architecture_of(config)
    fields = tokenizer_fields(load_tokenizer(model_folder), config, stop_ids(model_folder, config))
    tensors = opened(model_folder, config)
    entries = recipes(config, architecture)
    kinds = {name: type_of(name, entry.shape, dtype) for name, entry in entries.items()}
    with new_file(path, sum(num_bytes(entry.shape, kinds[name]) for name, entry in entries.items())) as partial:
        writer = gguf.GGUFWriter(partial, architecture.name)
        try:
            add_config(writer, config, name or model_folder.resolve().name, dtype)
            fields.add_to(writer)
            write_tensors(writer, entries, kinds, tensors)
        finally:
            writer.close()
    return fields.notes + kept_in_f16(kinds, dtype)


def stored_dtype(folder: Path) -> str:
    """The type that most weights in a folder have; "f32" for those of 64 bits."""
    names = {torch.float16: "f16", torch.bfloat16: "bf16"}
    return names.get(common_dtype(SafetensorsFolder(folder)), "f32")


def imported_gguf() -> ModuleType:
    """The package gguf.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError('gguf is not installed: pip install "hf_scratch_gpt[gguf]"') from None
    return gguf


def read_config(folder: Path) -> ScratchGPTConfig:
    """The config of the language model in a folder.

    Raises:
        ValueError: another kind of model, or a quantized one.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(config, ScratchGPTConfig):
        raise ValueError(
            f"{folder} is not a ScratchGPT model: its model_type is {config.model_type!r}. Import it first."
        )
    our_class = (config.architectures or [LANGUAGE_MODEL])[0]
    if our_class != LANGUAGE_MODEL:
        raise ValueError(f"{folder} is a {our_class}, but a GGUF file holds a language model ({LANGUAGE_MODEL}).")
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{folder} is quantized (quantization_config is set); use the folder it was made from.")
    return config


def stop_ids(folder: Path, config: ScratchGPTConfig) -> list[int]:
    """The tokens after which `generate` stops."""
    ids = config.eos_token_id
    if (folder / "generation_config.json").exists():
        ids = GenerationConfig.from_pretrained(folder).eos_token_id or ids
    return [ids] if isinstance(ids, int) else list(ids or [])


def opened(folder: Path, config: ScratchGPTConfig) -> Source:
    """The tensors of a folder.

    Raises:
        ValueError: files are missing or damaged, or tensors are missing, have another shape or are unknown.
    """
    tensors = SafetensorsFolder(folder)
    try:
        check(shapes(config), tensors.shapes, r"lm_head\.weight" if config.tie_word_embeddings else r"(?!)")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return tensors


def write_tensors(
    writer: "GGUFWriter", entries: Mapping[str, Recipe], kinds: Mapping[str, "GGMLQuantizationType"], tensors: Source
) -> None:
    """Write the header of the file, then one tensor after the other.

    Raises:
        ValueError: a tensor has numbers that its type cannot hold.
        OSError: the disk is full.
    """
    for name, entry in entries.items():
        size = num_bytes(entry.shape, kinds[name])
        writer.add_tensor_info(name, entry.shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, entry in entries.items():
        tensor = entry.build([tensors.read(source) for source in entry.sources])
        try:
            writer.write_tensor_data(stored(tensor, kinds[name]))
        except ValueError as error:
            raise ValueError(f"{' and '.join(entry.sources)} {error}.") from None
        except OSError as error:  # numpy hides the reason why it could not write all
            reason = error.strerror or "No space left on the disk, or the file is too large for it"
            raise OSError(error.errno or errno.ENOSPC, reason, str(writer.path)) from None


def kept_in_f16(kinds: Mapping[str, "GGMLQuantizationType"], dtype: str) -> list[str]:
    """What to tell of tensors that cannot be quantized."""
    kept = [name for name, kind in kinds.items() if kind.name == "F16"] if dtype == "q8_0" else []
    if not kept:
        return []
    names = ", ".join(by_layer(kept))
    return [f"these tensors are stored as f16, because the length of their rows is not a multiple of 32: {names}."]


@contextmanager
def new_file(path: Path, size: int) -> Iterator[Path]:
    """A temporary file next to `path`, which is renamed to `path` if the block ends without an error.

    The temporary file of a process that was killed is overwritten.

    Raises:
        ValueError: `path` exists, its folder does not, another process is writing it, or `size` bytes have no space.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: the folder {path.parent} does not exist.")
    if path.exists():
        raise ValueError(f"{path} exists: choose another name, or delete it.")
    if (free := shutil.disk_usage(path.parent).free) < size:
        raise ValueError(f"{path} needs {size / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free in {path.parent}.")
    partial = path.with_name(f".tmp-{path.name}")
    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path} is being written by another process.") from None
        try:
            yield partial
            os.fsync(file)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
