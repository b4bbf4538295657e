"""What `--model` says about a path that is not a model: one way out of each mistake."""

import json
import shutil

import pytest

from tests.support.tiny_base import options, save_base, write_conversations
from train import chat, evaluate, finetune, generate, pretrain
from train.model import find, hints
from train.settings.command import run_command


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has just begun."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("data_dir: data\nmax_steps: 9\n")
    return folder


def status(run, state, **facts):
    (run / "status.json").write_text(json.dumps({"state": state, "step": 3, "max_steps": 9} | facts))


def refusal(name, capsys):
    assert run_command(generate.main, ["--model", str(name), "--prompt", "x"]) == 2
    return capsys.readouterr().err.removeprefix(f"error: --model {name} ").removesuffix("\n")


def test_a_run_leads_to_its_model(base, run, capsys):
    shutil.copytree(base, run / "model")
    assert refusal(run, capsys) == f"is the folder of a run: its model is {run / 'model'}."
    assert refusal(run.parent, capsys) == f"is not a model folder: did you mean {run / 'model'}?"
    assert refusal(run / "model" / "config.json", capsys) == f"is a file: give its folder, {run / 'model'}."


def test_an_unfinished_run_says_what_became_of_it(run, capsys):
    continued = f"continue it with scratch-gpt pretrain {run / 'recipe.yaml'}"
    for state, sentence in (
        ("running", f"the run is training at step 3 of 9. Wait for it; if it was killed, {continued}."),
        ("stopped", f"the run stopped at step 3 of 9: {continued}."),
        ("failed", f"the run failed at step 3 of 9 (no space). When the cause is removed, {continued}."),
    ):
        status(run, state, reason="no space")
        assert refusal(run, capsys) == f"is the folder of a run without a finished model: {sentence}"
        assert refusal(run / "model", capsys) == f"does not exist yet: {sentence}"


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        ("data_dir: x", "scratch-gpt pretrain"),
        ("label_column: x", "scratch-gpt finetune_classifier"),
        ("chat_template: own", "scratch-gpt finetune"),
    ],
)
def test_the_command_that_continues_a_run(run, recipe, command):
    (run / "recipe.yaml").write_text(recipe)
    assert hints.continue_command(run) == f"{command} {run / 'recipe.yaml'}"


@pytest.mark.parametrize("content", ["[", "- 1", "", "\x00", "a: &a [*a]", "[" * 9999])
def test_damaged_files_of_a_run_do_not_hide_the_hint(run, capsys, content):
    (run / "recipe.yaml").write_text(content)
    (run / "status.json").write_text(content)
    assert refusal(run, capsys).endswith(
        "the run stopped before its end: continue it with the command that started it."
    )


def test_a_mistyped_path_is_answered_with_near_ones(base, run, capsys, monkeypatch):
    shutil.copytree(base, run / "model")
    for wrong in (run.with_name("rum") / "model", run / "modle", run.with_name("runn")):
        assert refusal(wrong, capsys).startswith(f"does not exist: did you mean {run}")
    monkeypatch.chdir(run.parent)
    assert refusal("run/modell", capsys) == "does not exist: did you mean run/model?"
    assert (
        refusal("/nowhere/at/all", capsys) == "does not exist; scratch-gpt quickstart writes runs/quickstart/run/model."
    )


def test_a_name_without_folder_is_looked_up_on_the_hub(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "alice/tiny"):
        message = refusal(name, capsys)
        assert message.startswith(f"is not a folder here, and {name} is not in ")
        assert "HF_HUB_OFFLINE" in message
    (tmp_path / "models").mkdir()
    assert refusal("modles", capsys).endswith(" Did you mean models?")


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("gpt2", False),
        ("a/b", False),
        ("a/b@v1", False),
        ("./a", True),
        ("/a", True),
        ("a/b/c", True),
        ("here/b", True),
    ],
)
def test_what_can_only_be_a_path(name, is_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert find.is_path(name) == is_path


def test_a_checkpoint_is_used_with_the_tokenizer_of_its_run(recipe, tmp_path, capsys):
    assert run_command(pretrain.main, [recipe()]) == 0
    run = tmp_path / "run"
    checkpoint = str(sorted(run.glob("checkpoint-*"))[-1])
    capsys.readouterr()
    printed = []
    for model in (str(run / "model"), checkpoint):
        assert run_command(generate.main, ["--model", model, "--prompt", "def"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    shutil.rmtree(run / "model")  # the data of the run has the tokenizer too
    assert run_command(evaluate.main, ["--model", checkpoint]) == 0
    assert "block size  16 tokens, as in the data" in capsys.readouterr().out
    assert f"or use its last checkpoint, {checkpoint}." in refusal(run / "model", capsys)


def test_a_checkpoint_of_an_adapter_is_used_like_the_adapter(base, tmp_path, capsys, monkeypatch):
    rows = write_conversations(tmp_path / "rows.jsonl")
    line = options(model=base, train_file=rows, output_dir=tmp_path / "run", trainable="lora", learning_rate=0.05,
                   load_best_model_at_end=False)  # fmt: skip
    assert run_command(finetune.main, line) == 0
    capsys.readouterr()
    printed = []
    for model in (tmp_path / "run" / "adapter", sorted((tmp_path / "run").glob("checkpoint-*"))[-1]):
        assert run_command(generate.main, ["--model", str(model), "--prompt", "The"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_part_of_a_split_model_and_other_safetensors_are_no_weights(base, run, capsys):
    checkpoint = run / "checkpoint-00000003"
    shutil.copytree(base, checkpoint)
    weights = checkpoint / "model.safetensors"
    weights.rename(checkpoint / "shard-00001-model-00001-of-00001.safetensors")
    message = refusal(checkpoint, capsys)
    assert message.startswith("is the checkpoint of a model that was split over several processes")
    (checkpoint / "shard-00001-model-00001-of-00001.safetensors").rename(checkpoint / "optimizer.safetensors")
    assert refusal(checkpoint, capsys).startswith("has no weights (model.safetensors; found: ")


def test_chat_points_to_generate_for_a_model_without_template(base, tmp_path, capsys):
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    assert run_command(chat.main, ["--model", str(tmp_path / "model")]) == 2
    assert f"scratch-gpt generate --model {tmp_path / 'model'}" in capsys.readouterr().err
