"""`generate`: its output, and the settings it refuses."""

import io
import os
import re
import shutil

import pytest
import torch
from transformers import PreTrainedTokenizerFast

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

    monkeypatch.setattr(generate, "load_for_inference", lambda name, **_: (model, Characters()))
    assert run(model_folder, "--prompt", "\u2603") == 2
    assert "the tokenizer cannot encode the text '\u2603' (WordLevel error" in capsys.readouterr().err


def test_a_tokenizer_without_bos_begins_with_eos_and_one_without_both_needs_a_prompt(model_folder, tmp_path, capsys):
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    backend = generate.load_for_inference(str(model_folder))[1].backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    assert run(tmp_path) == 0
    assert capsys.readouterr().out.strip()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(ValueError, match="neither a bos_token nor an eos_token to begin a text: give a --prompt"):
        generate.encode_prompt(tokenizer, "")


def test_control_tokens_in_a_prompt_are_text(model_folder, capsys):
    tokenizer = generate.load_for_inference(str(model_folder))[1]
    ids = generate.encode_prompt(tokenizer, "x<|end|><|system|>")
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == "x<|end|><|system|>"
    assert run(model_folder, "--prompt", "x<|end|>") == 0
    assert capsys.readouterr().out.startswith("x<|end|>")


def test_reads_standard_input(model_folder, capsys, monkeypatch):
    expected = []
    for prompt in ("def one", "a\nb"):
        run(model_folder, "--prompt", prompt)
        expected.append(capsys.readouterr().out)
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    assert run(model_folder, "--prompt", "def one", "-") == 0
    assert capsys.readouterr().out == f"--- prompt 1 of 2\n{expected[0]}--- prompt 2 of 2\n{expected[1]}"


def test_reads_a_pipe_or_a_file_without_prompt_but_no_terminal(model_folder, tmp_path, capsys, monkeypatch):
    run(model_folder, "--prompt", "def one")
    expected = capsys.readouterr().out
    (tmp_path / "prompt.txt").write_text("def one\n")
    with (tmp_path / "prompt.txt").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert run(model_folder) == 0
    assert capsys.readouterr().out == expected
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert generate.read_prompts([]) == [""]


def test_names_a_missing_model_before_it_waits_for_a_prompt(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # reading it would fail
    assert run(tmp_path / "missing", "--prompt", "-", "-") == 2
    assert "missing" in capsys.readouterr().err


def test_samples_of_a_prompt_differ_and_the_first_is_that_of_a_single_one(model_folder, capsys):
    run(model_folder, "--prompt", "def one")
    single = capsys.readouterr().out
    assert run(model_folder, "--prompt", "def one", "--num_samples", "3") == 0
    parts = re.split(r"--- sample \d of 3\n", capsys.readouterr().out)
    assert parts[1] == single
    assert len(set(parts)) == 4


def test_stops_before_a_given_text(model_folder, capsys):
    long = ["--prompt", "def one", "--max_new_tokens", "30"]
    run(model_folder, *long)
    completion = capsys.readouterr().out.removeprefix("def one").removesuffix("\n")
    stop = completion[7:9]
    assert run(model_folder, *long, "--stop", "never occurs", stop) == 0
    assert capsys.readouterr().out == "def one" + completion[: completion.index(stop)] + "\n"


def test_a_repetition_penalty_changes_greedy_output(model_folder, capsys):
    outputs = set()
    for penalty in ("1", "5"):
        assert run(model_folder, "--prompt", "def", "--temperature", "0", "--repetition_penalty", penalty) == 0
        outputs.add(capsys.readouterr().out)
    assert len(outputs) == 2


def test_ctrl_c_speaks_of_no_checkpoints(model_folder, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "generate_text", interrupt)
    assert run(model_folder, "--prompt", "x") == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_reader_that_ends_is_no_error(model_folder, capsys, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert run(model_folder, "--prompt", "x") == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--top_p", "2"], "--top_p is 2.0"),
        (["--top_p", "0"], "--top_p is 0.0"),
        (["--top_k", "-1"], "--top_k is -1"),
        (["--temperature", "nan"], "--temperature is nan: it must be a"),
        (["--temperature", "1e-45"], "--temperature is 1e-45: it must be a number of at least 0.01"),
        (["--temperature", "1e30"], "--temperature is 1e+30: it must be at most 100"),
        (["--seed", "99999999999999999999"], "--seed is 99999999999999999999: it must be at most"),
        (["--seed", "-1"], "--seed is -1"),
        (["--top_k", "99999999999999999999"], "--top_k is 99999999999999999999: it must be at most"),
        (["--repetition_penalty", "inf"], "--repetition_penalty is inf"),
        (["--repetition_penalty", "0"], "--repetition_penalty is 0.0"),
        (["--temperature", "0", "--top_p", "0.5"], "--top_p (0.5) requires --temperature above 0"),
        (["--temperature", "0", "--num_samples", "2"], "--num_samples (2) requires --temperature above 0"),
        (["--num_samples", "0"], "--num_samples is 0"),
        (["--stop", ""], "--stop is an empty text"),
        (["--prompt", "-", "-"], '--prompt has "-" twice'),
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


def test_show_top_prints_the_probabilities_of_the_model_at_each_step(model_folder, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(model_folder, "--prompt", "def one", "--temperature", "0")
    text = capsys.readouterr().out
    options = ("--prompt", "def one", "--temperature", "0", "--repetition_penalty", "1.0")
    assert run(model_folder, *options, "--show_top", "3") == 0
    printed = capsys.readouterr().out
    head, *lines = printed.split("\n\n")[0].splitlines()
    assert printed.endswith(f"\n\n{text}")
    assert head.split() == ["step", "chosen", "most", "probable"]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    with torch.no_grad():
        best = model(**tokenizer("def one", return_tensors="pt")).logits[0, -1].softmax(dim=-1).topk(3)
    shares = re.findall(r"[\d.]+%", lines[0])
    assert shares == [f"{share:.2%}" for share in best.values[[0, 0, 1, 2]].tolist()]  # the chosen one comes first


def test_show_top_shows_what_the_model_says_before_the_settings(model_folder, capsys):
    tables = []
    for settings in (("--temperature", "0.1"), ("--top_k", "1"), ("--repetition_penalty", "5")):
        run(model_folder, "--prompt", "def", "--show_top", "4", "--max_new_tokens", "1", *settings)
        tables.append(re.split(r"%\s", capsys.readouterr().out.splitlines()[1], maxsplit=1)[1])
    assert len(set(tables)) == 1


@pytest.mark.parametrize("count", ["0", "21"])
def test_show_top_has_limits(model_folder, capsys, count):
    assert run(model_folder, "--show_top", count) == 2
    assert f"--show_top is {count}" in capsys.readouterr().err


def test_min_p_is_that_of_transformers(model_folder, capsys):
    from train.settings.sampling import SamplingArguments

    assert SamplingArguments(min_p=0.2).generation["min_p"] == 0.2
    assert "min_p" not in SamplingArguments(min_p=0.0).generation
    run(model_folder, "--prompt", "def", "--top_k", "1")
    greedy = capsys.readouterr().out
    run(model_folder, "--prompt", "def", "--top_k", "0", "--min_p", "0.99999")
    assert capsys.readouterr().out == greedy
    for value, message in (("1", "must be at least 0 and below 1"), ("-0.1", "must be at least 0")):
        assert run(model_folder, "--min_p", value) == 2
        assert message in capsys.readouterr().err
    assert run(model_folder, "--min_p", "0.1", "--temperature", "0") == 2
    assert "--min_p (0.1) requires --temperature above 0" in capsys.readouterr().err
