"""A model folder as the commands write it, and a function that publishes it."""

import json
import shutil
import time
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from train import publish

WEIGHTS = "model.safetensors"
CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [scratch_gpt]
---

# tiny

`AutoModelForCausalLM.from_pretrained("path/to/this/folder")`
"""
SENT = {
    *("README.md", "config.json", "generation_config.json", WEIGHTS, "loss_curve.png"),
    *("configuration_scratch_gpt.py", "modeling_scratch_gpt.py"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}


@pytest.fixture
def model_folder(base, tmp_path):
    """A model folder as the commands write it, with files that must not be uploaded."""
    folder = tmp_path / "run" / "model"
    shutil.copytree(base, folder)
    (folder / "README.md").write_text(CARD)
    (folder / "loss_curve.png").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    for name in ("training_args.bin", "trainer_state.json", "metrics.jsonl", ".env", "run.log", "pytorch_model.bin"):
        (folder / name).write_text("not for the Hub")
    (folder / "optimizer").mkdir()
    save_file({"moment": torch.zeros(9)}, folder / "optimizer" / "shard.safetensors")
    save_file({"moment": torch.zeros(9)}, folder / "optimizer.safetensors")
    return folder


@pytest.fixture
def send(model_folder, monkeypatch):
    """Publishes the folder as alice/tiny with the given settings, without waiting between attempts."""
    monkeypatch.setattr(publish, "WAIT", 0.0)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    return lambda **settings: publish.publish(
        publish.PublishArguments(**{"folder_path": str(model_folder), "repo_id": "alice/tiny"} | settings)
    )


def log_in(monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)


def hub_is_plain():
    return bool(huggingface_hub.constants.HF_HUB_DISABLE_XET)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
