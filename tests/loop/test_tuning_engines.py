"""Fine-tuning over several processes gives what one process gives."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support.compare import assert_same_metrics
from tests.support.tiny_base import options, save_base, write_conversations, write_labels

SCRIPTS = {"finetune_classifier": write_labels, "finetune": write_conversations}
DDP, FSDP = {}, {"dp_shard_size": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "engine", "settings"),
    [
        ("finetune_classifier", DDP, {"class_weights": "balanced"}),
        ("finetune_classifier", DDP, {"trainable": "lora"}),
        ("finetune_classifier", FSDP, {"trainable": "layers"}),
        ("finetune", DDP, {"optimizer": "muon"}),
        ("finetune", FSDP, {}),
    ],
)
def test_two_processes_tune_as_one_does(launcher, tmp_path, script, engine, settings):
    base = save_base(tmp_path / "base", residual_dropout=0.0)
    rows = SCRIPTS[script](tmp_path / ("rows.csv" if script == "finetune_classifier" else "rows.jsonl"))
    for processes, name, further in ((1, "one", {}), (2, "two", engine)):
        paths = {"model": base, "train_file": rows, "validation_file": rows, "output_dir": tmp_path / name}
        line = options(**paths, micro_batch_size=1, **settings, **further)
        launcher.run(line, processes, tmp_path / f"{name}.log", script)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert_same_metrics(one, two)
    if script == "finetune":
        samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two")]
        assert samples[0] == samples[1]
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, weights in first.items():
        torch.testing.assert_close(weights, second[name], atol=1e-4, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert "processes               2" in (tmp_path / "two.log").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dp_shard_size": 2, "trainable": "lora"}, "--trainable lora does not work with --dp_shard_size 2")],
)
def test_what_cannot_be_split_is_refused(tmp_path, base, capsys, settings, message):
    from train import finetune
    from train.settings.command import run_command

    rows = write_conversations(tmp_path / "rows.jsonl")
    line = options(model=base, train_file=rows, output_dir=tmp_path / "run", **settings)
    assert run_command(finetune.main, line) == 2
    assert message in capsys.readouterr().err
