"""How answers are generated: the cache for many at once, sampling, and models that reason."""

import asyncio

import pytest
import torch
from transformers import GenerationConfig

from hf_scratch_gpt import ScratchGPTTokenizer
from tests.support.tiny import tiny_model

pytest.importorskip("fastapi")

from train.serving import cache
from train.serving.answers import Answer, quotable
from train.serving.cache import batching_config
from train.serving.sampling import Settings


@pytest.mark.parametrize(
    ("body", "defaults", "expected"),
    [
        ({}, {}, (0, 0, 1.0, 1.0)),
        ({"temperature": 0.5}, {}, (0.5, 0, 1.0, 1.0)),
        ({"temperature": 0.001}, {}, (0, 0, 1.0, 1.0)),
        ({"top_p": 0.9}, {}, (1.0, 0, 0.9, 1.0)),
        ({}, {"do_sample": True, "temperature": 0.6, "top_k": 20}, (0.6, 20, 1.0, 1.0)),
        ({"temperature": 0}, {"do_sample": True, "temperature": 0.6, "top_k": 20}, (0, 20, 1.0, 1.0)),
        ({"top_k": 5, "repetition_penalty": 2.0}, {"do_sample": True, "temperature": 0.6}, (0.6, 5, 1.0, 2.0)),
        ({}, {"temperature": 0.6, "repetition_penalty": 1.5}, (0, 0, 1.0, 1.5)),
    ],
)
def test_a_request_wins_over_the_generation_config_of_the_model(body, defaults, expected):
    defaults = GenerationConfig(**{"top_k": None} | defaults)
    settings = Settings.of(body, defaults)
    assert (settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty) == expected
    assert settings.generation["do_sample"] == (expected[0] > 0)


def test_the_cache_holds_all_requests_or_as_many_as_fit(monkeypatch):
    model = tiny_model()  # 4 layers, 3 heads for keys and values of size 8, positions 64
    page = 2 * cache.PAGE_SIZE * 4 * 3 * 8 * 4
    config = batching_config(model, max_length=64, max_requests=5)
    assert (config.num_blocks, config.max_requests_per_batch) == (3 * 5, 5)
    monkeypatch.setattr(cache, "memory_bytes", lambda: 4 * 7 * page + 3)
    assert batching_config(model, max_length=64, max_requests=5).num_blocks == 7
    monkeypatch.setattr(cache, "memory_bytes", lambda: 4 * 3 * page - 1)
    with pytest.raises(ValueError, match="lower --max_length"):
        batching_config(model, max_length=64, max_requests=5)


class Reasoning:
    """A parser that takes what comes before "!" as reasoning."""

    initial_events = ()

    def __init__(self):
        self.text = ""

    def feed(self, text):
        field = "content" if "!" in self.text else "thinking"
        self.text += text
        return [{"type": "region_chunk", "field": field, "text": text}]

    def finalize(self):
        return None, [{"type": "region_chunk", "field": "content", "text": "."}]


def test_a_parser_of_transformers_sees_special_tokens_and_splits_the_answer(base):
    tokenizer = ScratchGPTTokenizer.from_pretrained(base)

    async def generate():
        answer = Answer(tokenizer, Settings(None, (), 0, 0, 1.0, 1.0, None), 1, Reasoning())
        for token in [0, *tokenizer("Hm!<|end|>")["input_ids"]]:
            answer.put(torch.tensor([token]))
        answer.finish()
        answer.finish(error="only the first counts")
        await asyncio.sleep(0)
        return [answer.queue.get_nowait() for _ in range(answer.queue.qsize())]

    *items, end = asyncio.run(generate())
    assert end is None
    reasoning = [str(item) for item in items if type(item).__name__ == "ReasoningText"]
    assert "".join(reasoning).startswith("Hm")
    assert "".join(item for item in items) == "Hm!<|end|>."
    assert items[-2:] == ["<|end|>", "."]


def test_an_error_can_be_quoted(base):
    assert quotable('a "b"\n \\c') == "a 'b' /c"
