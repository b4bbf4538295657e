"""`serve`: what it refuses before it starts."""

import functools
import importlib.util
import socket

import pytest
import torch

from hf_scratch_gpt import ScratchGPTForSequenceClassification
from tests.support.refusal import refusal_of
from tests.support.tiny_base import save_base
from train import serve

pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


refusal = functools.partial(refusal_of, serve.main)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", 70000], "--port is 70000: it must be at most 65535."),
        (["--port", -1], "--port is -1: it must be a number of at least 0."),
        (["--dtype", "int8"], "--dtype is int8: it must be float32, bfloat16 or float16."),
        (["--max_length", 65, "--port", 0], "--max_length is 65: it must be at most 64, what the model reads."),
        (["--max_length", 1], "--max_length is 1: it must be a number of at least 2."),
        (["--max_new_tokens", 0], "--max_new_tokens is 0"),
        (["--max_concurrent_requests", 0], "--max_concurrent_requests is 0"),
        (
            ["--max_concurrent_requests", 2, "--continuous_batching", "false"],
            "--max_concurrent_requests (2) requires --continuous_batching true.",
        ),
        (["--device", "gpu", "--port", 0], "--device gpu cannot be used: "),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: "),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 8000: "),
    ],
)
def test_refuses_options(base, capsys, options, message):
    assert message in refusal(capsys, "--model", base, *options)


def test_a_port_that_is_in_use(base, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = refusal(capsys, "--model", base, "--port", port)
    assert f"--host 127.0.0.1 --port {port}: address already in use. Choose another --port (0: any" in message


def test_a_library_that_is_missing(base, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    message = refusal(capsys, "--model", base)
    assert message == 'error: uvicorn must be installed: pip install "hf_scratch_gpt[serve]"\n'


def test_a_classifier_is_refused(base, tmp_path, capsys):
    ScratchGPTForSequenceClassification.from_pretrained(base, num_labels=2).save_pretrained(tmp_path)
    message = refusal(capsys, "--model", tmp_path, "--port", 0)
    assert (
        "is a classifier (ScratchGPTForSequenceClassification), not a language model: use it with scratch-gpt "
        in message
    )
    assert f"classify --model {tmp_path}" in message


def test_damaged_weights_are_refused(tmp_path, capsys):
    folder = save_base(tmp_path)
    model = serve.load_for_inference(str(folder))[0]
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(folder)
    assert "are not finite: its weights are damaged" in refusal(capsys, "--model", folder, "--port", 0)


def test_a_cache_that_does_not_fit_is_refused(base, capsys, monkeypatch):
    from train.serving import cache

    monkeypatch.setattr(cache, "memory_bytes", lambda: 4 * 3 * cache.PAGE_SIZE * 2 * 2 * 2 * 8 * 4 - 1)
    message = refusal(capsys, "--model", base, "--port", 0)
    assert "continuous batching needs 0.0 GB of memory for one request of 64 tokens, more than a quarter" in message
    assert "--continuous_batching false" in message
