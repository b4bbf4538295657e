"""Our loop and `transformers.Trainer` train the same model on the same batches to the same weights."""

import copy

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model
from tiny_loop import BLOCK, Rows, records, start
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from train.arguments import TrainArguments
from train.build import build_run
from train.language_modelling import IGNORED_LABEL, LanguageModelling
from train.optimizer import build_optimizers
from train.parallel import Grid
from train.schedule import learning_rate_at

STEPS, BATCH = 6, 4


class Ragged(Rows):
    """Rows with different numbers of ignored targets, so that a mean of means would give another loss."""

    def batch(self, indices):
        batch = {name: tensor.clone() for name, tensor in super().batch(indices).items()}
        for row, index in enumerate(indices):
            batch["shift_labels"][row, : int(index) % 7] = IGNORED_LABEL
        return batch


class InOrder(IterableDataset):
    """The rows of our run, one by one, for Trainer: the model shifts the labels."""

    def __init__(self, run):
        self.run = run

    def __iter__(self):
        for step in range(STEPS):
            for _, batch in self.run.batches.micro_batches(step):
                for ids, labels in zip(batch["input_ids"], batch["shift_labels"], strict=True):
                    # the target of the last position is not in input_ids: append it as one more token
                    last = labels[-1:] if labels[-1] != IGNORED_LABEL else ids[:1]
                    row = torch.cat([ids, last])
                    yield {"input_ids": row, "labels": torch.cat([torch.tensor([IGNORED_LABEL]), labels])}


@pytest.mark.parametrize("micro_batch_size", [4, 1])
def test_losses_and_weights_are_equal(tmp_path, tokenizer, micro_batch_size):
    settings = {"learning_rate": 1e-2, "warmup_steps": 2, "max_steps": STEPS, "final_learning_rate_ratio": 0.1}
    arguments = TrainArguments(
        str(tmp_path / "ours"), batch_size=BATCH, micro_batch_size=micro_batch_size, optimizer="adamw",
        weight_decay=0.1, log_every=1, eval_every=0, save_every=0, spike_sigmas=0, **settings,
    )  # fmt: skip
    (tmp_path / "ours").mkdir()
    model = tiny_model(tie_word_embeddings=True).train()
    twin = copy.deepcopy(model)
    rows = Ragged(torch.randint(2, 97, (11, BLOCK + 1)))
    objective = LanguageModelling(tokenizer, torch.ones(97, dtype=torch.long))
    place = (Accelerator(cpu=True, mixed_precision="no"), Grid())
    run = build_run(arguments, model, objective, (rows, rows), tokenizer, place, {})
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
