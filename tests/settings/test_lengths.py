"""Batches and phases of the schedule must fit together."""

import pytest

from train.settings.recipe import parse_recipe
from train.settings.training import TrainArguments


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--global_batch_size=100"],
            r"--global_batch_size \(100\) must be a multiple of --micro_batch_size \(8\) x processes \(1\)",
        ),
        (["--max_steps=10", "--warmup_steps=11"], r"--warmup_steps \(11\).*--max_steps \(10\)"),
        (["--max_steps=10", "--warmup_steps=6", "--lr_scheduler_type=wsd", "--decay_fraction=0.5"], r"\(5 steps\)"),
        (["--max_steps=10", "--warmup_steps=9", "--lr_scheduler_type=wsd"], r"\(2 steps\)"),
    ],
)
def test_lengths_that_do_not_fit_together_are_refused(argv, message):
    (arguments,) = parse_recipe([TrainArguments], ["--output_dir=run", *argv])
    with pytest.raises(ValueError, match=message):
        arguments.check_lengths()


def test_a_batch_is_shared_equally_by_all_processes():
    arguments = TrainArguments("run", global_batch_size=24, micro_batch_size=8)
    arguments.check_processes(3)
    with pytest.raises(ValueError, match=r"\(24\).*\(8\) x processes \(2\) = 16"):
        arguments.check_processes(2)
