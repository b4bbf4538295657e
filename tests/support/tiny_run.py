"""A complete training run of one second: its data, its recipe, and helpers that read its results."""

import json

from transformers import AutoModelForCausalLM

from hf_scratch_gpt import ScratchGPTTokenizer
from train import prepare_data

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "residual_dropout": 0.1,
    "max_position_embeddings": 32,
}
RECIPE = {
    "max_steps": 6, "global_batch_size": 4, "micro_batch_size": 2, "warmup_steps": 2, "learning_rate": 3e-3,
    "precision": "fp32", "logging_steps": 1, "eval_steps": 3, "save_steps": 3, "sample_prompts": ["def "],
    "max_new_tokens": 4,
}  # fmt: skip


def prepare(folder):
    """Blocks of 16 tokens of generated code."""
    for number in range(2):
        lines = (f"def function_{i * (number + 1)}(x):\n    return x + {i}\n\n" for i in range(60))
        (folder / f"{number}.txt").write_text("".join(lines))
    texts = [(folder / "0.txt").read_text()]
    tokenizer = ScratchGPTTokenizer.train_from_texts(texts, 280, model_max_length=32, show_progress=False)
    tokenizer.save_pretrained(folder / "tokenizer")
    options = {
        "tokenizer": folder / "tokenizer",
        "output_dir": folder / "blocks",
        "block_size": 16,
        "text": folder / "0.txt",
        "validation_text": folder / "1.txt",
    }
    prepare_data.main([f"--{name}={value}" for name, value in options.items()])
    return folder / "blocks"


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()
