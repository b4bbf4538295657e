"""quickstart on a small text: all files are written, load in new processes, and are never overwritten."""

import hashlib
import importlib
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from train import quickstart
from train.data.blocks import open_data
from train.settings.command import run_command
from train.settings.corpus import CorpusArguments

EXPECTED_FILES = {
    "model.safetensors", "config.json", "generation_config.json", "configuration_scratch_gpt.py",
    "modeling_scratch_gpt.py", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md",
    "loss_curve.png", "training.json",
}  # fmt: skip


def fingerprint(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_all_stages(tmp_path, monkeypatch, capfd):
    words = ["def", "return", "self", "import", "for", "in", "while", "class", "value", "name", "path"]
    choose = random.Random(0)
    (tmp_path / "texts").mkdir()
    for number in range(12):
        text = "\n".join(" ".join(choose.choices(words, k=6)) for _ in range(120))
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    monkeypatch.setitem(quickstart.SIZES, "cpu", quickstart.Size(300, 32))
    folder = tmp_path / "quickstart"
    command = ["--text", str(tmp_path / "texts"), "--output_dir", str(folder), "--minutes", "0.02"]

    assert run_command(quickstart.main, command) == 0
    output = capfd.readouterr().out
    model = folder / "run" / "model"
    assert {path.name for path in model.iterdir()} == EXPECTED_FILES
    assert "ScratchGPTTokenizer, hf_scratch_gpt.modeling_scratch_gpt.ScratchGPTForCausalLM" in output
    assert "TokenizersBackend, transformers_modules." in output
    prompts = yaml.safe_load((folder / "recipe.yaml").read_text())["sample_prompts"]
    assert prompts
    for prompt in prompts:
        final = output[output.index("=== 4/4") :]
        assert final.count(f"    > {prompt.splitlines()[0]}\n") == 2  # with the package and without
    assert "Do you wish to run the custom code" not in output
    assert f"scratch-gpt generate --model {model}" in output
    card = (model / "README.md").read_text()
    assert "config: laptop" in card
    assert str(tmp_path) not in card  # no path of this machine
    assert "python -m train" not in output

    before = fingerprint(folder)
    assert run_command(quickstart.main, command) == 0
    assert "already complete" in capfd.readouterr().out
    assert fingerprint(folder) == before


def test_a_damaged_model_is_refused_and_not_tried(base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "model")
    weights = load_file(base / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(quickstart.subprocess, "run", lambda *_, **__: pytest.fail("the model was tried"))
    with pytest.raises(ValueError, match=r"lacks 1 weight \(model\.norm\.weight\)"):
        quickstart.try_model(tmp_path / "model", ["x"])


def test_a_corpus_becomes_command_line_options():
    corpus = CorpusArguments(text=["a.txt", "b c.txt"], validation_fraction=0.2)
    options = quickstart.corpus_options(corpus)
    assert options == ["--text", "a.txt", "b c.txt", "--validation_fraction", "0.2"]
    assert quickstart.corpus_options(CorpusArguments()) == []


def test_the_closing_text_names_files_that_a_run_has_and_commands_that_exist(tmp_path):
    text = quickstart.closing_text(tmp_path, "It's late")
    assert "--prompt 'It'\"'\"'s late'" in text
    commands = re.findall(r"^  \S*scratch-gpt (\w+) (.*)$", text, re.MULTILINE)
    assert [name for name, _ in commands] == ["generate", "evaluate", "quickstart", "pretrain", "publish"]
    for name, rest in commands:
        with pytest.raises(SystemExit) as end:  # --help wins unless an option is unknown
            importlib.import_module(f"train.{name}").main(
                [*shlex.split(rest.replace(f"{tmp_path}/recipe.yaml", "")), "-h"]
            )
        assert end.value.code == 0


def test_of_a_short_text_shorter_blocks_are_made(tmp_path, capsys):
    size = quickstart.Size(300, 256)
    (tmp_path / "a.txt").write_text("It was a dark and stormy night. " * 40)
    (tmp_path / "b.txt").write_text("The night was dark. " * 30)
    corpus = CorpusArguments(text=[str(tmp_path / "a.txt")], validation_text=[str(tmp_path / "b.txt")])
    folder = tmp_path / "out"
    quickstart.make_tokenizer(folder / "tokenizer", size, corpus)
    for _ in range(2):
        quickstart.make_data(folder, size, corpus)
    assert open_data(folder / "data").train.block_size < 256
    assert "trying shorter ones" in capsys.readouterr().out
    (tmp_path / "b.txt").write_text("Dark.")
    shutil.rmtree(folder / "data")
    with pytest.raises(ValueError, match="the text is too short to train on"):
        quickstart.make_data(folder, size, corpus)


@pytest.mark.parametrize(("option", "value"), [("--minutes", "0"), ("--minutes", "-3")])
def test_refuses_a_time_that_is_not_positive(capsys, option, value):
    assert run_command(quickstart.main, [option, value]) == 2
    assert "it must be a positive number" in capsys.readouterr().err


def test_refuses_to_write_into_the_corpus(tmp_path, capsys):
    """A second call would train on the output of the first."""
    assert run_command(quickstart.main, ["--text", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 2
    assert f"--output_dir {tmp_path / 'out'} is inside --text {tmp_path}" in capsys.readouterr().err


def test_refuses_a_missing_text(tmp_path, capsys):
    missing = tmp_path / "missing.txt"
    assert run_command(quickstart.main, ["--text", str(missing), "--output_dir", str(tmp_path / "out")]) == 2
    assert str(missing) in capsys.readouterr().err
    assert not Path(tmp_path / "out" / "data").exists()


def test_a_tokenizer_of_another_corpus_is_refused(tmp_path, capsys):
    size = quickstart.Size(270, 32)
    one, two = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    for path in (one, two):
        Path(path).write_text("some text\n" * 50)
    first = CorpusArguments(text=[one], validation_text=[two])
    second = CorpusArguments(text=[two], validation_text=[one])
    for _ in range(2):
        quickstart.make_tokenizer(tmp_path / "tokenizer", size, first)
    assert "already done" in capsys.readouterr().out
    for other in (second, CorpusArguments()):
        with pytest.raises(ValueError, match=r"tokenizer was trained on --text \S+a.txt .*choose another --output_dir"):
            quickstart.make_tokenizer(tmp_path / "tokenizer", size, other)
