"""A tiny base model to tune, and rows to tune it on."""

import csv
import json

import torch

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM, ScratchGPTTokenizer

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "residual_dropout": 0.1,
}
TRAINING = {"max_steps": 4, "global_batch_size": 4, "micro_batch_size": 2, "learning_rate": 3e-3, "precision": "fp32",
            "logging_steps": 1, "max_new_tokens": 4, "spike_sigmas": 0}  # fmt: skip
COLOURS = ["red", "green", "blue"]
TEXTS = [
    f"The {thing} number {i} is {colour}." for i in range(12) for thing, colour in zip("abc", COLOURS, strict=True)
]


def save_base(folder, **changes):
    """A model with random weights and its tokenizer, which has pieces of the texts."""
    tokenizer = ScratchGPTTokenizer.train_from_texts(TEXTS * 2, 290, model_max_length=64, show_progress=False)
    tokenizer.save_pretrained(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = ScratchGPTConfig.from_values(SHAPE | {"vocab_size": len(tokenizer)} | ids | changes)
    ScratchGPTForCausalLM(config).save_pretrained(folder)
    return folder


def write_labels(path, count=30, **columns):
    """A table of texts, each with the colour that it names."""
    names = {"text": "text", "label": "label"} | columns
    rows = [{names["text"]: text, names["label"]: text.split()[-1].strip(".")} for text in TEXTS[:count]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def chat(*contents):
    """Turns of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_conversations(path, count=12):
    """Questions about the texts, one of three with two turns."""
    rows = []
    for i, text in enumerate(TEXTS[:count]):
        more = ("Sure?", "Yes.") if i % 3 == 0 else ()
        rows.append({"messages": chat(f"What is {i}?", text, *more)})
    return write_rows(path, rows)


def options(**values):
    """A command line."""
    line = []
    for name, value in (TRAINING | values).items():
        line += [] if value is None else [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return line
