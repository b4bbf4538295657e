"""`generate`: its output, and the settings it refuses."""

import pytest
import torch

from tests.support.tiny import tiny_config
from train import generate
from train.settings.command import run_command


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """An untrained model with a tokenizer, as `pretrain` writes it."""
    from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTTokenizer

    folder = tmp_path_factory.mktemp("model")
    texts = ["def one(x):\n    return x + 1\n" * 20]
    tokenizer = ScratchGPTTokenizer.train_from_texts(texts, 280, show_progress=False)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ScratchGPTForCausalLM(tiny_config(vocab_size=len(tokenizer))).save_pretrained(folder)
    return folder


def run(folder, *options):
    return run_command(generate.main, ["--model", str(folder), "--max_new_tokens", "5", *options])


def test_prints_the_prompt_and_a_reproducible_continuation(model_folder, capsys):
    assert run(model_folder, "--prompt", "def one") == 0
    first = capsys.readouterr().out
    assert first.startswith("def one")
    assert len(first.strip()) > len("def one")
    run(model_folder, "--prompt", "def one")
    assert capsys.readouterr().out == first
    run(model_folder, "--prompt", "def one", "--seed", "1")
    assert capsys.readouterr().out != first


def test_temperature_zero_is_greedy(model_folder, capsys):
    outputs = set()
    for seed in "01":
        assert run(model_folder, "--prompt", "def", "--temperature", "0", "--seed", seed) == 0
        outputs.add(capsys.readouterr().out)
    assert len(outputs) == 1


def test_the_prompt_is_optional(model_folder, capsys):
    assert run(model_folder) == 0
    assert capsys.readouterr().out.strip()


def test_a_long_prompt_is_truncated_on_the_left_with_a_warning(model_folder, capsys):
    assert run(model_folder, "--prompt", "0123456789" * 20) == 0
    assert "only the last 59 of the prompt's 200 tokens are used" in capsys.readouterr().err


def test_the_default_length_leaves_half_of_the_positions_to_the_prompt(model_folder, capsys):
    assert run_command(generate.main, ["--model", str(model_folder), "--prompt", "0123456789" * 20]) == 0
    assert "only the last 32 of the prompt's 200 tokens are used" in capsys.readouterr().err


def test_a_prompt_that_cannot_be_encoded_is_refused(model_folder, capsys, monkeypatch):
    model, _ = generate.load_for_inference(str(model_folder))

    class Characters:
        """A tokenizer without byte fallback."""

        def __call__(self, *args, **kwargs):
            raise Exception("WordLevel error: Missing [UNK] token from the vocabulary")

    monkeypatch.setattr(generate, "load_for_inference", lambda name: (model, Characters()))
    assert run(model_folder, "--prompt", "\u2603") == 2
    assert "cannot encode it (WordLevel error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--top_p", "2"], "--top_p is 2.0"),
        (["--top_p", "0"], "--top_p is 0.0"),
        (["--top_k", "-1"], "--top_k is -1"),
        (["--max_new_tokens", "0"], "--max_new_tokens is 0"),
        (["--max_new_tokens", "64"], "leaves no room for a prompt: the model reads 64 tokens"),
        (["--model", "/nowhere"], "--model /nowhere does not exist"),
    ],
)
def test_refuses(model_folder, capsys, options, message):
    assert run(model_folder, "--prompt", "x", *options) == 2
    assert message in capsys.readouterr().err


def test_refuses_a_folder_without_a_model_and_damaged_weights(model_folder, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("not a model")
    assert run(tmp_path, "--prompt", "x") == 2
    assert "has no config.json (found: notes.txt)" in capsys.readouterr().err

    model, tokenizer = generate.load_for_inference(str(model_folder))
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert run(tmp_path, "--prompt", "x") == 2
    assert "not finite" in capsys.readouterr().err
