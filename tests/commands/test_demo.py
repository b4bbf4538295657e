"""`demo`: what it refuses before it starts."""

import functools
import socket
import sys

import pytest

from tests.support.refusal import refusal_of
from train import demo

refusal = functools.partial(refusal_of, demo.main)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", 70000], "--port is 70000: it must be at most 65535."),
        (["--dtype", "int8"], "--dtype is int8: it must be float32, bfloat16 or float16."),
        (["--max_new_tokens", 0], "--max_new_tokens is 0"),
        (["--max_prompt_tokens", 0], "--max_prompt_tokens is 0"),
        (["--max_queue_size", 0], "--max_queue_size is 0"),
        (["--model", "a", "b", "a"], "--model gives a more than once"),
    ],
)
def test_refuses_options(capsys, options, message):
    assert message in refusal(capsys, *options)


def test_without_gradio_it_names_the_extra(capsys, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert 'gradio must be installed: pip install "hf_scratch_gpt[demo]"' in refusal(capsys)


def test_a_model_that_does_not_exist_is_said_before_the_page_opens(capsys, monkeypatch, tmp_path):
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    message = refusal(capsys, "--port", 0)
    assert "--model runs/quickstart/run/model does not exist; scratch-gpt quickstart writes" in message
    assert "gradio" in sys.modules


def test_a_port_in_use_is_said_before_the_model_is_loaded(capsys):
    pytest.importorskip("gradio")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        message = refusal(capsys, "--port", other.getsockname()[1], "--model", "gone")
    assert "Choose another --port (0: any that is free)" in message
