"""A finished run is never touched; one that is extended, damaged or cut short ends with the right model."""

import json
import shutil

import pytest

from tests.support.compare import assert_same_weights
from tests.support.tiny_base import options, write_conversations
from tests.support.tiny_run import records, weights
from train import finetune, pretrain
from train.checkpoint.find import checkpoint_paths
from train.loop import train as loop
from train.loop.status import read_status, write_status
from train.settings.command import run_command

LONGER = ("--max_steps=9", "--allow_change", "max_steps")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the run is that all tests copy."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(recipe, tmp_path, trained):
    """A finished run of six steps with checkpoints of steps 3 and 6."""
    if not trained.exists():
        assert pretrain.main([recipe(), f"--output_dir={trained}"]) == 0
    return shutil.copytree(trained, tmp_path / "run")


def contents(folder):
    """All files but the lock, which says nothing."""
    files = {path: path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage(checkpoint):
    flip_a_bit(checkpoint / "model.safetensors")


@pytest.fixture
def no_training(monkeypatch):
    def train_step(*args, **kwargs):
        raise AssertionError("a step was trained")

    monkeypatch.setattr(loop, "train_step", train_step)


CHECKPOINTS = {
    "are there": lambda run: None,
    "the newest is damaged": lambda run: damage(checkpoint_paths(run)[-1]),
    "all are damaged": lambda run: list(map(damage, checkpoint_paths(run))),
    "the newest is deleted": lambda run: shutil.rmtree(checkpoint_paths(run)[-1]),
    "all are deleted": lambda run: list(map(shutil.rmtree, checkpoint_paths(run))),
    "the card was edited": lambda run: (run / "model" / "README.md").write_text("# My model\n"),
}


@pytest.mark.parametrize("change", CHECKPOINTS)
def test_a_finished_run_is_not_touched(run, recipe, capsys, no_training, change):
    CHECKPOINTS[change](run)
    before = contents(run)
    assert run_command(pretrain.main, [recipe()]) == 0
    assert f"already complete: the model is in {run / 'model'}" in capsys.readouterr().out
    assert contents(run) == before


@pytest.mark.parametrize("change", ["are there", "all are deleted"])
def test_other_settings_are_refused_and_change_nothing(run, recipe, capsys, change):
    CHECKPOINTS[change](run)
    before = contents(run)
    for options_, message in (
        (["--seed=7"], "seed: was 0, now 7"),
        (["--max_steps=4", "--allow_change", "max_steps"], "--max_steps is 4, but {run} is at step 6: give at least 6"),
        (["--max_steps=9"], "max_steps: was 6, now 9"),
    ):
        assert run_command(pretrain.main, [recipe(), *options_]) == 2
        assert message.format(run=run) in capsys.readouterr().err
        assert contents(run) == before


def test_an_extended_run_writes_a_new_model_and_keeps_the_old_one(run, recipe, tmp_path, capsys, no_training, request):
    old = weights(run / "model")
    shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "model")
    request.getfixturevalue("monkeypatch").undo()
    assert pretrain.main([recipe(), *LONGER]) == 0
    assert pretrain.main([recipe(), *LONGER, f"--output_dir={tmp_path / 'copy'}"]) == 0
    assert_same_weights(weights(run / "model"), weights(tmp_path / "copy" / "model"))
    assert_same_weights(weights(run / "outdated-model"), old)
    assert [line["step"] for line in records(run) if "loss" in line] == list(range(1, 10))
    status = read_status(run)
    assert (status["state"], status["step"], status["max_steps"]) == ("complete", 9, 9)
    before = contents(run)
    assert pretrain.main([recipe(), *LONGER]) == 0
    assert contents(run) == before


def test_an_extension_that_is_interrupted_keeps_the_old_model_until_the_new_one_is_written(run, recipe, monkeypatch):
    old, real_write = weights(run / "model"), pretrain.write_model

    def interrupted(run, folder, *args):
        real_write(run, folder, *args)
        (folder / "left_by_the_kill.bin").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "write_model", interrupted)
    assert run_command(pretrain.main, [recipe(), *LONGER]) == 130
    assert read_status(run)["state"] == "stopped"
    assert_same_weights(weights(run / "model"), old)
    monkeypatch.setattr(pretrain, "write_model", real_write)
    assert pretrain.main([recipe(), *LONGER]) == 0
    assert not list(run.rglob("left_by*"))
    assert not list(run.glob(".tmp-*"))
    assert json.loads((run / "model" / "training.json").read_text())["step"] == 9


def test_an_extension_needs_a_checkpoint(run, recipe, capsys):
    CHECKPOINTS["all are deleted"](run)
    before = contents(run)
    assert run_command(pretrain.main, [recipe(), *LONGER]) == 2
    shown = capsys.readouterr().err
    assert "model is finished, and the run has no intact checkpoint to continue from" in shown
    assert contents(run) == before


def test_fewer_steps_than_a_stopped_run_has_done_are_refused(run, recipe, capsys):
    shutil.rmtree(run / "model")
    assert run_command(pretrain.main, [recipe(), "--max_steps=4", "--allow_change", "max_steps"]) == 2
    assert f"--max_steps is 4, but {run} is at step 6" in capsys.readouterr().err


DAMAGE = {
    "model.safetensors has changed": lambda model: flip_a_bit(model / "model.safetensors"),
    "model.safetensors is missing": lambda model: (model / "model.safetensors").unlink(),
    "config.json is missing": lambda model: (model / "config.json").unlink(),
    "not valid JSON": lambda model: (model / "tokenizer.json").write_text("{"),
    "training.json has changed": lambda model: (model / "training.json").write_text(
        (model / "training.json").read_text().replace('"step": 6', '"step": 5')
    ),
    "training.json is missing": lambda model: (model / "training.json").unlink(),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_model_is_moved_away_and_written_again(run, recipe, no_training, reason):
    before, log = (run / "model" / "model.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()
    DAMAGE[reason](run / "model")
    assert pretrain.main([recipe()]) == 0
    assert (run / "model" / "model.safetensors").read_bytes() == before
    assert reason in (run / "damaged-model" / "reason.txt").read_text().replace("the content of ", "")
    assert (run / "metrics.jsonl").read_bytes() == log
    assert read_status(run)["state"] == "complete"


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_model_without_a_checkpoint_is_left_alone(run, recipe, capsys, no_training, reason):
    CHECKPOINTS["all are deleted"](run)
    DAMAGE[reason](run / "model")
    before = contents(run)
    assert run_command(pretrain.main, [recipe()]) == 2
    shown = capsys.readouterr().err
    assert "model is damaged (" in shown
    assert "no intact checkpoint" in shown
    assert contents(run) == before


def test_a_complete_run_without_model_and_checkpoints_does_not_start_over(run, recipe, capsys):
    CHECKPOINTS["all are deleted"](run)
    shutil.rmtree(run / "model")
    before = contents(run)
    assert run_command(pretrain.main, [recipe()]) == 2
    assert "model is missing, and the run has no intact checkpoint" in capsys.readouterr().err
    assert contents(run) == before


def test_the_status_is_corrected_if_a_kill_came_after_the_model(run, recipe, no_training):
    write_status(run, "running", step=3, max_steps=6)
    (run / ".tmp-status.json").write_text("{")
    assert pretrain.main([recipe()]) == 0
    status = read_status(run)
    assert (status["state"], status["step"]) == ("complete", 6)
    assert not list(run.glob(".tmp-*"))


LOGS = {"empty": b"", "zeros": bytes(300), "half": b'{"step": 1, "tokens_seen": 64, "loss": 3.0}\n{"step": 2, "tok'}


@pytest.mark.parametrize("content", LOGS)
def test_a_damaged_log_does_not_keep_the_model_from_being_written(run, recipe, no_training, content):
    """What the card shows is evaluated again."""
    expected, model = records(run)[-1], (run / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "model")
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run / name).write_bytes(LOGS[content])
    assert pretrain.main([recipe()]) == 0
    assert (run / "model" / "model.safetensors").read_bytes() == model
    assert records(run)[-1]["eval_loss"] == expected["eval_loss"]
    assert f"{expected['eval_loss']:.4f}" in (run / "model" / "README.md").read_text()


def test_a_fine_tuned_model_is_written_without_its_log(base, tmp_path):
    rows, run = write_conversations(tmp_path / "rows.jsonl"), tmp_path / "run"
    line = options(model=base, train_file=rows, output_dir=run, max_steps=2, eval_steps=1)
    assert finetune.main(line) == 0
    model, best = (
        (run / "model" / "model.safetensors").read_bytes(),
        min(line["eval_loss"] for line in records(run) if line.get("eval_loss") and line["step"]),
    )
    shutil.rmtree(run / "model")
    (run / "metrics.jsonl").unlink()
    (run / "samples.jsonl").unlink()
    assert finetune.main(line) == 0
    assert (run / "model" / "model.safetensors").read_bytes() == model
    assert f"| nan | {best:.4f} |" in (run / "model" / "README.md").read_text()


@pytest.mark.parametrize("changes", [{"sample_prompts": ["What is 0?", "New?"]}, {"max_new_tokens": 2}])
def test_the_sample_prompts_of_a_started_fine_tuning_may_change(base, tmp_path, monkeypatch, capsys, changes):
    rows, run = write_conversations(tmp_path / "rows.jsonl"), tmp_path / "run"
    values = {"model": base, "train_file": rows, "output_dir": run, "max_steps": 2, "save_steps": 1}
    values["sample_prompts"] = ["What is 1?", "What is 0?"]
    real_step = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda run, state, **kw: real_step(run, state, wants_stop=True))
    assert finetune.main(options(**values)) == 130
    monkeypatch.setattr(loop, "train_step", real_step)
    before = {line["prompt"]: line["text"] for line in records_of_samples(run)}
    capsys.readouterr()
    assert finetune.main(options(**values | changes)) == 0
    shown = capsys.readouterr().out
    prompts = changes.get("sample_prompts", values["sample_prompts"])
    for prompt in prompts:
        expected = f"\n{prompt}\n  before: {before.get(prompt)!r:.200}\n  after:"
        assert (expected in shown) == (prompt in before)


def records_of_samples(run):
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_the_adapter_is_written_whole_and_belongs_to_its_model(base, tmp_path, monkeypatch):
    rows, run = write_conversations(tmp_path / "rows.jsonl"), tmp_path / "run"
    line = options(model=base, train_file=rows, output_dir=run, max_steps=2, trainable="lora", lora_r=2)
    real_write = finetune.write_card

    def interrupted(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finetune, "write_card", interrupted)
    assert run_command(finetune.main, line) == 2
    assert not (run / "adapter").exists()
    (run / ".tmp-adapter" / "left_by_the_kill.bin").touch()
    monkeypatch.setattr(finetune, "write_card", real_write)
    assert finetune.main(line) == 0
    written = {path.name for path in (run / "adapter").iterdir()}
    assert "README.md" in written
    assert "left_by_the_kill.bin" not in written
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    flip_a_bit(run / "adapter" / "adapter_model.safetensors")
    assert finetune.main(line) == 0
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert (run / "damaged-adapter").is_dir()
    before = contents(run)
    assert finetune.main(line) == 0
    assert contents(run) == before


def test_a_finished_fine_tuning_is_recognized_without_its_checkpoints(base, tmp_path):
    """With the settings that the command has chosen itself, too."""
    rows, run = write_conversations(tmp_path / "rows.jsonl"), tmp_path / "run"
    line = [f"--model={base}", f"--train_file={rows}", f"--output_dir={run}", "--num_train_epochs=1"]
    line += ["--precision=fp32", "--max_new_tokens=4"]
    assert finetune.main(line) == 0
    CHECKPOINTS["all are deleted"](run)
    before = contents(run)
    assert finetune.main(line) == 0
    assert contents(run) == before
