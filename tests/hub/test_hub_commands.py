"""Commands with models on a local Hub: by name and revision, adapters with their base, code that never runs."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.support.tiny_base import options, write_conversations, write_labels
from train import chat, evaluate, finetune, finetune_classifier, generate, prepare_data
from train.model.find import find_model, find_tokenizer
from train.settings.command import run_command

# PEFT asks by a name that transformers 5.23 gave up
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ALIEN = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class AlienConfig(PreTrainedConfig):
    model_type = "alien"
class AlienModel(PreTrainedModel):
    config_class = AlienConfig
class AlienTokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {
    "AutoConfig": "alien.AlienConfig",
    "AutoModel": "alien.AlienModel",
    "AutoModelForCausalLM": "alien.AlienModel",
    "AutoModelForSequenceClassification": "alien.AlienModel",
}
ALIEN_TOKENIZER = {"tokenizer_class": "AlienTokenizer", "auto_map": {"AutoTokenizer": [None, "alien.AlienTokenizer"]}}


@pytest.fixture
def tiny(hub, base, tmp_path):
    """alice/tiny: v1 is the model, main has different weights."""
    publish(hub, "alice/tiny", base)
    HfApi().create_tag("alice/tiny", tag="v1")
    weights = {name: torch.zeros_like(tensor) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, (path := tmp_path / "zeros.safetensors"), {"format": "pt"})
    HfApi().upload_file(path_or_fileobj=path, path_in_repo="model.safetensors", repo_id="alice/tiny")
    hub.requests.clear()
    return "alice/tiny@v1"


def publish(hub, name, folder):
    hub.create(name)
    return HfApi().upload_folder(repo_id=name, folder_path=str(folder)).oid


def run(main, *line):
    return run_command(main, [str(word) for word in line])


def say(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_generate(tiny, base, hub, capsys):
    printed = []
    for model in (base, tiny):
        assert run(generate.main, "--model", model, "--prompt", "The a", "--max_new_tokens", 8) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert len(printed[0]) > len("The a\n")
    assert run(generate.main, "--model", "alice/tiny", "--prompt", "The a", "--max_new_tokens", 8) == 0
    assert capsys.readouterr().out != printed[0]  # main has other weights
    assert hub.requests.matching("GET", "/revision/v1$")


def test_chat(hub, base, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(base, tmp_path / "chatting")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    publish(hub, "alice/chatting", folder)
    printed = []
    for model in (folder, "alice/chatting"):
        say(monkeypatch, "What is a?")
        assert run(chat.main, "--model", model, "--max_new_tokens", 8) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_evaluate(tiny, base, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The a number 1 is red. " * 9)
    printed = []
    for model in (base, tiny):
        assert run(evaluate.main, "--model", model, "--text", tmp_path / "text.txt", "--block_size", 16) == 0
        printed.append(capsys.readouterr().out.replace(str(model), "MODEL"))
    assert printed[0] == printed[1]
    assert "MODEL" in printed[0]


def test_a_tokenizer_comes_without_the_weights_of_its_model(tiny, hub, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The a number 1 is red.\n" * 99)
    line = ["--text", tmp_path / "text.txt", "--output_dir", tmp_path / "data", "--block_size", 8]
    assert run(prepare_data.main, "--tokenizer", tiny, *line) == 0
    folder = find_tokenizer("--tokenizer", tiny)
    assert (folder / "tokenizer.json").exists()
    assert not (folder / "model.safetensors").exists()
    assert find_model("--model", tiny).joinpath("model.safetensors").exists()


@pytest.mark.parametrize("name", ["gpt2", "alice/nothing"])
def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_asked_for_once(hub, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "text.txt").write_text("x")
    line = ["--text", tmp_path / "text.txt", "--output_dir", tmp_path / "data"]
    for command, option, more in ((generate, "--model", []), (prepare_data, "--tokenizer", line)):
        hub.requests.clear()
        assert run(command.main, option, name, *more) == 2
        assert capsys.readouterr().err.startswith(
            f"error: {option} {name} is not a folder here, and {name} does not exist"
        )
        assert len(hub.requests.matching("GET", name)) == 1


def test_an_adapter_finds_its_base_on_the_hub(tiny, hub, base, tmp_path, capsys):
    """The base is recorded with its revision, so that changes on main do not matter."""
    rows = write_conversations(tmp_path / "rows.jsonl")
    line = options(
        model=tiny,
        train_file=rows,
        validation_file=rows,
        output_dir=tmp_path / "run",
        trainable="lora",
        learning_rate=0.05,
    )
    assert run(finetune.main, *line) == 0
    settings = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("alice/tiny", "v1")
    publish(hub, "alice/adapter", tmp_path / "run/adapter")
    hub.requests.clear()
    capsys.readouterr()
    printed = []
    for model in (tmp_path / "run/model", "alice/adapter", base):
        assert run(generate.main, "--model", model, "--prompt", "The a", "--max_new_tokens", 8, "--temperature", 0) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]
    assert hub.requests.matching("GET", "^/api/models/alice/tiny/revision/v1$")
    assert find_model("--model", "alice/adapter").joinpath("base_model.json").exists()


def test_an_adapter_for_other_weights_on_the_hub_is_refused(tiny, hub, tmp_path, capsys):
    rows = write_conversations(tmp_path / "rows.jsonl")
    line = options(model=tiny, train_file=rows, validation_file=rows, output_dir=tmp_path / "run", trainable="lora")
    assert run(finetune.main, *line) == 0
    path = tmp_path / "run/adapter/adapter_config.json"
    path.write_text(path.read_text().replace('"v1"', '"main"'))
    publish(hub, "alice/adapter", path.parent)
    capsys.readouterr()
    assert run(generate.main, "--model", "alice/adapter", "--prompt", "The a") == 2
    assert "is an adapter for other weights than those in alice/tiny" in capsys.readouterr().err


def test_a_classifier_from_a_model_of_the_hub(tiny, tmp_path, capsys):
    table = write_labels(tmp_path / "rows.csv")
    line = options(model=tiny, train_file=table, validation_file=table, test_file=table, output_dir=tmp_path / "run",
                   max_new_tokens=None)  # fmt: skip
    assert run(finetune_classifier.main, *line) == 0
    assert (tmp_path / "run/model/model.safetensors").exists()


# Code in repositories


def commands(model, tmp_path):
    rows, table = write_conversations(tmp_path / "rows.jsonl"), write_labels(tmp_path / "rows.csv")
    (tmp_path / "text.txt").write_text("The a number 1 is red. " * 9)
    of_run = {"model": model, "output_dir": tmp_path / "run"}
    return {
        "generate": (generate.main, ["--model", model, "--prompt", "The"]),
        "chat": (chat.main, ["--model", model]),
        "evaluate": (evaluate.main, ["--model", model, "--text", tmp_path / "text.txt", "--block_size", 16]),
        "finetune": (finetune.main, options(train_file=rows, **of_run)),
        "finetune_classifier": (finetune_classifier.main, options(train_file=table, max_new_tokens=None, **of_run)),
    }


def publish_alien(hub, base, marker, config, tokenizer):
    """alice/alien: the tiny model with other entries in its configs, and code that creates a file if it runs."""
    publish(hub, "alice/alien", base)
    files = {"alien.py": ALIEN.format(marker=str(marker)).encode()}
    for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        files[name] = json.dumps(json.loads((base / name).read_text()) | changes).encode()
    hub.commit("alice/alien", files)


@pytest.mark.parametrize("command", ["generate", "chat", "evaluate", "finetune", "finetune_classifier"])
@pytest.mark.parametrize("typed", ["", "yes"])
def test_code_of_another_model_type_is_never_run(command, typed, hub, base, tmp_path, monkeypatch, capsys):
    """Not even if standard input looks like consent: chat reads messages there."""
    publish_alien(hub, base, tmp_path / "marker", {"model_type": "alien", "auto_map": AUTO_MAP}, {})
    say(monkeypatch, typed)
    main, line = commands("alice/alien", tmp_path)[command]
    assert run(main, *line) == 2
    assert not (tmp_path / "marker").exists()
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "evaluate", "finetune", "finetune_classifier"])
def test_our_model_type_runs_the_installed_code(command, hub, base, tmp_path, monkeypatch):
    publish_alien(hub, base, tmp_path / "marker", {"auto_map": AUTO_MAP}, ALIEN_TOKENIZER)
    say(monkeypatch, "yes")
    main, line = commands("alice/alien", tmp_path)[command]
    assert run(main, *line) == 0
    assert not (tmp_path / "marker").exists()


def test_code_of_the_tokenizer_of_an_adapter_is_never_run(tiny, hub, base, tmp_path, monkeypatch, capsys):
    publish_alien(hub, base, tmp_path / "marker", {}, ALIEN_TOKENIZER)
    adapter = {"base_model_name_or_path": "alice/tiny", "peft_type": "LORA", "revision": "v1"}
    hub.commit("alice/alien", {"config.json": None, "adapter_config.json": json.dumps(adapter).encode()})
    say(monkeypatch, "yes")
    assert run(generate.main, "--model", "alice/alien", "--prompt", "The") == 2
    assert not (tmp_path / "marker").exists()


def test_an_index_that_leaves_the_folder_is_refused(hub, base, capsys):
    """Files elsewhere were not verified."""
    publish(hub, "alice/tiny", base)
    data = (base / "model.safetensors").read_bytes()
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(base / "model.safetensors"), "../../x.safetensors")}
    hub.commit("alice/tiny", {
        "model.safetensors": None, "a.safetensors": data,
        "model.safetensors.index.json": json.dumps(index).encode(),
    })  # fmt: skip
    Path(constants.HF_HUB_CACHE, "models--alice--tiny").mkdir(parents=True)
    Path(constants.HF_HUB_CACHE, "models--alice--tiny", "x.safetensors").write_bytes(data)
    assert run(generate.main, "--model", "alice/tiny", "--prompt", "The") == 2
    message = capsys.readouterr().err
    assert "model.safetensors.index.json lists files that are not in alice/tiny: ../../x.safetensors" in message
