"""Weights of 8 bits: rounded correctly, the same results from both products, and what the commands do with them."""

import json
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.support.tiny import GPT2, assert_same, shake, tiny_ids, tiny_model
from tests.support.tiny_base import save_base
from train import chat, evaluate, generate, serve
from train.model import int8
from train.model.inference import load_for_inference
from train.settings.command import run_command

WIDE = {"hidden_size": 64, "intermediate_size": 96}  # rows that the kernel can read
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = save_base(tmp_path_factory.mktemp("original"), **WIDE)
    shake(AutoModelForCausalLM.from_pretrained(folder)).save_pretrained(folder)
    return folder


def int8_model(**overrides):
    model = tiny_model(**{**WIDE, **overrides})
    int8.quantize_model(model)
    return model


def int8_linear(columns=64, rows=50, bias=True, dtype=torch.float32):
    """A layer, and its rounded weights in float32."""
    linear = nn.Linear(columns, rows, bias=bias).to(dtype)
    layer = int8.Int8Linear(*int8.quantized(linear.weight), linear.bias)
    return layer, layer.weight.float() * layer.scale.float()[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_exact_to_half_a_scale(dtype, monkeypatch):
    monkeypatch.setattr(int8, "ROWS_AT_ONCE", 3)
    weight = torch.randn(11, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(11)[:, None]
    weight = weight.to(dtype)  # its first row is zero
    numbers, scales = int8.quantize_rows(weight)
    assert (numbers.dtype, scales.dtype) == (torch.int8, dtype)
    assert int(numbers[1:].abs().amax(dim=1).min()) == 127
    error = (numbers * scales.float()[:, None] - weight.float()).abs()
    assert (error <= scales.float()[:, None] * (0.501 if dtype == torch.float32 else 0.75)).all()
    assert not error[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_and_many_give_the_same(bias, dtype, monkeypatch):
    layer, weight = int8_linear(bias=bias, dtype=dtype)
    inputs = torch.randn(2, 3, 64).to(dtype)
    expected = nn.functional.linear(inputs.float(), weight, None if layer.bias is None else layer.bias.float())
    for few_rows in (16, 0):
        monkeypatch.setattr(int8, "FEW_ROWS", few_rows)
        output = layer(inputs)
        assert output.dtype == dtype
        assert_same(output.float(), expected, 0.02)
    if dtype == torch.float32:  # without the kernel, nothing but the weights is rounded
        assert_same(output, expected)


@pytest.mark.parametrize("is_bfloat16_fast", [True, False])
def test_many_rows_without_bfloat16_hardware_are_multiplied_in_float32(is_bfloat16_fast, monkeypatch):
    monkeypatch.setattr(int8, "HAS_BFLOAT16", is_bfloat16_fast)
    dtypes = []
    product = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda x, *rest: (dtypes.append(x.dtype), product(x, *rest))[1])
    layer, _ = int8_linear(dtype=torch.bfloat16)
    assert layer(torch.randn(20, 64).bfloat16()).dtype == torch.bfloat16
    assert dtypes == [torch.bfloat16 if is_bfloat16_fast else torch.float32]


def test_the_kernel_gets_no_rows_that_it_would_read_beyond(monkeypatch):
    calls = []
    kernel = int8.Int8Linear._multiply_few
    monkeypatch.setattr(int8.Int8Linear, "_multiply_few", lambda *both: (calls.append(1), kernel(*both))[1])
    for columns, is_used in ((64, True), (48, False), (33, False), (96, True)):
        calls.clear()
        layer, weight = int8_linear(columns, bias=False)
        inputs = torch.randn(5, 1, columns)[::2]
        assert_same(layer(inputs), inputs @ weight.T, 0.02)
        assert bool(calls) == is_used


def test_rows_need_not_be_contiguous():
    """Those of the last positions are not; a change of type would make them so."""
    layer, weight = int8_linear(bias=False, dtype=torch.bfloat16)
    inputs = torch.randn(3, 4, 64).bfloat16()[:, -1:]
    assert_same(layer(inputs).float(), inputs.float() @ weight.T, 0.02)


def rounded(model):
    """A model whose matrices have been rounded, but not changed their type."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed_positions" not in name:
                numbers, scales = int8.quantize_rows(parameter)
                parameter.copy_(numbers * scales[:, None])
    return model


@pytest.mark.parametrize("overrides", [{}, GPT2, {"tie_word_embeddings": False}])
def test_a_model_of_8_bits(overrides, monkeypatch):
    expected, model = rounded(tiny_model(**WIDE, **overrides)), int8_model(**overrides)
    ids = tiny_ids(batch=3)
    with torch.no_grad():
        logits = model(ids).logits
        monkeypatch.setattr(int8, "FEW_ROWS", 0)
        assert_same(model(ids).logits, expected(ids).logits)
    assert_same(logits, expected(ids).logits, 0.1)
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() == 2}
    assert {name for name, matrix in matrices.items() if matrix.dtype != torch.int8} <= {"model.embed_positions.weight"}
    is_tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert is_tied == overrides.get("tie_word_embeddings", True)
    assert not any(parameter.requires_grad for parameter in matrices.values() if parameter.dtype == torch.int8)
    assert model.dtype == torch.float32


def test_every_cache_gives_the_same_tokens():
    model, ids = int8_model(), tiny_ids(batch=2)
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, **GREEDY, cache_implementation="static"), expected)
    assert torch.equal(model.generate(ids, **GREEDY, num_beams=1, use_cache=True, prefill_chunk_size=2), expected)


def test_a_model_of_8_bits_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="quantized with int8 and is not serializable"):
        int8_model().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists() or not list((tmp_path / "model").iterdir())


def test_each_matrix_is_freed_before_the_next(monkeypatch):
    model = tiny_model(**WIDE)
    originals = [weakref.ref(parameter) for parameter in model.parameters() if parameter.dim() == 2]
    alive = []
    quantize_rows = int8.quantize_rows

    def watched(weight):
        alive.append(sum(reference() is not None for reference in originals))
        return quantize_rows(weight)

    monkeypatch.setattr(int8, "quantize_rows", watched)
    int8.quantize_model(model)
    assert alive == list(range(len(originals), 0, -1))


# ----------------------------------------------------------------------------------------------------------------------
# Commands
# ----------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_loaded_in_8_bits(model_dir):
    model, _ = load_for_inference(str(model_dir), dtype="bfloat16", quantization="int8")
    original = AutoModelForCausalLM.from_pretrained(model_dir)
    assert model.lm_head.weight.dtype == torch.int8
    assert model.dtype == torch.bfloat16
    assert not model.training
    bytes_of = lambda some: sum(parameter.numel() * parameter.element_size() for parameter in some.parameters())  # noqa: E731
    assert bytes_of(model) < bytes_of(original) * 0.3


def test_evaluate_and_generate(model_dir, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The a number 1 is red.\n" * 20)
    losses = []
    for options in ([], ["--quantization", "int8"]):
        evaluate.main(["--model", str(model_dir), "--text", str(tmp_path / "text.txt"), *options])
        lines = [line for line in capsys.readouterr().out.splitlines() if "text.txt" in line and line[-1:].isdigit()]
        losses.append(float(lines[0].split()[2]))
    assert 0 < abs(losses[0] - losses[1]) < 0.01 * losses[0]
    generate.main(["--model", str(model_dir), "--prompt", "The", "--max_new_tokens", "3", "--quantization", "int8"])
    assert capsys.readouterr().out.startswith("The")


@pytest.mark.parametrize("command", [chat, serve])
def test_chat_and_serve_pass_the_option_on(command, model_dir, monkeypatch, capsys):
    given = {}

    def load(name, **options):
        given.update(options)
        raise ValueError("seen")

    monkeypatch.setattr(command, "load_for_inference", load)
    options = ["--port", "0"] if command is serve else []
    assert run_command(command.main, ["--model", str(model_dir), "--quantization", "int8", *options]) == 2
    assert "seen" in capsys.readouterr().err
    assert given["quantization"] == "int8"


@pytest.mark.parametrize("command", [generate, evaluate])
def test_weights_that_are_quantized_already_are_refused(command, model_dir, tmp_path, capsys):
    folder = shutil.copytree(model_dir, tmp_path / "nf4")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    (tmp_path / "text.txt").write_text("The a number 1 is red.\n")
    options = ["--text", str(tmp_path / "text.txt")] if command is evaluate else []
    assert run_command(command.main, ["--model", str(folder), "--quantization", "int8", *options]) == 2
    error = capsys.readouterr().err
    assert f"--quantization int8: --model {folder} was quantized with torchao already. Remove it." in error


def test_damaged_weights_are_noticed(model_dir, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    options = ["--model", str(folder), "--prompt", "x", "--quantization", "int8"]
    assert run_command(generate.main, options) == 2
    assert "are not finite" in capsys.readouterr().err
