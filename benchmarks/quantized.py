"""Size and quality of a trained model in other formats: `python -m benchmarks.quantized`.

Formats are types of 16 bits, the quantizers of transformers on a CPU, ONNX and GGUF. Each is written to the disk in a
fresh process, loaded again, and scored on the validation split that the model was trained with, as by `scratch-gpt
evaluate`. GGUF files are read by transformers: their weights, but not the arithmetic of llama.cpp. The rows of a
library that is not installed are empty.
"""

import importlib
import itertools
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig
from transformers.utils import logging as transformers_logging

from hf_scratch_gpt.conversion.gguf import write_gguf
from hf_scratch_gpt.conversion.onnx import GRAPH_FILE, export_onnx
from train.data.blocks import TOKENIZER_FOLDER, open_data
from train.data.tokens import load_data_tokenizer
from train.evaluate import data_streams, score_streams
from train.metrics.perplexity import bits_per_byte, perplexity
from train.metrics.text_scores import TextScores
from train.model.hints import data_of_model
from train.settings.command import run_command
from train.settings.recipe import option, option_list, parse_recipe

from .report import in_new_process, print_table

MEGABYTE = 1e6
WEIGHTS = ("*.safetensors", "*.onnx", "*.onnx.data", "*.gguf")


@dataclass
class QuantizedArguments:
    """Options of the benchmark."""

    model: str = option("Folder of a language model.", "runs/quickstart/run/model", is_path=True)
    data_dir: str | None = option("Prepared data (default: that of the run of the model).", is_path=True)
    formats: list[str] = option_list("Rows of the table besides float32 (default: all).")
    num_windows: int | None = option("Windows of validation text (default: all).")
    micro_batch_size: int = option("Windows per forward pass.", 8)


@dataclass
class Measurement:
    """The result of one format."""

    scores: TextScores
    disk: int | None = None  # bytes of the weights files; None: it cannot be saved
    memory: int | None = None  # bytes of the weights; None: the runtime maps the file


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([QuantizedArguments], argv, description=__doc__ or "")
    model, data_dir = Path(arguments.model), arguments.data_dir or data_of_model(Path(arguments.model))
    if not model.is_dir() or data_dir is None:
        raise ValueError(f"--model {model} is not the model of a run with its data: run scratch-gpt quickstart first.")
    results: dict[str, Measurement | str] = {}
    unknown = set(arguments.formats) - set(FORMATS)
    if unknown:
        raise ValueError(f"--formats has {', '.join(sorted(unknown))}; allowed values: {', '.join(FORMATS)}.")
    for name in FORMATS:
        if arguments.formats and name not in ("float32", *arguments.formats):
            continue
        results[name] = in_new_process(measure, name, model, Path(data_dir), arguments)
        print(f"{name}: {results[name] if isinstance(results[name], str) else 'done'}", file=sys.stderr, flush=True)
    base = results["float32"]
    assert isinstance(base, Measurement)
    print_table(
        f"{model}, {base.scores.num_tokens:,} tokens of validation text",
        ["", "on disk (MB)", "in memory (MB)", "perplexity", "bits per byte", "change"],
        [[name, *cells(result, base)] for name, result in results.items()],
    )


def cells(result: Measurement | str, base: Measurement) -> list[str]:
    """The cells of a row."""
    if isinstance(result, str):
        return [result, "", "", "", ""]
    bits, before = (bits_per_byte(one.scores.nats, one.scores.num_bytes) for one in (result, base))
    return [
        "cannot be saved" if result.disk is None else f"{result.disk / MEGABYTE:.2f}",
        "" if result.memory is None else f"{result.memory / MEGABYTE:.2f}",
        f"{perplexity(result.scores.loss):.3f}",
        f"{bits:.4f}",
        f"{bits / before - 1:+.2%}",
    ]


def measure(name: str, source: Path, data_dir: Path, arguments: QuantizedArguments) -> Measurement | str:
    """Write, load and score one format; the reason if a library is missing."""
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    for library in ("bitsandbytes", "torchao"):  # they warn at every layer
        logging.getLogger(library).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, saved = FORMATS[name](source, Path(folder))
        except ImportError as error:
            return f"{error.name or 'a library'} is not installed"
        tokenizer = load_data_tokenizer("--data_dir", data_dir / TOKENIZER_FOLDER)
        data = open_data(data_dir, verify=["validation"])
        named = [(name, itertools.islice(stream, arguments.num_windows)) for name, stream in data_streams(data)]
        block_size = data.validation.block_size
        ((_, scores),) = score_streams(model, named, block_size, arguments.micro_batch_size, tokenizer)
        files = [path.stat().st_size for pattern in WEIGHTS for path in Path(folder).glob(pattern)]
        memory = sum(weight_bytes(model)) if isinstance(model, torch.nn.Module) and name not in MAPPED else None
        return Measurement(scores, sum(files) if saved else None, memory)


def weight_bytes(model: torch.nn.Module) -> Iterator[int]:
    """The bytes of each tensor of a model, with the packed data and the scales of quantized ones."""
    for tensor in [*model.parameters(), *model.buffers()]:
        yield from tensor_bytes(tensor)
        state = getattr(tensor, "quant_state", None)  # of bitsandbytes in 4 bits
        yield from (one.nbytes for one in vars(state or SimpleNamespace()).values() if isinstance(one, torch.Tensor))


def tensor_bytes(tensor: torch.Tensor) -> Iterator[int]:
    """The bytes of a tensor, or of the tensors that it consists of."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from tensor_bytes(getattr(tensor, name))
    else:
        yield tensor.nbytes


# Formats: each writes the model in a folder to another one, and returns it as loaded from there, and whether it was
# written.

Format = Callable[[Path, Path], tuple[Any, bool]]


def in_type(dtype: torch.dtype) -> Format:
    """The weights and all computation in another type."""

    def write(source: Path, folder: Path) -> tuple[Any, bool]:
        AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder).eval(), True

    return write


def quantized(config: Callable[[], Any], can_be_saved: bool = True) -> Format:
    """The matrices of all layers quantized; embeddings and head stay as they are."""

    def write(source: Path, folder: Path) -> tuple[Any, bool]:
        model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config())
        if can_be_saved:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder)
        return model.eval(), can_be_saved

    return write


def torchao(name: str) -> Callable[[], TorchAoConfig]:
    """A config of torchao."""
    return lambda: TorchAoConfig(getattr(importlib.import_module("torchao.quantization"), name)())


def onnx(source: Path, folder: Path) -> tuple[Any, bool]:
    """A graph in ONNX Runtime."""
    export_onnx(AutoModelForCausalLM.from_pretrained(source), folder)
    return OnnxModel(folder / GRAPH_FILE), True


def onnx_int8(source: Path, folder: Path) -> tuple[Any, bool]:
    """A graph whose matrices, embeddings included, ONNX Runtime has quantized."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as original:
        export_onnx(AutoModelForCausalLM.from_pretrained(source), Path(original) / "float32")
        quantize_dynamic(Path(original) / "float32" / GRAPH_FILE, folder / GRAPH_FILE)
    return OnnxModel(folder / GRAPH_FILE), True


class OnnxModel:
    """A graph that is called as a model."""

    device = torch.device("cpu")

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        """The logits of texts, (batch, seq), without a cache."""
        batch, seq = input_ids.shape
        inputs = {
            value.name: np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32)
            for value in self.session.get_inputs()
            if value.name.startswith("past")
        }
        inputs["input_ids"] = input_ids.numpy()
        inputs["position_ids"] = np.tile(np.arange(seq), (batch, 1))
        inputs["attention_mask"] = np.ones((batch, seq), np.int64)
        (logits,) = self.session.run(["logits"], inputs)
        return SimpleNamespace(logits=torch.from_numpy(logits))


def gguf(dtype: str) -> Format:
    """A GGUF file, read by transformers."""

    def write(source: Path, folder: Path) -> tuple[Any, bool]:
        importlib.import_module("gguf")
        write_gguf(source, folder / "model.gguf", dtype)
        head_dim = AutoConfig.from_pretrained(source).head_dim  # which transformers does not read from the file
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", head_dim=head_dim)
        return model.eval(), True

    return write


FORMATS: dict[str, Format] = {
    "float32": in_type(torch.float32),
    "bfloat16": in_type(torch.bfloat16),
    "float16": in_type(torch.float16),
    "bitsandbytes int8": quantized(lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes nf4": quantized(lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "torchao int8 weights": quantized(torchao("Int8WeightOnlyConfig")),
    "torchao int8 weights and activations": quantized(torchao("Int8DynamicActivationInt8WeightConfig")),
    "quanto int8": quantized(lambda: QuantoConfig(weights="int8"), can_be_saved=False),
    "quanto int4": quantized(lambda: QuantoConfig(weights="int4"), can_be_saved=False),
    "ONNX float32": onnx,
    "ONNX int8, by ONNX Runtime": onnx_int8,
    "GGUF f16": gguf("f16"),
    "GGUF q8_0": gguf("q8_0"),
}
MAPPED = ("GGUF f16", "GGUF q8_0")  # transformers makes float32 of them, llama.cpp does not


if __name__ == "__main__":
    sys.exit(run_command(main))
