"""A run in memory whose parts a test can replace, and helpers that read its results."""

import json
from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import LlamaConfig, LlamaForCausalLM

from hf_scratch_gpt import ScratchGPTTokenizer
from train.checkpoint.checkpointer import Checkpointer
from train.data.sampler import StepSampler
from train.loop.language_modeling import next_token_objective
from train.loop.optimizers import build_optimizers
from train.loop.resume import resume
from train.loop.run import Run
from train.loop.train import train
from train.settings.training import TrainArguments

BLOCK = 12
VOCABULARY = 270


@dataclass
class Rows:
    """Validation or training rows in memory."""

    ids: torch.Tensor
    block_size: int = BLOCK

    def __len__(self):
        return len(self.ids)

    mean_length = BLOCK

    def rows(self, indices):
        return self.ids[torch.as_tensor(list(indices))]

    def batch(self, indices):
        rows = self.rows(indices)
        return {"input_ids": rows[:, :-1].contiguous(), "shift_labels": rows[:, 1:].contiguous()}


@pytest.fixture(autouse=True)
def new_accelerator_state():
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def tokenizer():
    return ScratchGPTTokenizer.train_from_texts(
        ["def f(x):\n    return x\n"] * 20, VOCABULARY, model_max_length=64, show_progress=False
    )


@pytest.fixture
def build(tmp_path, tokenizer):
    """Build a run with changed settings; dropout is on."""

    def build(name="run", sampler=StepSampler, dropout=0.1, seed=0, **settings):
        settings = {
            "max_steps": 6, "global_batch_size": 4, "micro_batch_size": 2, "warmup_steps": 2, "learning_rate": 3e-3,
            "logging_steps": 1, "eval_steps": 3, "save_steps": 2, "max_eval_samples": 5, "seed": seed,
        } | settings  # fmt: skip
        arguments = TrainArguments(str(tmp_path / name), **settings)
        (tmp_path / name).mkdir(exist_ok=True)
        torch.manual_seed(seed)
        ids = torch.randint(6, VOCABULARY, (23, BLOCK + 1))
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, attention_dropout=dropout, tie_word_embeddings=True, max_position_embeddings=64,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=None, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        model = LlamaForCausalLM(config).train()
        optimizers = build_optimizers(
            model, optimizer=arguments.optimizer, learning_rate=arguments.learning_rate, weight_decay=0.1
        )
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        checkpoints = Checkpointer(
            tmp_path / name, accelerator, model, optimizers,
            settings={"learning_rate": arguments.learning_rate, "global_batch_size": arguments.global_batch_size},
            save_total_limit=arguments.save_total_limit, async_save=arguments.async_save,
        )  # fmt: skip
        objective = next_token_objective(model, tokenizer, arguments)
        model, *optimizers = accelerator.prepare(model, *optimizers)
        return Run(
            arguments=arguments,
            accelerator=accelerator,
            model=model,
            optimizers=optimizers,
            sampler=sampler(Rows(ids), arguments.global_batch_size, arguments.micro_batch_size, seed),
            validation=Rows(ids[:7].flip(1)),
            objective=objective,
            checkpoints=checkpoints,
        )

    return build


def start(run):
    state = resume(run, recipe="")
    train(run, state)
    return state


def weights(run):
    return {name: tensor.clone() for name, tensor in run.bare_model.state_dict().items()}


def assert_same_weights(one, other):
    assert all(torch.equal(one[name], other[name]) for name in one)


def records(run, name="metrics.jsonl"):
    lines = [json.loads(line) for line in (run.folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("tokens_per_second", "mfu")} for line in lines]
