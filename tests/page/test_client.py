"""The page through gradio's client, and the command around it."""

import json
import socket
import urllib.error
import urllib.request

import pytest

pytest.importorskip("gradio")

from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTTokenizer
from tests.support.browser import Demo
from train.data.plain_text import prompt_ids
from train.model.generation import TextStream, generate_text

pytestmark = [
    pytest.mark.xdist_group("browser"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
GREEDY = (0, 0, 1, 0, 1, 0)  # temperature, top-k, top-p, min-p, repetition penalty, seed
LENGTH = 6


@pytest.fixture(scope="module")
def client(demo):
    from gradio_client import Client

    client = Client(demo.url, verbose=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def model(folders):
    return ScratchGPTForCausalLM.from_pretrained(folders.model).eval(), ScratchGPTTokenizer.from_pretrained(
        folders.model
    )


def answer(model, ids):
    stream = TextStream(model[1], lambda text: None)
    return generate_text(*model, ids, stream, max_new_tokens=LENGTH, do_sample=False)


def test_the_text_is_that_of_the_model(client, folders, model):
    error, text, status = client.predict(str(folders.model), "The a number", *GREEDY, LENGTH, api_name="/write")[:3]
    assert (error, text) == ("", "The a number" + answer(model, model[1]("The a number")["input_ids"]))
    assert "Done: " in status


def test_the_answer_is_that_of_the_model_and_control_tokens_stay_text(client, folders, model):
    question = "What is <|end|> a?"
    outputs = client.predict(str(folders.model), question, "", *GREEDY, LENGTH, api_name="/chat")
    ids = prompt_ids(model[1], [{"role": "user", "content": question}])
    assert outputs[0] == ""
    assert "&lt;|end|&gt;" in outputs[1]
    from train.page.markup import escaped

    assert f"<pre>{escaped(answer(model, ids))}</pre>" in outputs[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ((3.0, 0, 1, 0, 1, 0, LENGTH), "greater than maximum value 2"),  # gradio refuses what a slider cannot say
        ((0.001, 0, 1, 0, 1, 0, LENGTH), "--temperature is 0.001: it must be a number of at least 0.01."),
        ((*GREEDY, 100_000), "greater than maximum value 512"),
    ],
)
def test_settings_out_of_range_are_refused(client, folders, settings, sentence):
    try:
        refusal = client.predict(str(folders.model), "a", *settings, api_name="/write")[0]
    except Exception as error:
        refusal = str(error)
    assert sentence in refusal


def test_long_texts_are_refused(client, folders):
    for text in ("a b c " * 2000, "x" * 200_000):
        error = client.predict(str(folders.model), text, api_name="/inside")[0]
        assert "the limit is 256 tokens" in error or "the limit is 256: shorten" in error


def test_labels_are_those_of_the_classifier(client, folders):
    error, labels = client.predict(str(folders.classifier), "The a number 3 is red.", api_name="/label")
    assert error == ""
    assert "&lt;b&gt;sad" in labels


def test_files_of_this_machine_are_not_served(demo, folders):
    for path in (folders.run / "status.json", "/etc/passwd", "train/demo.py"):
        for route in ("gradio_api/file=", "file="):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{demo.url}/{route}{path}")
            assert refused.value.code in (403, 404)
    with urllib.request.urlopen(f"{demo.url}/config") as config:
        assert json.load(config)["title"]


@pytest.mark.slow
def test_it_listens_only_at_this_machine_and_ends_with_ctrl_c(folders, tmp_path):
    demo = Demo(tmp_path / "log", "--model", folders.gpt2)
    try:
        assert demo.url.startswith("http://127.0.0.1:")
        port = int(demo.url.rpartition(":")[2])
        assert demo.stop() == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        demo.close()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
