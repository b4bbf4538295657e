"""Every command refuses a model of another kind and a folder without all of its weights, and says which are missing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from hf_scratch_gpt import ScratchGPTForSequenceClassification
from tests.support.tiny_base import options, save_base, write_conversations, write_labels
from train import chat, classify, evaluate, finetune, finetune_classifier, generate, publish
from train.model import load
from train.settings.command import run_command


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows and texts for the commands."""
    folder = tmp_path_factory.mktemp("files")
    write_labels(folder / "labels.csv")
    write_conversations(folder / "rows.jsonl")
    (folder / "text.txt").write_text("The a number 1 is red.\n" * 20)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, base):
    """A classifier whose language model had an output matrix of its own."""
    folder = tmp_path_factory.mktemp("classifier")
    untied = save_base(folder / "base", tie_word_embeddings=False)
    shutil.copytree(untied, folder / "model")
    names = dict(enumerate(["red", "green", "blue"]))
    model = ScratchGPTForSequenceClassification.from_pretrained(untied, num_labels=3, id2label=names)
    model.save_pretrained(folder / "model")
    return folder / "model"


def lines_of(model, files, tmp_path):
    """A command line for each command that loads a language model."""
    run = str(tmp_path / "run")
    return {
        generate: ["--model", str(model), "--prompt", "The"],
        chat: ["--model", str(model)],
        evaluate: ["--model", str(model), "--text", str(files / "text.txt")],
        finetune: options(model=model, train_file=files / "rows.jsonl", output_dir=run),
    }


def line_of_classifier(model, files, tmp_path):
    return options(model=model, train_file=files / "labels.csv", output_dir=str(tmp_path / "run"))


def refusal(command, line, capsys):
    """The error of a command that must not start."""
    capsys.readouterr()
    assert run_command(command.main, line) == 2
    return capsys.readouterr().err


def without(model, folder, *names):
    """A copy of a model folder that lacks some weights."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name not in names}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_missing_weights_are_named_by_every_command(base, files, tmp_path, capsys, name):
    folder = without(base, tmp_path / "model", name)
    lines = lines_of(folder, files, tmp_path) | {finetune_classifier: line_of_classifier(folder, files, tmp_path)}
    for command, line in lines.items():
        assert f" lacks 1 weight ({name})" in refusal(command, line, capsys), command.__name__
    line = ["--folder_path", str(folder), "--repo_id", "a/b", "--dry_run"]
    assert name in refusal(publish, line, capsys)
    assert not (tmp_path / "run").exists()


def test_at_most_five_names_are_listed(base, files, tmp_path, capsys):
    names = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in range(2) for part in ("up", "down", "gate")]
    folder = without(base, tmp_path / "model", *names)
    message = refusal(generate, ["--model", str(folder)], capsys)
    assert " lacks 6 weights (" in message
    assert sum(name in message for name in names) == 5
    assert ", ... (6 in all))" in message


def test_a_classifier_is_no_language_model(classifier, files, tmp_path, capsys):
    for command, line in lines_of(classifier, files, tmp_path).items():
        message = refusal(command, line, capsys)
        assert "is a classifier (ScratchGPTForSequenceClassification), not a language model" in message
        assert f"scratch-gpt classify --model {classifier}" in message


def test_a_language_model_is_no_classifier(base, capsys):
    message = refusal(classify, ["--model", str(base), "--text", "x"], capsys)
    assert "is a language model (ScratchGPTForCausalLM), not a classifier" in message
    assert f"scratch-gpt finetune_classifier --model {base}" in message


def test_an_encoder_is_no_language_model(base, files, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=300, **sizes)).save_pretrained(folder)
    for command, line in lines_of(folder, files, tmp_path).items():
        assert "is not a language model: BertForMaskedLM is another kind of model" in refusal(command, line, capsys)


def test_a_classifier_without_its_head_is_refused(classifier, files, tmp_path, capsys):
    folder = without(classifier, tmp_path / "model", "score.weight")
    assert " lacks 1 weight (score.weight)" in refusal(classify, ["--model", str(folder), "--text", "x"], capsys)
    line = line_of_classifier(folder, files, tmp_path)
    assert " lacks 1 weight (score.weight)" in refusal(finetune_classifier, line, capsys)


def test_a_config_of_another_size_is_refused(base, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1, "layer_types": None}))
    message = refusal(generate, ["--model", str(folder), "--prompt", "x"], capsys)
    assert "its config.json has no place for " in message
    assert "(model.layers.1." in message
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    message = refusal(generate, ["--model", str(folder), "--prompt", "x"], capsys)
    assert "of another size than its config says, such as model.layers.0.mlp.down_proj.weight" in message
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": "many"}))
    assert "its config.json is not valid (" in refusal(generate, ["--model", str(folder), "--prompt", "x"], capsys)


@pytest.mark.parametrize("keep", [0, 5, 100, -10])
def test_a_damaged_file_is_named(base, files, tmp_path, capsys, keep):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:keep])
    lines = lines_of(folder, files, tmp_path) | {finetune_classifier: line_of_classifier(folder, files, tmp_path)}
    for command, line in lines.items():
        assert "model.safetensors is damaged (" in refusal(command, line, capsys)


def test_a_file_that_the_index_lists_must_be_there(base, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = list(load_file(folder / "model-00001-of-00002.safetensors"))
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {
        names[0]: "model-00002-of-00002.safetensors"
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    message = refusal(generate, ["--model", str(folder), "--prompt", "x"], capsys)
    assert "model-00002-of-00002.safetensors is missing" in message


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(base, monkeypatch, capsys):
    monkeypatch.setattr(load, "memory_bytes", lambda: 1000)
    message = refusal(generate, ["--model", str(base), "--prompt", "x"], capsys)
    assert "GB of memory for its weights, but this machine has 0.0 GB: choose a smaller model" in message


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried ...\nmore")])
def test_a_full_memory_is_one_sentence(base, monkeypatch, capsys, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("train.model.load.AutoModelForCausalLM.from_pretrained", refuse)
    message = refusal(generate, ["--model", str(base), "--prompt", "x"], capsys)
    assert message == f"error: --model {base} does not fit into memory: choose a smaller model.\n"


def test_a_tokenizer_of_another_model_is_refused(base, files, tmp_path, capsys):
    other = tmp_path / "other"
    save_base(other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[100:102]  # of the same size: two tokens have changed places
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(content))
    line = options(model=base, tokenizer=other, train_file=files / "rows.jsonl", output_dir=str(tmp_path / "run"))
    message = refusal(finetune, line, capsys)
    assert f"--tokenizer {other}: 2 of the " in message
    assert "it is another model's tokenizer" in message


def test_a_folder_without_tokenizer_and_a_damaged_tokenizer(base, files, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "tokenizer.json").write_text("{")
    for command, line in lines_of(folder, files, tmp_path).items():
        assert "its tokenizer cannot be loaded (" in refusal(command, line, capsys)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    for command, line in lines_of(folder, files, tmp_path).items():
        remedy = "give its folder with --tokenizer" if command is finetune else "copy tokenizer.json"
        assert f"has no tokenizer: {remedy}" in refusal(command, line, capsys)
