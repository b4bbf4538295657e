"""A first loss that is worse than guessing is a warning, in fine-tuning and in pretraining."""

import logging
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_base import options, save_base, write_conversations
from tests.support.tiny_loop import start
from train import finetune
from train.loop import train as loop
from train.loop.first_loss import MARGIN
from train.loop.outcome import HostCopy, StepResult


@pytest.mark.parametrize("scale", [1, 100])  # of the embeddings: confident and wrong
def test_fine_tuning_warns(scale, tmp_path, caplog):
    folder = save_base(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.embed_tokens.weight.data *= scale
    model.save_pretrained(folder)
    rows = write_conversations(tmp_path / "rows.jsonl")
    with caplog.at_level(logging.WARNING):
        finetune.main(options(model=folder, train_file=rows, output_dir=tmp_path / "run", max_steps=1))
    warnings = [record.message for record in caplog.records if "worse than guessing" in record.message]
    assert len(warnings) == (scale > 1)
    if warnings:
        assert "check --model and --tokenizer" in warnings[0]


@pytest.mark.parametrize(("excess", "is_warned"), [(MARGIN / 2, False), (2 * MARGIN, True), (math.nan, False)])
def test_pretraining_warns_at_the_first_step_only(excess, is_warned, build, monkeypatch, caplog):
    run = build(max_steps=2)
    loss = math.log(run.bare_model.config.vocab_size) + excess
    losses, counts = (HostCopy(torch.tensor(values)) for values in ([loss, 1.0], [1.0, 1.0, 0.0]))
    monkeypatch.setattr(loop, "train_step", lambda _, state, **__: StepResult(state.step + 1, losses, counts))
    with caplog.at_level(logging.WARNING):
        start(run)
    assert sum("worse than guessing" in record.message for record in caplog.records) == is_warned
