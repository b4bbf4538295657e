"""`scratch-gpt convert --to gguf`."""

import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_scratch_gpt.conversion.gguf_tokenizer import UNICODE_NOTE
from tests.support.tiny_gguf import SHAPES, english_tokenizer, save_model
from train.convert import main

gguf = pytest.importorskip("gguf")


def convert(model, folder, *options):
    main(["--model", str(model), "--to", "gguf", "--output_dir", str(folder), *options])


def test_the_file_and_its_modelfile(tmp_path, capsys):
    save_model(tmp_path / "mine" / "model")
    convert(tmp_path / "mine" / "model", tmp_path / "output", "--dtype", "q8_0")
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["Modelfile", "mine-q8_0.gguf"]
    assert (tmp_path / "output" / "Modelfile").read_text().startswith("FROM ./mine-q8_0.gguf\nTEMPLATE")
    assert gguf.GGUFReader(tmp_path / "output" / "mine-q8_0.gguf").fields["general.name"].contents() == "mine"
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'output'}\n"
    assert f"note: in llama.cpp, {UNICODE_NOTE}" in printed.err.splitlines()


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")])
def test_weights_stay_as_they_are(dtype, name, tmp_path):
    model, _ = save_model(tmp_path / "mine")
    model.to(dtype).save_pretrained(tmp_path / "mine")
    convert(tmp_path / "mine", tmp_path / "output")
    assert (tmp_path / "output" / f"mine-{name}.gguf").exists()


def test_a_model_of_another_family_is_imported_first(tmp_path):
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32, vocab_size=2000, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "mine")
    english_tokenizer().save_pretrained(tmp_path / "mine")
    convert(tmp_path / "mine", tmp_path / "output", "--dtype", "float16")
    reader = gguf.GGUFReader(tmp_path / "output" / "mine-f16.gguf")
    assert reader.fields["general.architecture"].contents() == "gpt2"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_shard_size", "1GB"], r"--max_shard_size \(1GB\) has no effect with --to gguf: remove it"),
        (["--to", "llama", "--dtype", "q8_0"], "--dtype q8_0 cannot be used with --to llama; allowed: float32"),
        (["--dtype", "q4_0"], "--dtype takes float32 or float16 or bfloat16 or q8_0, not 'q4_0'"),
    ],
)
def test_options_that_do_not_fit(options, message, tmp_path):
    save_model(tmp_path / "mine")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "mine", tmp_path / "output", *options)
    assert not (tmp_path / "output").exists()


def test_what_llama_cpp_cannot_compute(tmp_path):
    save_model(tmp_path / "mine", **SHAPES["qwen3"], mlp_type="relu2")
    with pytest.raises(ValueError, match=r"--model .*mine: llama.cpp cannot compute this model. As qwen3: mlp_type is"):
        convert(tmp_path / "mine", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_the_package_is_missing(tmp_path, monkeypatch):
    save_model(tmp_path / "mine")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r'^gguf is not installed: pip install "hf_scratch_gpt\[gguf\]"'):
        convert(tmp_path / "mine", tmp_path / "output")
    assert not (tmp_path / "output").exists()
