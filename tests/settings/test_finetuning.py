"""The settings of fine-tuning: the length of a run, and values out of range."""

import pytest

from train.settings.finetuning import BaseArguments, TuneArguments


@pytest.mark.parametrize(
    ("settings", "steps", "every"),
    [
        ({}, 75, 8),  # 3 epochs of 200 / 8 steps
        ({"num_train_epochs": 0.5}, 13, 2),
        ({"max_steps": 7}, 7, 1),
        ({"max_steps": 100, "eval_steps": 30}, 100, 30),
    ],
)
def test_the_length_of_a_run_follows_from_its_examples(settings, steps, every):
    tuning = TuneArguments("run", global_batch_size=8, micro_batch_size=8, **settings)
    arguments = tuning.for_examples(200)
    assert (arguments.max_steps, arguments.eval_steps, arguments.save_steps) == (steps, every, every)
    assert arguments.num_warmup_steps == steps // 10
    assert (tuning.for_examples(999) == arguments) == ("max_steps" in settings)


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
