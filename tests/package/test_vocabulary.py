"""A tokenizer built from a vocabulary and merges instead of a file."""

import json

import pytest

from hf_scratch_gpt.tokenization_scratch_gpt import SPECIAL_TOKENS, ScratchGPTTokenizer

TEXTS = [
    "def add(first, second):\n        return first + second  # 12345 + 67890\n",
    "The quick brown fox doesn't jump over the lazy dog's 2 tails, does it?\r\n\r\n",
    "while True:\n\tprint('naïve café — 你好, 世界 😀')\n" * 3,
]


@pytest.fixture(scope="module")
def tokenizer():
    return ScratchGPTTokenizer.train_from_texts(TEXTS * 2, 320, show_progress=False)


def parts(tokenizer):
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return tokenizer.get_vocab(), [tuple(merge) for merge in merges]


@pytest.mark.parametrize("form", ["tuples", "lines", "files"])
def test_a_tokenizer_built_from_its_parts_is_the_same(tokenizer, tmp_path, form):
    vocab, merges = parts(tokenizer)
    if form != "tuples":
        merges = [" ".join(merge) for merge in merges]
    if form == "files":
        (tmp_path / "vocab.json").write_text(json.dumps(vocab))
        (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        vocab, merges = str(tmp_path / "vocab.json"), tmp_path / "merges.txt"
    built = ScratchGPTTokenizer(vocab=vocab, merges=merges, model_max_length=1024)
    for text in (*TEXTS, "<|user|>hi<|end|>"):
        assert built.encode(text) == tokenizer.encode(text)
        assert built.decode(built.encode(text)) == text
    for name, folder in ((built, tmp_path / "built"), (tokenizer, tmp_path / "trained")):
        name.save_pretrained(folder)
    for path in (tmp_path / "trained").iterdir():
        assert json_or_text(tmp_path / "built" / path.name) == json_or_text(path)


def json_or_text(path):
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()


def test_special_tokens_that_a_vocabulary_lacks_are_appended(tokenizer):
    vocab, merges = parts(tokenizer)
    plain = [token for token in sorted(vocab, key=vocab.get) if token not in SPECIAL_TOKENS]
    built = ScratchGPTTokenizer(vocab={token: number for number, token in enumerate(plain)}, merges=merges)
    assert built.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(plain), len(plain) + 6))
    assert built.all_special_tokens == tokenizer.all_special_tokens
    assert built.decode(built.encode(TEXTS[2])) == TEXTS[2]


def test_parts_that_do_not_fit_are_refused(tokenizer):
    vocab, merges = parts(tokenizer)
    with pytest.raises(ValueError, match="vocab requires merges"):
        ScratchGPTTokenizer(vocab=vocab)
    with pytest.raises(ValueError, match=r"vocab lacks 1 tokens of .* and the merges: \['zq'\]"):
        ScratchGPTTokenizer(vocab=vocab, merges=[*merges, ("z", "q")])
    with pytest.raises(ValueError, match=r"vocab lacks 1 tokens of the 256 bytes .*: \['!'\]"):
        ScratchGPTTokenizer(vocab={token: number for token, number in vocab.items() if token != "!"}, merges=[])
