"""The settings of fine-tuning: what is chosen by the amount of data, and values out of range."""

import pytest

from hf_scratch_gpt import ScratchGPTConfig
from train.settings.defaults import learning_rates_for, tuning_rate_for
from train.settings.finetuning import BaseArguments, TuneArguments, TuneClassifierArguments

LAPTOP = ScratchGPTConfig.from_preset("laptop")


def chosen(num_examples, longest=200, num_processes=1, trainable="all", **settings):
    return TuneArguments("run", **settings).for_examples(num_examples, longest, LAPTOP, trainable, num_processes)


@pytest.mark.parametrize(
    ("settings", "steps", "every"),
    [
        ({"num_train_epochs": 3.0}, 75, 8),  # 3 epochs of 200 / 8 steps
        ({"num_train_epochs": 0.5}, 13, 2),
        ({"max_steps": 7}, 7, 1),
        ({"max_steps": 100, "eval_steps": 30}, 100, 30),
    ],
)
def test_the_length_of_a_run_follows_from_its_examples(settings, steps, every):
    settings |= {"global_batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3}
    arguments = chosen(200, **settings)
    assert (arguments.max_steps, arguments.eval_steps, arguments.save_steps) == (steps, every, every)
    assert arguments.num_warmup_steps == steps // 10
    assert (chosen(999, **settings) == arguments) == ("max_steps" in settings)


def test_options_that_are_given_are_kept():
    given = {"num_train_epochs": 2.0, "global_batch_size": 10, "micro_batch_size": 5, "learning_rate": 0.5}
    arguments = chosen(1100, **given)
    assert arguments.max_steps == 220
    assert {name: getattr(arguments, name) for name in given if name != "num_train_epochs"} == {
        name: value for name, value in given.items() if name != "num_train_epochs"
    }


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("num_examples", [1, 7, 200, 1100, 50_000])
def test_the_batch_fits_the_processes_and_the_memory(num_examples, num_processes):
    for longest in (10, 1024, 100_000):
        arguments = chosen(num_examples, longest, num_processes)
        arguments.check_processes(num_processes)
        assert arguments.micro_batch_size == 1 or arguments.micro_batch_size * longest <= 8192
    assert chosen(num_examples, micro_batch_size=3, num_processes=num_processes).check_processes(num_processes) is None


@pytest.mark.parametrize(("steps", "given", "expected"), [(50, None, 5), (5, None, 1), (500, None, 10), (50, 10, 10)])
def test_short_runs_log_more_often_unless_told_otherwise(steps, given, expected):
    assert chosen(100, max_steps=steps, logging_steps=given).logging_steps == expected


def test_a_batch_smaller_than_the_number_of_processes_is_refused():
    with pytest.raises(ValueError, match=r"--global_batch_size \(1\) must be a multiple of .* x processes \(2\) = 2"):
        chosen(100, global_batch_size=1, num_processes=2).check_processes(2)


@pytest.mark.parametrize(  # each the best of a sweep in benchmarks/README.md, or next to it
    ("num_examples", "batch", "rate", "steps"),
    [(200, 4, 5e-4, 150), (1_100, 16, 1e-3, 207), (50_000, 64, 4e-3, 2344)],
)
def test_the_defaults_are_those_of_the_sweep(num_examples, batch, rate, steps):
    arguments = chosen(num_examples)
    assert (arguments.optimizer, arguments.global_batch_size) == ("adamw", batch)
    assert (arguments.learning_rate, arguments.max_steps) == (rate, steps)


def test_a_classifier_is_trained_with_muon():
    for num_examples, rate, batch in ((200, 1e-3, 4), (1_100, 2e-3, 16)):
        arguments = TuneClassifierArguments("run").for_examples(num_examples, 50, LAPTOP)
        assert (arguments.optimizer, arguments.learning_rate, arguments.global_batch_size) == ("muon", rate, batch)


@pytest.mark.parametrize(
    ("optimizer", "trainable", "num_examples", "preset", "rate"),
    [
        ("adamw", "all", 1, "laptop", 5e-4),
        ("adamw", "all", 10**9, "laptop", 4e-3),
        ("adamw", "all", 1_100, "gpt2", 1.3e-4),
        ("adamw", "all", 1_100, "llama3-1b", 2.9e-5),
        ("muon", "all", 1_100, "gpt2", 5e-4),
        ("adamw", "lora", 1_100, "laptop", 1e-2),
        ("adamw", "lora", 50_000, "laptop", 1e-2),
        ("muon", "lora", 1_100, "laptop", 1e-2),
        ("adamw", "layers", 1_100, "laptop", 1e-3),
        ("muon", "head", 1_100, "laptop", 1e-2),
    ],
)
def test_the_rate_follows_from_the_model_and_the_rows(optimizer, trainable, num_examples, preset, rate):
    assert tuning_rate_for(optimizer, trainable, num_examples, ScratchGPTConfig.from_preset(preset)) == rate


@pytest.mark.parametrize(
    ("optimizer", "preset", "rate"),
    [
        ("muon", "tiny", (3.5e-2, 1.4e-2)),
        ("muon", "laptop", (2e-2, 8e-3)),
        ("muon", "gpt2", (1e-2, 4e-3)),
        ("adamw", "gpt2", (5e-4, None)),
    ],
)
def test_the_rates_of_pretraining_follow_from_the_width(optimizer, preset, rate):
    assert learning_rates_for(optimizer, ScratchGPTConfig.from_preset(preset)) == rate


def test_what_is_chosen_is_described():
    (line,) = chosen(1100, num_train_epochs=3.0, global_batch_size=16, learning_rate=2e-3).describe(1100, "rows")
    assert line == "1,100 rows x 3.01 epochs = 207 updates of 16 rows, peak learning rate 0.002 (adamw)"


def test_too_few_updates_are_a_warning():
    _, warning = chosen(1100, num_train_epochs=3.0, global_batch_size=128).describe(1100, "texts")
    assert warning.startswith("WARNING: 26 updates are too few to learn much: aim at 50 or more, with more texts, ")
    assert len(chosen(20).describe(20, "texts")) == 1 + (chosen(20).max_steps < 50)


def test_a_run_keeps_what_it_has_chosen():
    recorded = {"global_batch_size": 2, "micro_batch_size": 1, "learning_rate": 0.25, "max_steps": 9, "seed": 5}
    tuning = TuneArguments("run").continued(recorded)
    arguments = tuning.for_examples(1100, 200, LAPTOP)
    assert {name: getattr(arguments, name) for name in recorded} == recorded | {"seed": 0}
    given = TuneArguments("run", learning_rate=0.125, num_train_epochs=1.0).continued(recorded)
    arguments = given.for_examples(1100, 200, LAPTOP)
    assert (arguments.learning_rate, arguments.max_steps) == (0.125, 550)
    assert TuneArguments("run").continued({}) == TuneArguments("run")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TuneArguments, {"num_train_epochs": 0.0}, "--num_train_epochs is 0.0: it must be a positive number"),
        (TuneArguments, {"num_train_epochs": float("inf")}, "--num_train_epochs is inf"),
        (
            TuneArguments,
            {"global_batch_size": 6, "micro_batch_size": 4},
            r"--global_batch_size \(6\) must be a multiple",
        ),
        (TuneArguments, {"max_steps": 0}, "--max_steps is 0: it must be a number of at least 1"),
        (BaseArguments, {"trainable": "lora", "lora_dropout": 1.0}, "--lora_dropout is 1.0: it must be below 1"),
        (
            BaseArguments,
            {"trainable": "layers", "num_trainable_layers": 0},
            "--num_trainable_layers is 0: it must be a number of at least 1",
        ),
    ],
)
def test_settings_out_of_range(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind("x", **settings)
