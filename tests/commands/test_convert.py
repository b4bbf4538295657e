"""`convert`, and the other commands with a model of another family."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM, Qwen3ForSequenceClassification

from hf_scratch_gpt import ScratchGPTForCausalLM
from tests.support.tiny_base import options, write_conversations, write_labels
from train import classify, convert, evaluate, finetune, finetune_classifier, generate
from train.settings.command import run_command

# PEFT asks by a name that transformers 5.23 gave up
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IMPORTED = "is a qwen3 model: its weights were imported into a ScratchGPTForCausalLM"


def run(main, *line):
    return run_command(main, [str(word) for word in line])


@pytest.fixture(scope="module")
def qwen3(base, tmp_path_factory):
    """The tiny base model as transformers' Qwen3."""
    folder = tmp_path_factory.mktemp("converted") / "qwen3"
    assert run(convert.main, "--model", base, "--to", "qwen3", "--output_dir", folder) == 0
    return folder


def test_plain_transformers_loads_the_converted_model_with_its_tokenizer(base, qwen3, tmp_path):
    """In a new process that does not know this package."""
    program = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
messages = [{"role": "user", "content": "The a"}]
chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
ids = tokenizer("The a number", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=8, do_sample=False)
print(json.dumps([type(model).__name__, chat, out[0].tolist(), "hf_scratch_gpt" in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(qwen3)], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    name, chat, tokens, knows_us = json.loads(done.stdout.splitlines()[-1])
    tokenizer, model = AutoTokenizer.from_pretrained(base), ScratchGPTForCausalLM.from_pretrained(base).eval()
    messages = [{"role": "user", "content": "The a"}]
    assert chat == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = tokenizer("The a number", return_tensors="pt")
    assert tokens == model.generate(**ids, max_new_tokens=8, do_sample=False)[0].tolist()
    assert (name, knows_us) == ("Qwen3ForCausalLM", False)


def test_back_again_bit_by_bit(base, qwen3, tmp_path, capsys):
    assert run(convert.main, "--model", qwen3, "--output_dir", tmp_path / "back") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "back")
    first, second = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back", trust_remote_code=True)  # it brings its code
    assert type(model).__name__ == "ScratchGPTForCausalLM"
    card = (tmp_path / "back" / "README.md").read_text()
    assert "qwen3 as ScratchGPTForCausalLM" in card
    assert "No weight was changed" in card


def test_another_dtype_is_named_on_the_card(base, tmp_path):
    line = ("--model", base, "--to", "qwen3", "--dtype", "bfloat16", "--output_dir", tmp_path / "half")
    assert run(convert.main, *line) == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert "rounded to bfloat16" in (tmp_path / "half" / "README.md").read_text()


def test_generate_and_evaluate_import_it_on_the_fly(base, qwen3, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The a number 3 is red. " * 20)
    outputs = []
    for model in (base, qwen3):
        assert run(generate.main, "--model", model, "--prompt", "The a", "--max_new_tokens", 8) == 0
        assert run(evaluate.main, "--model", model, "--text", text) == 0
        outputs.append(capsys.readouterr())
    completions = [output.out.splitlines()[0] for output in outputs]
    assert completions[0] == completions[1] != "The a"
    scores = [re.search(r"text.txt +\d.*", output.out)[0] for output in outputs]
    assert scores[0] == scores[1]
    assert outputs[1].err.count(f"--model {qwen3} {IMPORTED}") == 2
    assert "imported" not in outputs[0].err


def test_fine_tuning_gives_a_model_of_ours(qwen3, tmp_path, capsys):
    rows = write_conversations(tmp_path / "rows.jsonl")
    assert run(convert.main, "--model", qwen3, "--output_dir", tmp_path / "ours") == 0
    weights = []
    for model in (tmp_path / "ours", qwen3):
        output = tmp_path / f"run-{model.name}"
        line = options(model=model, train_file=rows, output_dir=output)
        assert run(finetune.main, *line) == 0
        folder = output / "model"
        assert type(AutoModelForCausalLM.from_pretrained(folder)) is ScratchGPTForCausalLM
        weights.append(load_file(folder / "model.safetensors"))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert IMPORTED in capsys.readouterr().err


def test_a_classifier_of_it(qwen3, tmp_path, capsys):
    table = write_labels(tmp_path / "rows.csv")
    line = options(model=qwen3, train_file=table, output_dir=tmp_path / "run", max_new_tokens=None)
    assert run(finetune_classifier.main, *line) == 0
    capsys.readouterr()
    model = tmp_path / "run" / "model"
    line = ("--model", model, "--to", "qwen3", "--output_dir", tmp_path / "classifier")
    assert run(convert.main, *line) == 0
    theirs = Qwen3ForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert sorted(theirs.config.label2id) == ["blue", "green", "red"]
    capsys.readouterr()
    outputs = []
    for folder in (model, tmp_path / "classifier"):
        assert run(classify.main, "--model", folder, "--text", "The a number 3 is red.") == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != ""


def test_an_adapter_fits_the_model_that_others_load(qwen3, tmp_path, capsys):
    rows = write_conversations(tmp_path / "rows.jsonl")
    assert (
        run(finetune.main, *options(model=qwen3, train_file=rows, output_dir=tmp_path / "run", trainable="lora")) == 0
    )
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")) is Qwen3ForCausalLM
    assert run(generate.main, "--model", tmp_path / "run" / "adapter", "--prompt", "The a", "--max_new_tokens", 4) == 0
    assert "imported" not in capsys.readouterr().err


def test_from_the_hub(hub, qwen3, tmp_path, capsys):
    hub.create("alice/qwen3")
    HfApi().upload_folder(repo_id="alice/qwen3", folder_path=str(qwen3))
    assert run(generate.main, "--model", "alice/qwen3", "--prompt", "The a", "--max_new_tokens", 4) == 0
    assert f"--model alice/qwen3 {IMPORTED}" in capsys.readouterr().err
    assert run(convert.main, "--model", "alice/qwen3", "--output_dir", tmp_path / "ours") == 0
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "base_model: alice/qwen3" in card
    assert "[alice/qwen3](https://huggingface.co/alice/qwen3)" in card


def test_a_model_that_ours_cannot_express_keeps_its_class(qwen3, tmp_path, capsys):
    model = Qwen3ForCausalLM.from_pretrained(qwen3)
    model.config.hidden_act = "gelu"
    model.save_pretrained(tmp_path / "gelu")
    AutoTokenizer.from_pretrained(qwen3).save_pretrained(tmp_path / "gelu")
    assert run(generate.main, "--model", tmp_path / "gelu", "--prompt", "The a", "--max_new_tokens", 4) == 0
    assert "imported" not in capsys.readouterr().err
    assert run(convert.main, "--model", tmp_path / "gelu", "--output_dir", tmp_path / "ours") == 2
    assert "hidden_act is 'gelu', but must be 'silu' or 'swish'" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_settings_that_the_target_lacks_are_named(base, tmp_path, capsys):
    assert run(convert.main, "--model", base, "--to", "qwen3", "--output_dir", tmp_path / "qwen3") == 0
    expected = "note: qwen3 has no residual_dropout (here 0.1), so further training runs without it"
    assert expected in capsys.readouterr().err


def test_mistakes(base, qwen3, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "openai").mkdir()
    for name in ("hparams.json", "model.ckpt.index"):
        (tmp_path / "openai" / name).touch()
    new = ("--output_dir", tmp_path / "new")
    mistakes = {
        ("--model", base, *new): f"--model {base} is a ScratchGPT model already: choose another format with --to.",
        ("--model", base, "--to", "llama", *new): "qk_norm is True, but must be False. It can be converted to qwen3.",
        ("--model", qwen3, "--output_dir", tmp_path / "full"): "exists and is not an empty folder: choose a new one.",
        ("--model", qwen3, "--to", "bert", *new): "--to takes scratch_gpt or gpt2 or llama or qwen3",
        ("--model", qwen3, "--max_shard_size", "0GB", *new): "--max_shard_size is '0GB': give a size such as 5GB",
        ("--model", tmp_path / "openai", *new): "hparams.json is damaged",
    }
    for line, message in mistakes.items():
        assert run(convert.main, *line) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert run(generate.main, "--model", tmp_path / "openai") == 2
    assert "has OpenAI's own files of GPT-2: convert them with scratch-gpt convert" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "openai"]
