"""Names of models on a Hub: messages and files have what a user typed, not the place in the cache."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.support.tiny_base import TEXTS, options, write_labels
from train import classify, evaluate, finetune_classifier, prepare_data, pretrain
from train.settings.command import run_command


def publish(hub, name, folder):
    hub.create(name)
    HfApi().upload_folder(repo_id=name, folder_path=str(folder))


def places_of_cache(folder):
    """The names of the files below a folder that name the cache."""
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".md")]
    return [path.name for path in files if constants.HF_HUB_CACHE in path.read_text()]


def test_the_cache_is_named_neither_in_messages_nor_in_a_run(hub, base, tmp_path, capfd):
    publish(hub, "alice/tiny", base)
    text, data = str(tmp_path / "text.txt"), str(tmp_path / "data")
    Path(text).write_text("\n".join(TEXTS * 20))
    line = ["--tokenizer", "alice/tiny", "--text", text, "--output_dir", data, "--block_size", "16"]
    assert run_command(prepare_data.main, line) == 0
    line = options(model="alice/tiny", data_dir=data, output_dir=tmp_path / "run")
    assert run_command(pretrain.main, line) == 0
    assert run_command(evaluate.main, ["--model", "alice/tiny", "--text", text]) == 0
    printed = "".join(capfd.readouterr())
    assert "alice/tiny" in printed
    assert constants.HF_HUB_CACHE not in printed
    assert places_of_cache(tmp_path) == []


@pytest.mark.parametrize("damage", ["no tokenizer", "no end of text", "no weights"])
def test_messages_name_the_model_as_it_was_typed(damage, hub, base, data_dir, tmp_path, capsys):
    folder = shutil.copytree(base, tmp_path / "model")
    if damage == "no end of text":
        backend = AutoTokenizer.from_pretrained(base).backend_tokenizer
        PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>").save_pretrained(folder)
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    else:
        weights = load_file(folder / "model.safetensors")
        weights.popitem()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    publish(hub, "alice/damaged", folder)
    text = ["--text", str(Path(__file__))]
    lines = {evaluate: text, pretrain: ["--data_dir", str(data_dir), "--output_dir", str(tmp_path / "run")]}
    for command, line in lines.items():
        assert run_command(command.main, ["--model", "alice/damaged", *line]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert "--model alice/damaged" in message
        assert constants.HF_HUB_CACHE not in message


def test_an_adapter_is_named_as_it_was_typed(hub, base, tmp_path, capsys):
    """Also if its base model is on the Hub, and has other weights now."""
    publish(hub, "alice/base", base)
    rows = write_labels(tmp_path / "rows.csv")
    line = options(model="alice/base", train_file=rows, output_dir=tmp_path / "run", max_new_tokens=None)
    assert run_command(finetune_classifier.main, [*line, "--trainable", "lora"]) == 0
    publish(hub, "alice/adapter", tmp_path / "run" / "adapter")
    assert run_command(evaluate.main, ["--model", "alice/adapter", "--text", str(rows)]) == 2
    assert "--model alice/adapter is the adapter of a classifier" in capsys.readouterr().err
    line = ["--model", "alice/adapter", "--text", "The a is red."]
    assert run_command(classify.main, line) == 0
    record = tmp_path / "run" / "adapter" / "base_model.json"
    hub.commit("alice/adapter", {record.name: record.read_bytes().replace(b'_sha256": "', b'_sha256": "0')})
    capsys.readouterr()
    assert run_command(classify.main, line) == 2
    message = capsys.readouterr().err
    assert "--model alice/adapter is an adapter for other weights than those in alice/base" in message
    assert constants.HF_HUB_CACHE not in message
