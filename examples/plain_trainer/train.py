"""Train a GPT of this package with `transformers.Trainer` alone, on the text of Python's `help()`.

python examples/plain_trainer/train.py
"""

import argparse
import math
from collections.abc import Sequence
from itertools import chain
from pydoc_data.topics import topics

from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments, pipeline, set_seed

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM, ScratchGPTTokenizer

BLOCK_SIZE = 128  # tokens


def main(argv: Sequence[str] | None = None) -> None:
    """Train a tokenizer and a model, evaluate, save, and generate from the saved model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default="runs/plain_trainer")
    parser.add_argument("--max_steps", type=int, default=400)
    options = parser.parse_args(argv)
    set_seed(0)  # Trainer seeds too, but after the model is built

    tokenizer = ScratchGPTTokenizer.train_from_texts(topics.values(), vocab_size=512, show_progress=False)

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return tokenizer([text + tokenizer.eos_token for text in rows["text"]])

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        ids = list(chain.from_iterable(rows["input_ids"]))
        return {"input_ids": [ids[i : i + BLOCK_SIZE] for i in range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE)]}

    texts = Dataset.from_dict({"text": list(topics.values())}).train_test_split(test_size=0.1, seed=0)
    texts = texts.map(tokenize, batched=True, remove_columns="text")
    blocks = texts.map(group, batched=True, remove_columns="attention_mask")

    # the default, 0.02, suits models ten times as wide
    config = ScratchGPTConfig.from_preset("tiny", vocab_size=len(tokenizer), initializer_range=0.1)
    trainer = Trainer(
        model=ScratchGPTForCausalLM(config),
        args=TrainingArguments(
            options.output_dir, max_steps=options.max_steps, per_device_train_batch_size=8, learning_rate=1e-2,
            warmup_steps=20, lr_scheduler_type="cosine", logging_steps=100, eval_strategy="steps", eval_steps=100,
            save_strategy="no", report_to="none",
        ),
        train_dataset=blocks["train"],
        eval_dataset=blocks["test"],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model()

    print(f"\nvalidation loss {loss:.4f}, perplexity {math.exp(loss):.1f}; the model is in {options.output_dir}")
    generate = pipeline("text-generation", model=options.output_dir)
    print(generate('The "for" statement', max_new_tokens=60, do_sample=True, temperature=0.7)[0]["generated_text"])


if __name__ == "__main__":
    main()
