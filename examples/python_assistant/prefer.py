"""Train the assistant on preferences: DPO (https://huggingface.co/papers/2305.18290) with LoRA, by TRL and PEFT.

    python -m examples.python_assistant.prefer

In each pair, the answer of the docstring is preferred to the model's own answer to the same question. The adapter is
saved, loaded again and merged. Both folders load like any model.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from trl import DPOConfig, DPOTrainer

from train.model.inference import load_for_inference
from train.settings.command import run_command
from train.settings.recipe import option, parse_recipe

BATCH = 32


@dataclass
class PreferArguments:
    """The assistant, the data, and the length of the training."""

    model: str = option("Folder of the assistant.", "runs/python_assistant/run/model", is_path=True)
    data_dir: str = option("Folder written by make_data.", "runs/python_assistant/data", is_path=True)
    output_dir: str = option(
        "Folder for the adapter and the merged model.", "runs/python_assistant/preferred", is_path=True
    )
    num_pairs: int = option("Training pairs; a quarter as many are held out.", 384)
    max_steps: int = option("Optimizer steps, of eight pairs each.", 96)
    max_new_tokens: int = option("Maximum tokens of an answer of the model.", 64)


def main(argv: Sequence[str] | None = None) -> None:
    """Make pairs, train on them, save the adapter, and merge it."""
    (arguments,) = parse_recipe([PreferArguments], argv, description=__doc__ or "")
    folder = Path(arguments.output_dir)
    model, tokenizer = load_for_inference(arguments.model)
    pairs = {
        split: preferences(arguments, model, tokenizer, split, count)
        for split, count in (("train", arguments.num_pairs), ("validation", max(8, arguments.num_pairs // 4)))
    }
    trainer = DPOTrainer(
        model=arguments.model,
        args=DPOConfig(
            str(folder), max_steps=arguments.max_steps, per_device_train_batch_size=8, learning_rate=5e-4, beta=0.1,
            logging_steps=16, save_strategy="no", report_to="none", gradient_checkpointing=False, bf16=False,
            dataloader_pin_memory=torch.cuda.is_available(), seed=0,
        ),
        train_dataset=pairs["train"],
        eval_dataset=pairs["validation"],
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"),
    )  # fmt: skip
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model(str(folder / "adapter"))
    merged = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    print(report(before, after))
    print(f"Saved the adapter to {folder / 'adapter'} and the merged model to {folder / 'model'}")


def preferences(arguments: PreferArguments, model: Any, tokenizer: Any, split: str, count: int) -> Dataset:
    """Rows with the messages `prompt`, `chosen` and `rejected`; questions that the model answers correctly are skipped.

    Raises:
        ValueError: there is no data.
    """
    path = Path(arguments.data_dir) / f"{split}.jsonl"
    if not path.exists():
        raise ValueError(f"{path} does not exist: write it with python -m examples.python_assistant.make_data.")
    lines = path.read_text(encoding="utf-8").splitlines()
    chosen = [json.loads(line)["messages"][:2] for line in lines[:: max(1, len(lines) // count)][:count]]
    answers = sample_answers(model, tokenizer, [messages[0] for messages in chosen], arguments.max_new_tokens)
    rows = [
        {"prompt": messages[:1], "chosen": messages[1:], "rejected": [{"role": "assistant", "content": answer}]}
        for messages, answer in zip(chosen, answers, strict=True)
        if answer and answer != messages[1]["content"]
    ]
    return Dataset.from_list(rows)


def sample_answers(model: Any, tokenizer: Any, questions: list[dict[str, str]], max_new_tokens: int) -> list[str]:
    """The answers of the assistant, sampled with a fixed seed."""
    torch.manual_seed(0)
    answers: list[str] = []
    for start in range(0, len(questions), BATCH):
        prompts = [[question] for question in questions[start : start + BATCH]]
        inputs = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=True, temperature=0.8)
        answers += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def report(before: dict[str, float], after: dict[str, float]) -> str:
    """The metrics on held-out pairs before and after training, as a table."""
    lines = [f"{'held-out pairs':<44}{'before':>10}{'after':>10}"]
    for name, title in (
        ("eval_loss", "loss (before training: ln 2 = 0.6931)"),
        ("eval_rewards/accuracies", "reward accuracy (chosen above rejected)"),
        ("eval_rewards/margins", "reward margin"),
    ):
        lines.append(f"{title:<46}{before[name]:>8.4f}{after[name]:>10.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
