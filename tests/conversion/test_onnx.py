"""ONNX: the graph computes what the model computes, for any batch, length, padding and cache."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_scratch_gpt import ScratchGPTForSequenceClassification, ScratchGPTForTokenClassification
from hf_scratch_gpt.conversion import onnx as our_onnx
from hf_scratch_gpt.conversion.onnx import export_onnx
from tests.support.tiny import GPT2, tiny_ids, tiny_model
from train import convert

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx" / "generate.py"
LAYERS = {"num_hidden_layers": 2}
ROPE = {"rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 16}
SHAPES = {
    "gpt2": GPT2 | LAYERS,
    "sinusoidal": {
        **{"position_embedding_type": "sinusoidal", "mlp_type": "relu2", "final_logit_softcapping": 2.0},
        **{"tie_word_embeddings": False, "num_hidden_layers": 1},
    },
    "sliding": {
        **{"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
        **{"rope_parameters": ROPE | {"rope_type": "yarn"}},
    }
    | LAYERS,
}


def session_of(folder):
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def empty_cache(session, batch):
    inputs = [value for value in session.get_inputs() if value.name.startswith("past")]
    return {value.name: np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32) for value in inputs}


def greedy(session, ids, mask, num_tokens):
    """Greedy continuations of several texts at once, padded on the left; both (batch, seq)."""
    names = [value.name for value in session.get_outputs()]
    past, new = empty_cache(session, len(ids)), []
    for _ in range(num_tokens):
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        outputs = dict(zip(names, session.run(names, inputs | past), strict=True))
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        ids = outputs["logits"][:, -1].argmax(axis=-1)[:, None]
        mask = np.pad(mask, [(0, 0), (0, 1)], constant_values=1)
        new.append(ids)
    return np.concatenate(new, axis=1)


@pytest.fixture(scope="module")
def converted(base, tmp_path_factory):
    """What `scratch-gpt convert` writes for the model of `base`."""
    folder = tmp_path_factory.mktemp("converted") / "onnx"
    convert.main(["--model", str(base), "--to", "onnx", "--output_dir", str(folder)])
    return folder


def test_the_command_writes_a_folder_that_needs_no_code_of_ours(base, converted):
    files = {path.name for path in converted.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert files == {"model.onnx", "model.onnx.data", "config.json", "generation_config.json", *tokenizer}
    for name in tokenizer:
        assert (converted / name).read_bytes() == (base / name).read_bytes()
    config = json.loads((converted / "config.json").read_text())
    assert (config["model_type"], config["dtype"], "auto_map" in config) == ("scratch_gpt", "float32", False)
    graph = (converted / "model.onnx").read_bytes()
    assert b".py" not in graph  # paths of this machine
    values = {value.name: (value.type, value.shape) for value in session_of(converted).get_inputs()}
    assert values["input_ids"] == ("tensor(int64)", ["batch", "seq"])
    assert values["attention_mask"] == ("tensor(int64)", ["batch", "past + seq"])
    assert values["past_key_values.1.value"] == ("tensor(float)", ["batch", 2, "past", 8])


def test_32_greedy_tokens_are_identical_with_padding_and_cache(base, converted):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    prompts = ["The a", "The number is blue. The c number 7", "red"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    assert (inputs.attention_mask == 0).any()
    expected = model.generate(**inputs, max_new_tokens=32, min_new_tokens=32, do_sample=False)
    actual = greedy(session_of(converted), inputs.input_ids.numpy(), inputs.attention_mask.numpy(), 32)
    expected = expected[:, inputs.input_ids.shape[1] :]
    assert torch.equal(torch.from_numpy(actual), expected)
    assert len(expected.unique()) > 1


def test_a_graph_reads_a_text_at_once_or_in_parts(base, converted):
    model, session = AutoModelForCausalLM.from_pretrained(base), session_of(converted)
    ids = torch.randint(2, model.config.vocab_size, (2, 64))
    with torch.no_grad():
        expected = model(ids).logits.numpy()
    past, start = empty_cache(session, 2), 0
    for end in (1, 20, 21, 64):
        mask, positions = np.ones((2, end), np.int64), np.tile(np.arange(start, end), (2, 1))
        inputs = {"input_ids": ids[:, start:end].numpy(), "attention_mask": mask, "position_ids": positions}
        logits, *present = session.run(None, inputs | past)
        assert np.abs(logits - expected[:, start:end]).max() < 1e-5
        past, start = dict(zip(past, present, strict=True)), end


def test_the_example_runs_without_torch_and_transformers(base, converted, monkeypatch, capsys):
    """It prints what `generate` of transformers gives."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    inputs = tokenizer("The b number", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(converted), "The b number", "--max_new_tokens=20"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out == tokenizer.decode(expected, skip_special_tokens=True) + "\n"
    imports = (
        f"import runpy, sys; runpy.run_path({str(EXAMPLE)!r}); print({{'torch', 'transformers'}} & {{*sys.modules}})"
    )
    process = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape, tmp_path):
    model = tiny_model(**SHAPES[shape])
    assert export_onnx(model, tmp_path) < 1e-5
    ids = tiny_ids(3, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=32, min_new_tokens=32, do_sample=False)
    session = session_of(tmp_path)
    names = {value.name for value in session.get_inputs()}
    assert {"input_ids", "attention_mask", "position_ids"} <= names
    assert np.array_equal(greedy(session, ids.numpy(), mask.numpy(), 32), expected[:, 9:].numpy())


@pytest.mark.slow
def test_a_classifier(tmp_path):
    model = tiny_model(ScratchGPTForSequenceClassification, num_labels=5, **LAYERS)
    model.config.dtype = torch.bfloat16
    model.bfloat16().train()  # the graph is float32
    assert export_onnx(model, tmp_path) < 1e-5
    assert model.training
    assert model.dtype == torch.bfloat16
    ids = torch.nn.functional.pad(tiny_ids(4, 7), (0, 3))  # pad_token_id is 0
    (logits,) = session_of(tmp_path).run(None, {"input_ids": ids.numpy(), "attention_mask": (ids != 0).long().numpy()})
    with torch.no_grad():
        expected = model.float().eval()(ids, attention_mask=(ids != 0).long()).logits.numpy()
    assert logits.shape == (4, 5)
    assert np.abs(logits - expected).max() < 1e-5
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


# ----------------------------------------------------------------------------------------------------------------------
# Refusals
# ----------------------------------------------------------------------------------------------------------------------

DYNAMIC = {"rope_parameters": ROPE | {"rope_type": "dynamic"}}


@pytest.mark.parametrize(
    ("model_class", "changes", "message"),
    [
        ({}, DYNAMIC, "rope_type'] is 'dynamic', whose frequencies change with the length of the text"),
        ({"model_class": ScratchGPTForTokenClassification}, {}, "a ScratchGPTForTokenClassification cannot be"),
        ({"model_class": ScratchGPTForSequenceClassification}, {"pad_token_id": None}, "without pad_token_id"),
    ],
)
def test_models_without_a_graph(model_class, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        export_onnx(tiny_model(**model_class, **changes), tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_differs_is_not_written(base, converted, tmp_path, monkeypatch):
    def write_another(graph, path):
        for name in ("model.onnx", "model.onnx.data"):
            shutil.copy(converted / name, path.with_name(name))

    monkeypatch.setattr(our_onnx, "write_graph", write_another)
    model = AutoModelForCausalLM.from_pretrained(base)
    assert export_onnx(model, tmp_path / "same") < 1e-5
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    with pytest.raises(ValueError, match=r"ONNX Runtime computes other logits than the model: they differ by 0\.0"):
        export_onnx(model, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_library(missing, base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ValueError, match=rf'needs {missing}, which is not installed: pip install "hf_scratch_gpt\[onnx'
    ):
        convert.main(["--model", str(base), "--to", "onnx", "--output_dir", str(tmp_path / "onnx")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("dtype", "float16", "--dtype float16 cannot be used with --to onnx; allowed: float32"),
        ("max_shard_size", "1GB", "--max_shard_size .1GB. has no effect with --to onnx: remove it"),
    ],
)
def test_options_without_effect(option, value, message, base, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert.main(["--model", str(base), "--to=onnx", f"--output_dir={tmp_path}/onnx", f"--{option}={value}"])
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_output_folder_is_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        export_onnx(tiny_model(num_hidden_layers=1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
