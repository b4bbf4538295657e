"""pretrain --minutes and --flops: the choice, what it says, and how it is kept."""

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTTokenizer
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


@pytest.mark.parametrize(
    ("given", "shape"),
    [("residual_dropout=0.5", (1, 64)), ("num_hidden_layers=3,residual_dropout=0.5", (3, 64))],
    ids=["dropout", "layers"],
)
def test_changes_to_the_config_complete_the_chosen_shape(command, tmp_path, given, shape):
    options = command("--flops=1e8", f"--config_overrides={given}")
    assert pretrain.main(options) == 0
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == shape
    assert config["residual_dropout"] == 0.5
    choice, settings = saved(tmp_path)
    assert settings["learning_rate"] == choice["settings"]["learning_rate"]
    assert pretrain.main(options) == 0  # complete
    recipe = str(tmp_path / "run" / "recipe.yaml")
    assert pretrain.main([recipe, f"--output_dir={tmp_path / 'again'}"]) == 0
    assert json.loads((tmp_path / "again" / "model" / "config.json").read_text()) == config


def test_models_that_changes_make_equal_are_one_candidate(data_dir):
    tokenizer = ScratchGPTTokenizer.from_pretrained(data_dir / "tokenizer")
    shapes = [
        (c.num_hidden_layers, c.hidden_size) for c in new.ladder(tokenizer, "num_hidden_layers=5,hidden_size=128")
    ]
    assert shapes == [(5, 128)]
    with pytest.raises(ValueError, match="hidden_size"):
        new.ladder(tokenizer, "hidden_size=wide")


def test_a_continued_run_takes_the_options_given_then(command, tmp_path, capsys):
    assert pretrain.main(command("--flops=1e8")) == 0
    assert run_command(pretrain.main, command("--flops=1e8", "--learning_rate=0.5")) == 2
    assert "learning_rate: was" in capsys.readouterr().err
    assert run_command(pretrain.main, command("--flops=1e8", "--optimizer=adamw")) == 2
    assert "optimizer: was 'muon', now 'adamw'" in capsys.readouterr().err
    assert run_command(pretrain.main, command("--flops=1e8", "--config_overrides=num_hidden_layers=2")) == 2
    assert "num_hidden_layers: was 1, now 2" in capsys.readouterr().err
    assert pretrain.main(command("--flops=1e8", "--eval_steps=1")) == 0
    assert saved(tmp_path)[1]["eval_steps"] == 1


def test_config_is_given_always_or_never(command, tmp_path, capsys):
    assert pretrain.main(command("--flops=1e8")) == 0
    assert run_command(pretrain.main, command("--flops=1e8", "--config=tiny")) == 2
    assert "was started without --config: remove it, or choose another --output_dir." in capsys.readouterr().err
    other = f"--output_dir={tmp_path / 'other'}"
    assert pretrain.main(command("--flops=1e8", "--config=tiny", other)) == 0
    assert run_command(pretrain.main, command("--flops=1e8", other)) == 2
    assert "was started with --config: give it again, or choose another --output_dir." in capsys.readouterr().err


def test_models_that_changes_do_not_fit_are_left_out(data_dir, monkeypatch):
    monkeypatch.setattr(new, "LADDER", ((2, 64), (2, 96)))
    tokenizer = ScratchGPTTokenizer.from_pretrained(data_dir / "tokenizer")
    assert [config.hidden_size for config in new.ladder(tokenizer, "num_attention_heads=3")] == [96]


@pytest.mark.parametrize("budget_option", ["--flops=1e8", "--minutes=0.05"])
def test_training_takes_no_larger_micro_batches_than_were_timed(command, tmp_path, monkeypatch, budget_option):
    monkeypatch.setattr(budget, "SMALLEST_BATCH", 4 * 16)  # tokens of 4 sequences
    assert pretrain.main(command(budget_option, "--global_batch_size=24", "--precision=fp32")) == 0
    assert saved(tmp_path)[1]["micro_batch_size"] == 4


def test_options_need_not_fit_the_defaults_that_a_budget_replaces(command, tmp_path, capsys):
    assert pretrain.main(command("--flops=1e8", "--global_batch_size=4")) == 0
    assert saved(tmp_path)[1]["micro_batch_size"] == 4
    options = command("--flops=1e8", "--warmup_steps=1500", f"--output_dir={tmp_path / 'other'}")
    assert run_command(pretrain.main, options) == 2
    assert re.search(r"--warmup_steps \(1500\) .* exceed --max_steps \(\d{1,3}\)", capsys.readouterr().err)


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


def test_the_explanation_of_a_few_steps_promises_no_accuracy():
    assert "(usually within 0.1 for" in explained([(64, 2.7)])
    few = replace(training_of(64, 2.7), max_steps=dial.FEW_STEPS - 1)
    choice = dial.Choice({"minutes": 1.0}, {}, few.expected_loss, 60.0)
    shown = dial.explanation([few], budget.Text(10_000_000, 256, 3.0), choice, is_compiled=False)
    assert "2.70 nats per token on the validation text (after so few steps it can be off by 1)" in shown


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


@pytest.mark.parametrize(("fitting", "code"), [(1, 0), (0, 2)])
def test_models_that_do_not_fit_into_memory_are_not_chosen(command, tmp_path, monkeypatch, capsys, fitting, code):
    measure, models = dial.measure_speed, []

    def measured(model, **settings):
        models.append(model)
        if len(models) > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(model, **settings)

    monkeypatch.setattr(dial, "measure_speed", measured)
    assert run_command(pretrain.main, command("--minutes=0.1")) == code
    if code:
        assert "out of memory: 32 sequences of 16 tokens do not fit on" in capsys.readouterr().err
        assert not (tmp_path / "run" / "budget.json").exists()
    else:
        assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["num_hidden_layers"] == 1


def test_sequences_too_long_for_the_models_are_refused_before_anything_is_saved(command, tmp_path, capsys):
    too_short = "--config_overrides=max_position_embeddings=8"
    assert run_command(pretrain.main, command("--flops=1e8", too_short)) == 2
    assert "raise it with --config_overrides max_position_embeddings=16" in capsys.readouterr().err
    assert not (tmp_path / "run" / "budget.json").exists()
    assert pretrain.main(command("--flops=1e8", "--config_overrides=max_position_embeddings=16")) == 0


def test_several_processes_are_refused():
    with pytest.raises(ValueError, match="--flops works with one process, but 2 were started"):
        dial.check(dial.BudgetArguments(flops=1.0), {}, 2)
