"""Convert a model to or from another format.

    scratch-gpt convert --model gpt2 --output_dir runs/gpt2
    scratch-gpt convert --model runs/mine/model --to qwen3 --output_dir runs/qwen3
    scratch-gpt convert --model runs/mine/model --to gguf --dtype q8_0 --output_dir runs/gguf
    scratch-gpt convert --model runs/mine/model --to onnx --output_dir runs/onnx

Imports GPT-2, Llama, Qwen2 and Qwen3, from a folder or the Hub, and OpenAI's own GPT-2 files. Exports to the GPT-2,
Llama and Qwen3 classes of transformers, which load without our code, to GGUF files for llama.cpp and Ollama, and to
ONNX. The tokenizer and its chat template come along.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_scratch_gpt import ScratchGPTConfig
from hf_scratch_gpt.conversion import FAMILIES, export_model, import_model, is_openai_folder
from hf_scratch_gpt.conversion.folders import copy_tokenizer
from hf_scratch_gpt.conversion.gguf import imported_gguf, stored_dtype, write_gguf
from hf_scratch_gpt.conversion.ollama import modelfile
from hf_scratch_gpt.conversion.onnx import check_installed, export_onnx

from .data.new_folder import written_whole
from .hub.cards.converted import write_converted_card
from .model.find import find_model
from .model.load import CLASSIFIER_SUFFIX, check_files, load_config, load_model, refuse_quantized, stored_type
from .settings.checks import bytes_of
from .settings.command import run_command
from .settings.json_files import read_json
from .settings.recipe import option, parse_recipe, required
from .settings.run_folder import ADAPTER_CONFIG_FILE, CONFIG_FILE

OURS = "scratch_gpt"
SHARD_SIZE = "2GB"
DTYPES = ("float32", "float16", "bfloat16")
DTYPES_OF = {"gguf": (*DTYPES, "q8_0"), "onnx": ("float32",)}  # of other targets: DTYPES
GGUF_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}


@dataclass
class ConvertArguments:
    """The model, and what it becomes."""

    model: str = required("Model: a folder, or a name on the Hugging Face Hub.", is_path=True)
    output_dir: str = required("New folder for the converted model.", is_path=True)
    to: Literal["scratch_gpt", "gpt2", "llama", "qwen3", "gguf", "onnx"] = option("What the model becomes.", OURS)
    dtype: Literal["float32", "float16", "bfloat16", "q8_0"] | None = option(
        "Type of the weights (default: as they are; ONNX: float32). q8_0, 8 bits in blocks of 32, requires --to gguf."
    )
    max_shard_size: str | None = option(
        f"Maximum size of a weights file; at most one is in memory at a time (default: {SHARD_SIZE})."
    )

    def __post_init__(self) -> None:
        allowed = DTYPES_OF.get(self.to, DTYPES)
        if self.dtype not in (None, *allowed):
            raise ValueError(f"--dtype {self.dtype} cannot be used with --to {self.to}; allowed: {', '.join(allowed)}.")
        if self.max_shard_size is not None:
            bytes_of("max_shard_size", self.max_shard_size)
            if self.to in DTYPES_OF:
                raise ValueError(
                    f"--max_shard_size ({self.max_shard_size}) has no effect with --to {self.to}: remove it."
                )

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The type of weights in safetensors files; None: as they are."""
        return getattr(torch, self.dtype) if self.dtype in DTYPES else None

    @property
    def shard_size(self) -> str:
        """The maximum size of a weights file."""
        return self.max_shard_size or SHARD_SIZE


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and print the folder."""
    (arguments,) = parse_recipe([ConvertArguments], argv, description=__doc__ or "")
    print(convert(arguments))


def convert(arguments: ConvertArguments) -> Path:
    """Write the converted model, whole or not at all.

    Raises:
        ValueError: no such model, one that cannot be converted to this, damaged files, a library that is missing, or
            an output folder with files.
        OSError: the Hub cannot be reached, or the disk is full.
    """
    if check := {"gguf": imported_gguf, "onnx": check_installed}.get(arguments.to):
        check()
    source, place = find_source(arguments.model), f"--model {arguments.model}"
    folder = new_output(arguments.output_dir)
    is_ours = not is_openai_folder(source) and stored_type(source) == ScratchGPTConfig.model_type
    if is_ours and arguments.to == OURS:
        raise ValueError(f"{place} is a ScratchGPT model already: choose another format with --to.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tmp-") as scratch, written_whole(folder) as partial:
        try:
            if arguments.to != OURS and not is_ours:
                import_model(source, Path(scratch))
                source = Path(scratch)
            WRITERS[arguments.to](source, partial, arguments)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return folder


def write_ours(source: Path, folder: Path, arguments: ConvertArguments) -> None:
    """Write a model of another family as one of ours.

    Raises:
        ValueError: we cannot express it, or its files are damaged.
    """
    architecture = import_model(source, folder, arguments.torch_dtype, arguments.shard_size)
    write_converted_card(folder, arguments.model, architecture, arguments.dtype)


def write_family(source: Path, folder: Path, arguments: ConvertArguments) -> None:
    """Write a model of ours as one of another family, and name the settings of training that it loses.

    Raises:
        ValueError: the family cannot express it, or files are damaged.
    """
    architecture = export_model(source, folder, arguments.to, arguments.torch_dtype, arguments.shard_size)
    write_converted_card(folder, arguments.model, architecture, arguments.dtype)
    config = read_json(source / CONFIG_FILE)
    for name in FAMILIES[arguments.to].export_loses:
        if value := config.get(name):
            lost = f"{arguments.to} has no {name} (here {value}), so further training runs without it"
            print(f"note: {lost}", file=sys.stderr)


def write_gguf_folder(source: Path, folder: Path, arguments: ConvertArguments) -> None:
    """Write a model of ours as a GGUF file with a Modelfile, and print what differs in llama.cpp.

    Raises:
        ValueError: llama.cpp cannot express the model or its tokenizer, or files are damaged.
    """
    dtype = GGUF_NAMES[arguments.dtype] if arguments.dtype else stored_dtype(source)
    model = Path(arguments.model).resolve()
    name = model.parent.name if model.name == "model" else model.name
    path = folder / f"{name}-{dtype}.gguf"
    for note in write_gguf(source, path, dtype, name):
        print(f"note: in llama.cpp, {note}", file=sys.stderr)
    (folder / "Modelfile").write_text(modelfile(source, path.name), encoding="utf-8")


def write_onnx_folder(source: Path, folder: Path, arguments: ConvertArguments) -> None:
    """Write a model of ours as an ONNX graph with its tokenizer, and print how well the graph reproduces it.

    Raises:
        ValueError: damaged files, or a model that has no graph.
    """
    config = load_config("the model", source)
    is_classifier = str((config.architectures or [""])[0]).endswith(CLASSIFIER_SUFFIX)
    auto_class = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    model = load_model("the model", source, auto_class, config=config, dtype=torch.float32)
    difference = export_onnx(model, folder)
    copy_tokenizer(source, folder)
    print(f"logits of ONNX Runtime and of the model differ by at most {difference:.1g}", file=sys.stderr)


WRITERS: dict[str, Callable[[Path, Path, ConvertArguments], None]] = {
    OURS: write_ours,
    "gpt2": write_family,
    "llama": write_family,
    "qwen3": write_family,
    "gguf": write_gguf_folder,
    "onnx": write_onnx_folder,
}


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
    refuse_quantized(f"--model {name}", folder, "converted")
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
