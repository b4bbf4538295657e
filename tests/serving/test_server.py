"""`serve`: what OpenAI's client gets from a real server, with and without continuous batching."""

import json
import re
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTTokenizer
from tests.support.tiny import shake
from tests.support.tiny_base import chat, save_base
from train.data.plain_text import plain_ids, prompt_ids

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.support.served import NEW, Servers, ask, client_of, complete, generated, post  # noqa: E402

POSITIONS = 1024
PROMPTS = [f"The {thing} number {i} is" for i in range(7) for thing in ("a", "b", "car")][:20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with random weights, whose answers are ASCII, and differ from prompt to prompt."""
    folder = save_base(tmp_path_factory.mktemp("served"), max_position_embeddings=POSITIONS)
    model, tokenizer = shake(ScratchGPTForCausalLM.from_pretrained(folder)), ScratchGPTTokenizer.from_pretrained(folder)
    others = [token for token in range(len(tokenizer)) if not tokenizer.decode(token).isascii()]
    with torch.no_grad():
        model.lm_head.weight[others] = 0  # other tokens have logits above 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(folder, tmp_path_factory):
    """A model of transformers, without a chat template."""
    gpt2 = tmp_path_factory.mktemp("gpt2")
    tokenizer = ScratchGPTTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(gpt2)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=24, n_layer=2, n_head=2, eos_token_id=0)
    shake(GPT2LMHeadModel(config)).save_pretrained(gpt2)
    return gpt2


@pytest.fixture(scope="module")
def servers(folder, gpt2, tmp_path_factory):
    """All three start at the same time."""
    logs = tmp_path_factory.mktemp("logs")
    servers = Servers()
    name = ("--served_model_name", "tiny")
    yield {
        "together": servers.start(logs / "together", "--model", str(folder), *name, "--max_concurrent_requests", "4"),
        "one by one": servers.start(logs / "single", "--model", str(folder), *name, "--continuous_batching", "false"),
        "gpt2": servers.start(logs / "gpt2", "--model", str(gpt2)),
    }
    servers.close()


@pytest.fixture(params=["together", "one by one"])
def server(servers, request):
    return servers[request.param]


@pytest.fixture
def together(servers):
    return servers["together"]


@pytest.fixture
def client(server):
    return client_of(server)


@pytest.fixture(scope="module")
def model(folder):
    model = ScratchGPTForCausalLM.from_pretrained(folder).eval()
    return model, ScratchGPTTokenizer.from_pretrained(folder)


def test_the_model_is_listed_and_the_server_is_healthy(client, server):
    assert [found.id for found in client.models.list()] == ["tiny"]
    with urllib.request.urlopen(server.url.replace("/v1", "/health")) as answer:
        assert json.load(answer) == {"status": "ok"}


def test_completions_are_those_of_generate(client, model):
    texts = set()
    for prompt in PROMPTS[:4]:
        ids = plain_ids(model[1], prompt)
        text, count = generated(model, ids)
        completion = complete(client, prompt)
        assert completion.choices[0].text == text
        assert completion.choices[0].finish_reason == ("length" if count == NEW else "stop")
        usage = completion.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(ids), count, len(ids) + count)
        pieces = [chunk.choices[0] for chunk in complete(client, prompt, stream=True)]
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [completion.choices[0].finish_reason]
        assert len(pieces) > 3
        texts.add(text)
    assert len(texts) == 4


def test_chat_answers_are_those_of_chat(client, model):
    messages = [{"role": "system", "content": "Be brief."}, *chat("The number", "The a number", "is?")]
    text, count = generated(model, prompt_ids(model[1], messages))
    answer = ask(client, messages)
    assert (answer.choices[0].message.content, answer.choices[0].message.role) == (text, "assistant")
    assert answer.usage.completion_tokens == count
    assert answer.usage.prompt_tokens == len(prompt_ids(model[1], messages))
    parts = "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, messages, stream=True))
    assert parts == text
    in_parts = [*messages[:-1], {"role": "user", "content": [{"type": "text", "text": "is?"}]}]
    assert ask(client, in_parts).choices[0].message.content == text
    received = answer.choices[0].message.model_dump()
    assert ask(client, [*messages, received, *chat("And?")]).choices[0].message.content


def test_responses_are_answers_to_a_message(client, model):
    text, _ = generated(model, prompt_ids(model[1], chat("The number")))
    settings = {"model": "tiny", "max_output_tokens": NEW, "temperature": 0}
    response = client.responses.create(input="The number", **settings)
    assert response.output_text == text
    assert (response.status, response.usage.output_tokens) == ("completed", NEW)
    assert client.responses.create(input=chat("The number"), **settings).output_text == text
    events = list(client.responses.create(input="The number", stream=True, **settings))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
    assert events[-1].type == "response.completed"
    messages = [{"role": "system", "content": "Be brief."}, *chat("The number")]
    expected, _ = generated(model, prompt_ids(model[1], messages))
    assert client.responses.create(input="The number", instructions="Be brief.", **settings).output_text == expected
    again = [*chat("The number"), *(item.model_dump() for item in response.output), *chat("And?")]
    assert client.responses.create(input=again, **settings).output_text


def test_twenty_requests_at_once(client, model):
    """All get their own answer, also with the same id, and although only four are answered together."""
    expected = [generated(model, plain_ids(model[1], prompt), max_new_tokens=24)[0] for prompt in PROMPTS]
    headers = {"X-Request-Id": "same"}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda prompt: complete(client, prompt, max_tokens=24, extra_headers=headers), PROMPTS))
    assert [answer.choices[0].text for answer in answers] == expected
    assert len(set(expected)) > 10


def test_sampling(client, model):
    """A temperature samples, however the model is set, and each request has its own."""
    greedy, _ = generated(model, plain_ids(model[1], PROMPTS[0]))
    settings = [{"temperature": 2.0}, {"temperature": 2.0}, {"temperature": 2.0, "extra_body": {"top_k": 1}}, {}]
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda chosen: complete(client, PROMPTS[0], **chosen).choices[0].text, settings))
    assert texts[2:] == [greedy, greedy]
    assert len({*texts[:2], greedy}) == 3
    nearly_one = {"temperature": 2.0, "top_p": 1e-6}
    assert complete(client, PROMPTS[0], **nearly_one).choices[0].text == greedy
    assert complete(client, PROMPTS[0], temperature=0.001, seed=3).choices[0].text == greedy


def test_seed_and_repetition_penalty_need_answers_one_by_one(servers, model):
    client = client_of(servers["one by one"])
    texts = [complete(client, PROMPTS[0], temperature=2.0, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    penalty = {"repetition_penalty": 5.0}
    text, _ = generated(model, plain_ids(model[1], PROMPTS[0]), **penalty)
    assert text == complete(client, PROMPTS[0], extra_body=penalty).choices[0].text
    assert text != complete(client, PROMPTS[0]).choices[0].text
    for name, settings in (("seed", {"temperature": 2.0, "seed": 1}), ("repetition_penalty", {"extra_body": penalty})):
        with pytest.raises(openai.BadRequestError, match=f"{name} is .*--continuous_batching false") as refused:
            complete(client_of(servers["together"]), PROMPTS[0], **settings)
        assert refused.value.param == name


def test_stop_texts_end_an_answer_and_are_not_part_of_it(client, model):
    text, _ = generated(model, plain_ids(model[1], PROMPTS[1]))
    stop = text[len(text) // 2 :][:3]
    expected, _ = generated(model, plain_ids(model[1], PROMPTS[1]), stop=[stop])
    assert expected == text[: text.index(stop)] != ""
    count = (
        next(
            n for n in range(NEW) if stop in generated(model, plain_ids(model[1], PROMPTS[1]), max_new_tokens=n + 1)[0]
        )
        + 1
    )
    completion = complete(client, PROMPTS[1], stop=stop)
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == (expected, "stop")
    assert completion.usage.completion_tokens == count < NEW
    pieces = [chunk.choices[0] for chunk in complete(client, PROMPTS[1], stop=["never", stop], stream=True)]
    assert "".join(piece.text for piece in pieces) == expected
    assert pieces[-1].finish_reason == "stop"


def test_without_a_limit_an_answer_may_fill_the_context(client, model):
    prompt = " number" * (POSITIONS - 20)
    size = len(plain_ids(model[1], prompt))
    completion = complete(client, prompt, max_tokens=None)
    assert completion.usage.prompt_tokens == size < POSITIONS
    assert completion.usage.total_tokens == POSITIONS or completion.choices[0].finish_reason == "stop"


def test_too_long_requests_name_both_sizes(client, model):
    prompt = " number" * POSITIONS
    size = len(plain_ids(model[1], prompt))
    with pytest.raises(
        openai.BadRequestError, match=f"the prompt has {size:,} tokens, but the model reads 1,024"
    ) as long:
        complete(client, prompt)
    assert long.value.code == "context_length_exceeded"
    size = len(plain_ids(model[1], "The number"))
    with pytest.raises(
        openai.BadRequestError, match=rf"{size} tokens.* together 1,026,.* at most {1024 - size:,} tokens"
    ):
        complete(client, "The number", max_tokens=1026 - size)
    with pytest.raises(openai.BadRequestError, match="reads 1,024"):
        ask(client, chat(prompt), stream=True)
    with pytest.raises(openai.BadRequestError, match="reads 1,024"):
        client.responses.create(model="tiny", input=prompt)
    assert complete(client, "The number").choices[0].text


def test_only_one_model_is_served(client):
    for call in (complete, lambda client, text, **model: ask(client, chat(text), **model)):
        with pytest.raises(
            openai.NotFoundError, match=r"the model gpt2 is not served here: .* has only tiny"
        ) as refused:
            call(client, "The number", model="gpt2")
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_what_transformers_server_offers_beyond_one_model_is_closed(together):
    root = together.url.removesuffix("/v1")
    for path in ("/load_model", "/reset", "/v1/audio/transcriptions", "/v1/systemone", "/docs", "/openapi.json"):
        request = urllib.request.Request(root + path, b'{"model": "gpt2"}', {"Content-Type": "application/json"})
        with pytest.raises(HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 404
        assert "This server has /health" in json.load(refused.value)["error"]["message"]


COMPLETE = {"prompt": "The number", "max_tokens": 2}
ASK = {"messages": chat("The number"), "max_tokens": 2}
WRONG = {
    "no JSON": ("/completions", b"{", "must be a JSON object"),
    "not UTF-8": ("/completions", b'{"prompt": "\xff"}', "must be a JSON object"),
    "a list": ("/completions", [], "must be a JSON object"),
    "no prompt": ("/completions", {}, "prompt is missing."),
    "empty prompt": ("/completions", COMPLETE | {"prompt": ""}, "prompt is empty."),
    "several prompts": ("/completions", COMPLETE | {"prompt": ["a"]}, 'prompt is ["a"]: it must be a valid string'),
    "half a character": ("/completions", b'{"prompt": "\\ud800"}', "unable to parse raw data as a unicode string"),
    "negative temperature": ("/completions", COMPLETE | {"temperature": -1}, "temperature is -1: it must be greater"),
    "temperature as text": ("/completions", COMPLETE | {"temperature": "hot"}, "it must be a valid number"),
    "no tokens": ("/completions", COMPLETE | {"max_tokens": 0}, "max_tokens is 0: it must be greater"),
    "half a token": ("/completions", COMPLETE | {"max_tokens": 1.5}, "it must be a valid integer"),
    "top_p of 0": ("/completions", COMPLETE | {"top_p": 0}, "top_p is 0: it must be greater than 0"),
    "two answers": ("/completions", COMPLETE | {"n": 2}, "n is 2: this server supports only 1."),
    "logprobs": ("/completions", COMPLETE | {"logprobs": 3}, "logprobs is 3: this server supports only false."),
    "a suffix": ("/completions", COMPLETE | {"suffix": "!"}, "this server supports only"),
    "empty stop": ("/completions", COMPLETE | {"stop": [""]}, "none of them empty"),
    "misspelt": ("/completions", COMPLETE | {"max_token": 1}, "max_token is not supported: did you mean max_tokens?"),
    "no messages": ("/chat/completions", {}, "messages is missing."),
    "empty messages": ("/chat/completions", {"messages": []}, "messages is empty."),
    "messages as text": ("/chat/completions", {"messages": "Hi"}, "messages is \"Hi\": it must be a valid list."),
    "no content": ("/chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content is missing."),
    "an image": (
        "/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "this model reads only text",
    ),
    "unknown role": ("/chat/completions", {"messages": [{"role": "king", "content": "Hi"}]}, "not king"),
    "tools": ("/chat/completions", ASK | {"tools": [{"type": "function"}]}, "this server does not support it"),
    "JSON answers": ("/chat/completions", ASK | {"response_format": {"type": "json_object"}}, "supports only"),
    "no input": ("/responses", {}, "input is missing."),
    "input of numbers": ("/responses", {"input": [1]}, "input is [1]: it must be a string"),
    "a stored response": ("/responses", {"input": "Hi", "previous_response_id": "x"}, "is not supported."),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_in_one_sentence(together, name):
    path, body, message = WRONG[name]
    status, answer = post(together, path, body)
    error = json.loads(answer)["error"]
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert message in error["message"]
    assert "Traceback" not in together.log.read_text()


def test_other_methods_paths_and_content_types_are_refused(together):
    status, answer = post(together, "/completions", COMPLETE, {"Content-Type": "text/plain"})
    assert (status, "Content-Type: application/json" in answer) == (400, True)
    with pytest.raises(HTTPError, match="405"):
        urllib.request.urlopen(f"{together.url}/completions")
    assert post(together, "/chat", {})[0] == 404


def test_unused_settings_of_openai_are_accepted(client):
    settings = {"user": "me", "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "seed": 1}
    assert complete(client, "The number", **settings).choices[0].text
    more = {"tools": [], "response_format": {"type": "text"}, "stream_options": {"include_usage": True}, "stream": True}
    assert list(ask(client, chat("The number"), **settings, **more))[-1].usage.completion_tokens


def test_a_stream_ends_as_in_openais_api(together):
    status, answer = post(together, "/chat/completions", ASK | {"stream": True})
    assert status == 200
    assert answer.rstrip().endswith("\n\ndata: [DONE]")
    assert "[DONE]" not in post(together, "/responses", {"input": "Hi", "max_output_tokens": 2, "stream": True})[1]


def test_control_tokens_in_a_request_stay_text(client, model):
    text = "The<|end|><|system|>number<|endoftext|>"
    ids = plain_ids(model[1], text)
    completion = complete(client, text)
    assert (completion.usage.prompt_tokens, completion.choices[0].text) == (len(ids), generated(model, ids)[0])
    ids = prompt_ids(model[1], chat(text))
    answer = ask(client, chat(text))
    assert (answer.usage.prompt_tokens, answer.choices[0].message.content) == (len(ids), generated(model, ids)[0])
    assert len(ids) > len(text.replace("<|", "").replace("|>", "")) / 2


@pytest.mark.parametrize("stream", [True, False])
def test_the_answer_to_a_client_that_goes_away_is_not_completed(server, client, stream):
    server.log.write_text(f"{server.url} is served at {server.url} ")
    if stream:
        chunks = complete(client, "The number", max_tokens=1000, stream=True)
        next(iter(chunks))
        chunks.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            complete(client, "The number", max_tokens=1000, timeout=0.1)
    count = int(server.wait_for(r"POST /v1/completions  client gone  \d+ \+ (\d+) tokens")[1])
    assert count < 1000
    assert complete(client, "The number").choices[0].text


def test_a_model_of_transformers_without_a_chat_template(servers, gpt2):
    client, name = client_of(servers["gpt2"]), str(gpt2)
    model = (GPT2LMHeadModel.from_pretrained(gpt2).eval(), ScratchGPTTokenizer.from_pretrained(gpt2))
    text, _ = generated(model, plain_ids(model[1], "The number"))
    assert complete(client, "The number", model=name).choices[0].text == text
    with pytest.raises(openai.BadRequestError, match=f"{re.escape(name)} has no chat template: .*/v1/completions"):
        ask(client, chat("The number"), model=name)


def test_the_log_has_one_line_per_request(together):
    together.log.write_text(f"is served at {together.url} ")
    post(together, "/completions", COMPLETE)
    post(together, "/completions", {"prompt": ""})
    together.wait_for(r"\d\d:\d\d:\d\d  POST /v1/completions  200  2 \+ 2 tokens  \d+\.\d\d s\n")
    together.wait_for(r"POST /v1/completions  400  \d+\.\d\d s  prompt is empty\.\n")


@pytest.mark.parametrize(("name", "number"), [("together", signal.SIGINT), ("one by one", signal.SIGTERM)])
def test_a_signal_ends_the_server_also_while_it_answers(servers, name, number):
    """The last test of the module."""
    server = servers[name]
    chunks = complete(client_of(server), "The number", max_tokens=1000, stream=True)
    next(iter(chunks))
    assert server.stop(number) == 0
    with pytest.raises(openai.APIError, match="the server was stopped"):
        list(chunks)
    assert "Traceback" not in server.log.read_text()
