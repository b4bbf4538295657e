"""Memory and time to convert a Llama model of 1B parameters: `python -m benchmarks.conversion`.

The peer loads and saves the model, as people usually rewrite one. The weights are random, in bfloat16. Each task runs
in a fresh process; its peak memory is counted above that of a process that has only imported the libraries, and
includes the pages of files that it has read.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_scratch_gpt import PRESETS
from hf_scratch_gpt.conversion import export_model, import_model
from hf_scratch_gpt.conversion.folders import write_weights
from hf_scratch_gpt.conversion.plan import Recipe
from hf_scratch_gpt.conversion.sources import Source
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

from .report import in_new_process, peak_memory, print_table, seconds_of

OURS_ALONE = {"qk_norm"}  # fields of our preset that a Llama does not have


@dataclass
class ConversionArguments:
    """Options of the benchmark."""

    max_shard_size: str = option("Maximum size of a weights file.", "500MB")
    num_hidden_layers: int = option("Layers of the model; the preset has 16.", 16)


class RandomTensors(Source):
    """Random tensors of a model, made when they are read."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self.dtypes = dict.fromkeys(self.shapes, torch.bfloat16)

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        return torch.randn(self.shapes[name], dtype=torch.bfloat16) * 0.02


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    (arguments,) = parse_recipe([ConversionArguments], argv, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        place, size = Path(name), arguments.max_shard_size
        num_parameters = write_llama(place / "llama", size, arguments.num_hidden_layers)
        files = [path.stat().st_size / 1e6 for path in (place / "llama").glob("*.safetensors")]
        tasks = {
            "convert to ScratchGPT": (import_model, place / "llama", place / "ours", None, size),
            "convert to Llama": (export_model, place / "ours", place / "back", "llama", None, size),
            "load and save as Llama": (load_and_save, place / "llama", place / "saved", size),
        }
        idle = in_new_process(measured, nothing)[1]
        rows = []
        for title, (function, *values) in tasks.items():
            seconds, peak = in_new_process(measured, function, *values)
            rows.append([title, f"{seconds:.1f}", f"{peak - idle:,.0f}"])
    title = (
        f"Conversion, {num_parameters / 1e6:,.0f}M parameters in bfloat16, {sum(files):,.0f} MB in {len(files)} files"
    )
    print_table(f"{title} of at most {max(files):,.0f} MB", ["", "seconds", "peak memory, MB"], rows)


def write_llama(folder: Path, max_shard_size: str, num_hidden_layers: int) -> int:
    """Write a Llama model with random weights, one file at a time; returns the number of its parameters."""
    values = {name: value for name, value in PRESETS["llama3-1b"].items() if name not in OURS_ALONE}
    config = LlamaConfig(**values | {"num_hidden_layers": num_hidden_layers}, tie_word_embeddings=True)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    tensors = RandomTensors(model)
    plan = {name: Recipe((name,), shape, lambda found: found[0]) for name, shape in tensors.shapes.items()}
    write_weights(plan, tensors, folder, None, max_shard_size)
    return int(model.num_parameters())


def measured(function, *arguments):  # type: ignore[no-untyped-def]
    """Seconds and the peak memory of this process in MB."""
    return seconds_of(lambda: function(*arguments)), peak_memory()


def nothing() -> None:
    """Only the imports."""


def load_and_save(source: Path, folder: Path, max_shard_size: str) -> None:
    """The usual way to rewrite a model."""
    LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(
        folder, max_shard_size=max_shard_size
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
