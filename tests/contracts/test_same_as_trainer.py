"""Our loop and `transformers.Trainer` train the same model on the same batches to the same weights."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from tests.support.tiny import tiny_model
from tests.support.tiny_loop import BLOCK, Rows, records, start
from train.data.examples import IGNORE_INDEX
from train.loop.language_modeling import LanguageModeling
from train.loop.optimizers import build_optimizers
from train.loop.run import build_run
from train.loop.schedule import learning_rate_at
from train.settings.training import TrainArguments

STEPS, BATCH = 6, 4


class Ragged(Rows):
    """Rows with different numbers of ignored targets, so that a mean of means would give another loss."""

    def batch(self, indices):
        batch = {name: tensor.clone() for name, tensor in super().batch(indices).items()}
        for row, index in enumerate(indices):
            batch["shift_labels"][row, : int(index) % 7] = IGNORE_INDEX
        return batch


class InOrder(IterableDataset):
    """The rows of our run, one by one, for Trainer: the model shifts the labels."""

    def __init__(self, run):
        self.run = run

    def __iter__(self):
        for step in range(STEPS):
            for _, batch in self.run.sampler.micro_batches(step):
                for ids, labels in zip(batch["input_ids"], batch["shift_labels"], strict=True):
                    # the target of the last position is not in input_ids: append it as one more token
                    last = labels[-1:] if labels[-1] != IGNORE_INDEX else ids[:1]
                    row = torch.cat([ids, last])
                    yield {"input_ids": row, "labels": torch.cat([torch.tensor([IGNORE_INDEX]), labels])}


@pytest.mark.parametrize("micro_batch_size", [4, 1])
def test_losses_and_weights_are_equal(tmp_path, tokenizer, micro_batch_size):
    settings = {"learning_rate": 1e-2, "warmup_steps": 2, "max_steps": STEPS, "min_lr_ratio": 0.1}
    arguments = TrainArguments(
        str(tmp_path / "ours"), global_batch_size=BATCH, micro_batch_size=micro_batch_size, optimizer="adamw",
        weight_decay=0.1, logging_steps=1, eval_steps=0, save_steps=0, spike_sigmas=0, **settings,
    )  # fmt: skip
    (tmp_path / "ours").mkdir()
    model = tiny_model(tie_word_embeddings=True).train()
    twin = copy.deepcopy(model)
    rows = Ragged(torch.randint(2, 97, (11, BLOCK + 1)))
    objective = LanguageModeling(tokenizer, torch.ones(97, dtype=torch.long))
    run = build_run(arguments, Accelerator(cpu=True, mixed_precision="no"), model, objective, rows, rows, {})
    start(run)
    ours = [record for record in records(run) if "loss" in record]

    (optimizer,) = build_optimizers(twin, optimizer="adamw", learning_rate=1e-2, weight_decay=0.1)
    schedule = LambdaLR(
        optimizer, lambda step: learning_rate_at(step, max_steps=STEPS, warmup_steps=2, final_ratio=0.1)
    )
    trainer = Trainer(
        model=twin,
        args=TrainingArguments(
            str(tmp_path / "theirs"), max_steps=STEPS, per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=BATCH // micro_batch_size, max_grad_norm=1.0, logging_steps=1, report_to=[],
            use_cpu=True, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=InOrder(run),
        optimizers=(optimizer, schedule),
    )  # fmt: skip
    trainer.train()
    theirs = [record for record in trainer.state.log_history if "loss" in record]
    assert len(ours) == len(theirs) == STEPS
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-9)
    for name, weights in twin.state_dict().items():
        torch.testing.assert_close(run.bare_model.state_dict()[name], weights, atol=1e-5, rtol=1e-5)
