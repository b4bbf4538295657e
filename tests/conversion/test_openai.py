"""OpenAI's own files of GPT-2: `openai_gpt2/` was written by TensorFlow 2 with the names of https://github.com/openai/gpt-2.

Value k of the tensor `name`, before it is shaped, is sin(k + crc32(name) % 1000).
"""

import json
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hf_scratch_gpt.conversion import import_model
from hf_scratch_gpt.conversion.openai import OpenAICheckpoint

FOLDER = Path(__file__).with_name("openai_gpt2")


def value(name, *shape):
    start = zlib.crc32(name.encode()) % 1000
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(start, start + count, dtype=torch.float64)).float().reshape(shape)


def as_gpt2():
    """The same weights in transformers' class."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=6, n_embd=8, n_head=2, n_layer=2)).eval()
    names = {"weight": "w", "bias": "b"}
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            parts = name.split(".")
            if parts[0] == "h":
                parts[:2] = [f"h{parts[1]}"]
            last = parts.pop()
            if parts[-1].startswith("ln"):
                parts.append("g" if last == "weight" else "b")
            elif parts[-1] not in ("wte", "wpe"):
                parts.append(names[last])
            parameter.copy_(value("/".join(["model", *parts]), *parameter.shape))
    return model


def test_the_tensors_of_a_checkpoint():
    checkpoint = OpenAICheckpoint(FOLDER)
    assert len(checkpoint.shapes) == 2 * 12 + 4
    for name, shape in checkpoint.shapes.items():
        torch.testing.assert_close(checkpoint.read(name), value(name, *shape), atol=1e-6, rtol=0)
    assert checkpoint.shapes["model/h1/attn/c_attn/w"] == (8, 24)  # stored as (1, 8, 24)


def test_the_model_gives_the_logits_of_the_same_weights_in_gpt2(tmp_path):
    import_model(FOLDER, tmp_path / "ours")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = torch.tensor([[1, 5, 2, 8, 0, 10]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, as_gpt2()(ids).logits, atol=1e-5, rtol=1e-5)
    assert ours.config.eos_token_id == 10


def test_the_tokenizer_comes_from_openais_files(tmp_path):
    source = shutil.copytree(FOLDER, tmp_path / "source")
    signs = [*"abcdefg", "Ġ", "ab", "abc", "<|endoftext|>"]
    (source / "encoder.json").write_text(json.dumps({sign: number for number, sign in enumerate(signs)}))
    (source / "vocab.bpe").write_text("#version: 0.2\na b\nab c\n")
    import_model(source, tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer("abc dab")["input_ids"] == [9, 7, 3, 8]
    assert tokenizer.eos_token_id == 10


def damaged(tmp_path, name, content):
    source = shutil.copytree(FOLDER, tmp_path / "source")
    if content is None:
        (source / name).unlink()
    else:
        (source / name).write_bytes(content((source / name).read_bytes()))
    return source


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("hparams.json", lambda data: b'{"n_vocab": 11}', "hparams.json is damaged"),
        ("model.ckpt.index", lambda data: data[:-20], "not that of a TensorFlow checkpoint"),
        ("model.ckpt.index", lambda data: b"\xff" * 40 + data[40:], "model.ckpt.index is damaged"),
        ("model.ckpt.data-00000-of-00001", lambda data: data[:-4], "it has 7,580 bytes instead of 7,584"),
        ("model.ckpt.data-00000-of-00001", None, "data-00000-of-00001 is missing"),
        ("hparams.json", lambda data: data.replace(b'"n_layer": 2', b'"n_layer": 3'), r"missing: model/h2/ln_1/g, "),
    ],
)
def test_damaged_files(name, content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        import_model(damaged(tmp_path, name, content), tmp_path / "ours")
