"""pretrain --minutes and --flops: the choice, what it says, and how it is kept."""

import json
import re

import pytest
import yaml

from hf_scratch_gpt import ScratchGPTConfig
from train import pretrain
from train.loop import budget, dial
from train.model import new
from train.settings.command import run_command


@pytest.fixture
def command(data_dir, tmp_path, monkeypatch):
    """Options of a tiny training whose shape and length follow from a budget."""
    monkeypatch.setattr(dial, "TIMING_SECONDS", 0.0)
    monkeypatch.setattr(new, "LADDER", ((1, 64), (2, 64)))
    monkeypatch.setattr(budget, "MIN_STEPS", 4)

    def options(*more):
        return [f"--data_dir={data_dir}", f"--output_dir={tmp_path / 'run'}", *more]

    return options


def saved(tmp_path):
    run = tmp_path / "run"
    return json.loads((run / "budget.json").read_text()), yaml.safe_load((run / "recipe.yaml").read_text())


def test_a_budget_decides_all_that_is_left_open_and_the_forecast_is_checked(command, tmp_path, capsys):
    assert pretrain.main(command("--minutes=0.1", "--precision=fp32")) == 0
    shown = capsys.readouterr().out
    choice, settings = saved(tmp_path)
    assert choice["budget"] == {"minutes": 0.1}
    for name in ("config", "config_overrides", "global_batch_size", "max_steps", "learning_rate"):
        assert settings[name] == choice["settings"][name] is not None
    assert "minutes" not in settings  # the recipe alone repeats the run
    assert choice["settings"]["torch_compile"] == "false"
    for line in (
        r"^budget +0\.1 minutes on this machine$",
        r"^model +\d layers, 64 wide: [\d,]+ parameters$",
        r"^expected loss +\d\.\d\d nats per token",
        r"^expected time +[\d.]+ seconds, measured",
        r"^forecast +loss \d\.\d\d \(expected \d\.\d\d, [+-]\d\.\d\d\), time [\d.]+ seconds \(expected .*, [+-]\d+%\)$",
    ):
        assert re.search(line, shown, re.MULTILINE), line


def test_the_same_command_keeps_the_choice_and_another_budget_is_refused(command, tmp_path, capsys):
    assert pretrain.main(command("--flops=1e8")) == 0
    before = saved(tmp_path)
    assert pretrain.main(command("--flops=1e8")) == 0
    assert "already complete" in capsys.readouterr().out
    assert saved(tmp_path) == before
    assert run_command(pretrain.main, command("--minutes=1")) == 2
    assert "was started with --flops 1e+08, not --minutes 1" in capsys.readouterr().err


def test_given_options_are_kept(command, tmp_path):
    assert pretrain.main(command("--flops=1e8", "--config=tiny", "--global_batch_size=8", "--learning_rate=0.5")) == 0
    choice, settings = saved(tmp_path)
    assert not {"config", "config_overrides", "global_batch_size", "learning_rate"} & choice["settings"].keys()
    assert (settings["config"], settings["global_batch_size"], settings["learning_rate"]) == ("tiny", 8, 0.5)


def test_the_time_of_a_budget_in_flops_is_measured(command, capsys):
    assert pretrain.main(command("--flops=1e8")) == 0
    assert re.search(r"^expected time +about [\d.]+ seconds \(measured", capsys.readouterr().out, re.MULTILINE)


def test_a_run_in_the_working_folder_decides_nothing(command, tmp_path, monkeypatch):
    assert pretrain.main(command("--flops=1e8", "--learning_rate=0.5")) == 0
    monkeypatch.chdir(tmp_path / "run")
    assert pretrain.main(command("--flops=1e8", f"--output_dir={tmp_path / 'other'}")) == 0
    choice = json.loads((tmp_path / "other" / "budget.json").read_text())
    assert choice["settings"]["learning_rate"] < 0.1


@pytest.mark.parametrize(("batch", "micro_batch"), [(8, 8), (96, 32), (80, 20)])
def test_a_micro_batch_divides_the_batch(command, tmp_path, batch, micro_batch):
    assert pretrain.main(command("--flops=1e8", f"--global_batch_size={batch}")) == 0
    assert saved(tmp_path)[1]["micro_batch_size"] == micro_batch


@pytest.mark.parametrize("budget_option", ["--flops=1e8", "--minutes=0.05"])
def test_the_batch_is_a_multiple_of_a_given_micro_batch(command, tmp_path, monkeypatch, budget_option):
    monkeypatch.setattr(budget, "SMALLEST_BATCH", 64)  # tokens
    assert pretrain.main(command(budget_option, "--micro_batch_size=16")) == 0
    assert saved(tmp_path)[1]["global_batch_size"] % 16 == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes=1", "--max_steps=5"], "--max_steps and --minutes exclude each other"),
        (["--minutes=1", "--model=x"], "--model and --minutes exclude each other"),
        (["--minutes=1", "--flops=5"], "give only one of them"),
        (["--minutes=-1"], "--minutes is -1.0: it must be positive"),
        ([], "--config or --model or --minutes or --flops"),
    ],
)
def test_what_contradicts_a_budget_is_refused(command, options, message, capsys):
    assert run_command(pretrain.main, command(*options)) == 2
    assert message in capsys.readouterr().err


def training_of(width, loss):
    config = ScratchGPTConfig(hidden_size=width, num_hidden_layers=2, num_attention_heads=2)
    return budget.Training(config, 8, 1000, 2, 60.0, 2_048_000, loss)


def explained(losses, **options):
    trainings = [training_of(width, loss) for width, loss in losses]
    best, text = budget.best_of(trainings), budget.Text(10_000_000, 256, 3.0)
    choice = dial.Choice({"minutes": 1.0}, {}, best.expected_loss, 60.0)
    return dial.explanation(trainings, text, choice, **{"is_compiled": False, **options})


def test_the_explanation_compares_the_next_smaller_and_the_next_larger_model():
    shown = explained([(64, 2.7), (128, 2.5), (192, 2.4), (256, 2.45)])
    expected = "in the same time, 2 layers, 128 wide would reach 2.50, 2 layers, 256 wide would reach 2.45"
    assert re.search(rf"^other models +{expected}$", shown, re.MULTILINE)
    assert "other models" not in explained([(64, 2.7)])


def test_the_explanation_says_that_compilation_was_not_timed():
    assert "torch.compile" not in explained([(64, 2.7)])
    assert "measured on this machine without torch.compile" in explained([(64, 2.7)], is_compiled=True)


def test_whether_to_compile_follows_from_the_measured_time(command, tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(dial, "compiles", lambda asked, device, seconds: bool(planned.append(seconds)))
    assert pretrain.main(command("--minutes=0.1")) == 0
    assert 0 < planned[0] < 6.0


def test_models_are_timed_as_they_are_trained(command, monkeypatch):
    checkpointed, measure = [], dial.measure_speed

    def measured(model, **settings):
        checkpointed.append(all(layer.gradient_checkpointing for layer in model.model.layers))
        return measure(model, **settings)

    monkeypatch.setattr(dial, "measure_speed", measured)
    assert pretrain.main(command("--minutes=0.1", "--gradient_checkpointing")) == 0
    assert checkpointed
    assert all(checkpointed)


def test_several_processes_are_refused():
    with pytest.raises(ValueError, match="--flops works with one process, but 2 were started"):
        dial.check(dial.BudgetArguments(flops=1.0), {}, 2)
