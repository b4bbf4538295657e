"""The chat template: what it renders, and what it refuses instead of ignoring it."""

import numpy as np
import pytest
from jinja2 import TemplateError

from hf_scratch_gpt.tokenization_scratch_gpt import ScratchGPTTokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "\nHello!"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return ScratchGPTTokenizer.train_from_texts(["Hi. Hello! Be brief. " * 5], 270, show_progress=False)


def test_chat_template_and_assistant_mask(tokenizer):
    text = "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>\nHello!<|end|>"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == text
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    answer = np.array(encoded["input_ids"])[np.array(encoded["assistant_masks"], bool)]
    assert tokenizer.decode(answer) == "\nHello!<|end|>"
    prompt = tokenizer.apply_chat_template(CHAT[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encoded["input_ids"][: len(prompt)] == prompt


def test_chat_template_forces_no_system_prompt_and_refuses_unknown_roles(tokenizer):
    assert tokenizer.apply_chat_template(CHAT[1:2], tokenize=False) == "<|user|>Hi<|end|>"
    called = [{"type": "function", "function": {"name": "add", "arguments": {}}}]
    for message in (
        {"role": "tool", "content": "x"},
        {"role": "user", "content": None},
        {"role": "assistant", "content": "", "tool_calls": called},
    ):
        with pytest.raises(TemplateError, match="must be"):
            tokenizer.apply_chat_template([message], tokenize=False)


@pytest.mark.parametrize("ignored", [{"tools": [{"type": "function"}]}, {"documents": [{"title": "a", "text": "b"}]}])
def test_chat_template_refuses_what_it_would_ignore(tokenizer, ignored):
    with pytest.raises(TemplateError, match="supports no tools or documents"):
        tokenizer.apply_chat_template(CHAT, tokenize=False, **ignored)
    assert tokenizer.apply_chat_template(CHAT[1:2], tokenize=False, tools=[]) == "<|user|>Hi<|end|>"


def test_chat_template_renders_the_pairs_of_rerankers(tokenizer):
    """`CrossEncoder` of sentence-transformers turns each pair into these two messages."""
    pair = [{"role": "query", "content": "cat?"}, {"role": "document", "content": "A cat."}]
    assert tokenizer.apply_chat_template(pair, tokenize=False) == "<|user|>cat?<|end|><|user|>A cat.<|end|>"
