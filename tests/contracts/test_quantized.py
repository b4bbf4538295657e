"""Quantized models: transformers' own quantizers on our classes, on a CPU, and what the commands do with the result."""

import json
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from tests.support.tiny_base import options, save_base, write_conversations, write_labels
from train import chat, convert, evaluate, finetune, finetune_classifier, generate, publish
from train.model.load import QUANTIZERS
from train.settings.command import run_command

# all are about the libraries' own code
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SHAPE = {"hidden_size": 64, "intermediate_size": 96}  # quantizers work on blocks of at least 64 numbers


def int8_weights():
    return TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())


def int8_dynamic():
    return TorchAoConfig(pytest.importorskip("torchao.quantization").Int8DynamicActivationInt8WeightConfig())


# config; the largest difference of a logit; whether it can be saved
METHODS = {
    "bitsandbytes int8": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True), 0.02, True),
    "bitsandbytes nf4": (
        "bitsandbytes",
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        0.2,
        True,
    ),
    "torchao int8": ("torchao", int8_weights, 0.02, True),
    "torchao int8 dynamic": ("torchao", int8_dynamic, 0.05, True),
    "quanto int8": ("optimum.quanto", lambda: QuantoConfig(weights="int8"), 0.02, False),
    "quanto int4": ("optimum.quanto", lambda: QuantoConfig(weights="int4"), 0.4, False),
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("original"), **SHAPE)


@pytest.fixture(scope="module")
def quantized_dir(model_dir, tmp_path_factory):
    """What save_pretrained writes for a model in nf4."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("quantized") / "nf4"
    _, config, _, _ = METHODS["bitsandbytes nf4"]
    AutoModelForCausalLM.from_pretrained(model_dir, quantization_config=config()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_quantized_model(method, model_dir, tmp_path):
    library, config, tolerance, can_be_saved = METHODS[method]
    pytest.importorskip(library)
    original = AutoModelForCausalLM.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, quantization_config=config())
    ids = torch.randint(2, original.config.vocab_size, (3, 20))
    with torch.no_grad():
        expected, logits = original(ids).logits, model(ids).logits
    difference = (logits - expected).abs().max() / expected.abs().max()
    assert 0 < difference < tolerance
    is_plain = lambda weight: type(weight) is torch.nn.Parameter and weight.dtype == torch.float32  # noqa: E731
    assert not any(is_plain(layer.mlp.up_proj.weight) for layer in model.model.layers)
    assert not any(is_plain(layer.self_attn.o_proj.weight) for layer in model.model.layers)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, original.lm_head.weight)
    assert torch.equal(model.model.norm.weight, original.model.norm.weight)

    plain = model(ids, labels=ids).loss
    assert torch.allclose(model(ids, labels=ids, skip_logits=True).loss, plain, atol=1e-5)
    texts = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(texts, model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))
    if can_be_saved:
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        with torch.no_grad():
            assert torch.equal(loaded(ids).logits, logits)


def test_skip_logits_refuses_a_quantized_head(tmp_path):
    """It would read the packed weights of the head."""
    pytest.importorskip("bitsandbytes")
    save_base(tmp_path, tie_word_embeddings=False, **SHAPE)
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["none"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    ids = torch.randint(2, model.config.vocab_size, (2, 8))
    assert model(ids, labels=ids).loss.isfinite()
    with pytest.raises(ValueError, match=r"lm_head to be a plain nn.Linear, but it is a Linear8bitLt"):
        model(ids, labels=ids, skip_logits=True)


# ----------------------------------------------------------------------------------------------------------------------
# Commands
# ----------------------------------------------------------------------------------------------------------------------


def test_evaluate_and_generate_read_a_quantized_folder(model_dir, quantized_dir, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The a number 1 is red.\n" * 20)
    losses = []
    for folder in (model_dir, quantized_dir):
        evaluate.main(["--model", str(folder), "--text", str(tmp_path / "text.txt")])
        line = next(
            line
            for line in capsys.readouterr().out.splitlines()
            if line.endswith(tuple("0123456789")) and "text.txt" in line
        )
        losses.append(float(line.split()[2]))
    assert 0 < abs(losses[0] - losses[1]) < 0.1
    generate.main(["--model", str(quantized_dir), "--prompt", "The", "--max_new_tokens", "3"])
    assert capsys.readouterr().out.startswith("The")


def test_commands_that_need_the_original_weights(quantized_dir, tmp_path, capsys):
    write_labels(tmp_path / "labels.csv")
    write_conversations(tmp_path / "rows.jsonl")
    run = str(tmp_path / "run")
    lines = {
        finetune: ("fine-tuned", options(model=quantized_dir, train_file=tmp_path / "rows.jsonl", output_dir=run)),
        finetune_classifier: (
            "fine-tuned",
            options(model=quantized_dir, train_file=tmp_path / "labels.csv", output_dir=run),
        ),
        convert: ("converted", ["--model", str(quantized_dir), "--to", "llama", "--output_dir", run]),
        publish: ("published", ["--folder_path", str(quantized_dir), "--repo_id", "alice/tiny", "--dry_run"]),
    }
    for command, (use, line) in lines.items():
        assert run_command(command.main, line) == 2, command.__name__
        message = (
            f"{quantized_dir} was quantized with bitsandbytes and cannot be {use}: give the model it was made from."
        )
        assert capsys.readouterr().err.strip().endswith(message), command.__name__
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("library", QUANTIZERS)
def test_a_missing_library(library, model_dir, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(model_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": library}}))
    monkeypatch.setitem(sys.modules, library, None)
    for command, line in {generate: ["--prompt", "The"], chat: [], evaluate: ["--text", __file__]}.items():
        assert run_command(command.main, ["--model", str(folder), *line]) == 2
        message = f"--model {folder} was quantized with {library}, which is not installed: pip install {library}"
        assert message in capsys.readouterr().err
