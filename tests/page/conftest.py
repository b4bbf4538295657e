"""Models of the page, and servers that show them, shared by all tests of this folder."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification, ScratchGPTTokenizer
from tests.support.browser import Demo, chromium
from tests.support.tiny import shake
from tests.support.tiny_base import save_base
from tests.support.tiny_logs import METRICS

LABELS = ["<b>sad</b>", "happy"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A run with a model and a checkpoint, a GPT-2, a classifier, and folders that are no model."""
    top = tmp_path_factory.mktemp("page")
    run = top / "run"
    run.mkdir()
    save_base(run / "model", max_position_embeddings=1024)
    model = shake(ScratchGPTForCausalLM.from_pretrained(run / "model"))
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # so that it writes until it is stopped
    model.save_pretrained(run / "model")
    tokenizer = ScratchGPTTokenizer.from_pretrained(run / "model")
    shutil.copytree(run / "model", run / "checkpoint-00000020")
    (run / "status.json").write_text(json.dumps({"state": "running", "step": 60, "max_steps": 80}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in METRICS))
    samples = [{"step": step, "prompt": "a < b", "text": f" text of step {step}"} for step in (20, 40, 60)]
    (run / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in samples))
    gpt2, classifier = top / "gpt2", top / "classifier"
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=24, n_layer=2, n_head=2, eos_token_id=0)
    shake(GPT2LMHeadModel(config)).save_pretrained(gpt2)
    plain = ScratchGPTTokenizer.from_pretrained(run / "model")
    plain.chat_template = None
    plain.save_pretrained(gpt2)
    names = dict(enumerate(LABELS))
    ScratchGPTForSequenceClassification.from_pretrained(
        run / "model", num_labels=2, id2label=names, label2id={name: i for i, name in names.items()}
    ).save_pretrained(classifier)
    tokenizer.save_pretrained(classifier)
    (top / "empty").mkdir()
    shutil.copytree(gpt2, top / "no tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
    return SimpleNamespace(
        top=top, run=run, model=run / "model", gpt2=gpt2, classifier=classifier, empty=top / "empty",
        without_tokenizer=top / "no tokenizer",
    )  # fmt: skip


@pytest.fixture(scope="session")
def demo(folders, tmp_path_factory):
    """The page for a model of ours, a GPT-2 and a classifier."""
    log = tmp_path_factory.mktemp("demo") / "log"
    demo = Demo(log, "--model", folders.model, folders.gpt2, folders.classifier)
    yield demo
    demo.close()


@pytest.fixture(scope="module")
def browser():
    """Closed after the module: while it is open, an event loop runs in this thread."""
    with chromium() as browser:
        yield browser
