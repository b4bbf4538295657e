"""Convert a model to or from another format.

    scratch-gpt convert --model gpt2 --output_dir runs/gpt2
    scratch-gpt convert --model runs/mine/model --to llama --output_dir runs/llama
    scratch-gpt convert --model runs/mine/model --to gguf --dtype q8_0 --output_dir runs/gguf

Imports GPT-2, Llama, Qwen2 and Qwen3, from a folder or the Hub, and OpenAI's own GPT-2 files. Exports to the GPT-2,
Llama and Qwen3 classes of transformers, which load without our code, and to GGUF files for llama.cpp and Ollama. The
tokenizer and its chat template come along.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from hf_scratch_gpt import ScratchGPTConfig
from hf_scratch_gpt.conversion import FAMILIES, export_model, import_model, is_openai_folder
from hf_scratch_gpt.conversion.gguf import stored_dtype, write_gguf
from hf_scratch_gpt.conversion.ollama import modelfile

from .data.new_folder import written_whole
from .hub.cards.converted import write_converted_card
from .model.find import find_model
from .model.load import check_files, stored_type
from .settings.checks import bytes_of
from .settings.command import run_command
from .settings.json_files import read_json
from .settings.recipe import option, parse_recipe, required
from .settings.run_folder import ADAPTER_CONFIG_FILE, CONFIG_FILE

OURS = "scratch_gpt"
GGUF = "gguf"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
GGUF_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}
SHARD_SIZE = "2GB"


@dataclass
class ConvertArguments:
    """The model, and what it becomes."""

    model: str = required("Model: a folder, or a name on the Hugging Face Hub.", is_path=True)
    output_dir: str = required("New folder for the converted model.", is_path=True)
    to: Literal["scratch_gpt", "gpt2", "llama", "qwen3", "gguf"] = option("What the model becomes.", OURS)
    dtype: Literal["float32", "float16", "bfloat16", "q8_0"] | None = option(
        "Type of the weights (default: as they are). q8_0, 8 bits in blocks of 32, requires --to gguf."
    )
    max_shard_size: str = option("Maximum size of a weights file; at most one is in memory at a time.", SHARD_SIZE)

    def __post_init__(self) -> None:
        bytes_of("max_shard_size", self.max_shard_size)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and print the folder."""
    (arguments,) = parse_recipe([ConvertArguments], argv, description=__doc__ or "")
    print(convert(arguments))


def convert(arguments: ConvertArguments) -> Path:
    """Write the converted model, whole or not at all.

    Raises:
        ValueError: no such model, one that cannot be converted to this, damaged files, or an output folder with files.
        OSError: the Hub cannot be reached, or the disk is full.
    """
    source, place = find_source(arguments.model), f"--model {arguments.model}"
    folder = new_output(arguments.output_dir)
    is_ours = not is_openai_folder(source) and stored_type(source) == ScratchGPTConfig.model_type
    if is_ours and arguments.to == OURS:
        raise ValueError(f"{place} is a ScratchGPT model already: choose another format with --to.")
    check_options(arguments)
    dtype = DTYPES[arguments.dtype] if arguments.dtype and arguments.to != GGUF else None
    if is_ours and arguments.to != GGUF:
        print_losses(source, arguments.to)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tmp-") as scratch, written_whole(folder) as partial:
        try:
            if not is_ours:
                imported = partial if arguments.to == OURS else Path(scratch)
                written = import_model(source, imported, dtype, arguments.max_shard_size)
                source = imported
            if arguments.to == GGUF:
                write_gguf_folder(source, partial, arguments)
            elif arguments.to != OURS:
                written = export_model(source, partial, arguments.to, dtype, arguments.max_shard_size)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if arguments.to != GGUF:
            write_converted_card(partial, arguments.model, written, arguments.dtype)
    return folder


def check_options(arguments: ConvertArguments) -> None:
    """Refuse options that the target does not have.

    Raises:
        ValueError: a quantized type or a size of files for the wrong target.
    """
    if arguments.to == GGUF and arguments.max_shard_size != SHARD_SIZE:
        raise ValueError(
            f"--max_shard_size {arguments.max_shard_size} has no effect with --to gguf, which writes one file."
        )
    if arguments.to != GGUF and arguments.dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype {arguments.dtype} requires --to gguf; otherwise it is one of {', '.join(DTYPES)}.")


def write_gguf_folder(source: Path, folder: Path, arguments: ConvertArguments) -> None:
    """Write the GGUF file and the Modelfile, and print what differs in llama.cpp.

    Args:
        source: contains a model of ours.

    Raises:
        ValueError: llama.cpp cannot express the model or its tokenizer, or files are damaged.
    """
    dtype = GGUF_DTYPES[arguments.dtype] if arguments.dtype else stored_dtype(source)
    model = Path(arguments.model).resolve()
    name = model.parent.name if model.name == "model" else model.name
    path = folder / f"{name}-{dtype}.gguf"
    for note in write_gguf(source, path, dtype, name):
        print(f"note: in llama.cpp, {note}", file=sys.stderr)
    (folder / "Modelfile").write_text(modelfile(source, path.name), encoding="utf-8")


def print_losses(source: Path, to: str) -> None:
    """Name the settings of training that a model loses."""
    config = read_json(source / CONFIG_FILE)
    for name in FAMILIES[to].export_loses:
        if value := config.get(name):
            print(f"note: {to} has no {name} (here {value}), so further training runs without it", file=sys.stderr)


def find_source(name: str) -> Path:
    """The folder of a model in any format that can be converted.

    Raises:
        ValueError: no such model, or an adapter.
        OSError: the Hub cannot be reached.
    """
    if is_openai_folder(Path(name)):
        return Path(name)
    folder = find_model("--model", name)
    if (folder / ADAPTER_CONFIG_FILE).exists():
        raise ValueError(f"--model {name} is an adapter: give the merged model, which is in model/ of its run.")
    check_files(f"--model {name}", folder)
    return folder


def new_output(name: str) -> Path:
    """The folder to write.

    Raises:
        ValueError: it has files, or it is one.
    """
    folder = Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {name} exists and is not an empty folder: choose a new one.")
    return folder


if __name__ == "__main__":
    sys.exit(run_command(main))
