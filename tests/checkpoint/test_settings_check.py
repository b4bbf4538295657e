"""What is said when a run would continue with other settings: no fingerprints, and only remedies that work."""

import pytest

from train.checkpoint.manifest import versions
from train.checkpoint.settings_check import check_settings
from train.settings.training import TrainArguments, check_allow_change

ONE, OTHER = "1" * 64, "2" * 64
PRETRAINED = {"data": {"block_size": 16, "tokens_sha256": {"train": ONE, "validation": ONE}}, "seed": 0}
TUNED = {"data": {"train": ONE, "validation": ONE}, "base": ONE, "trainable": "all", "lora_r": None, "seed": 0}


def refusal(saved, current, allow_change=()):
    manifest = {"settings": saved, "num_processes": 1, "versions": versions()}
    with pytest.raises(ValueError, match="was started with other settings") as error:
        check_settings("run", manifest, current, allow_change, num_processes=1)
    return str(error.value)


def test_other_data_is_named_without_fingerprints():
    other = {"data": PRETRAINED["data"] | {"tokens_sha256": {"train": OTHER, "validation": ONE}}, "seed": 0}
    message = refusal(PRETRAINED, other)
    assert "\n  the training data: other contents than before\n" in message
    assert OTHER not in message
    assert message.endswith("or allow the change with --allow_change data.")


def test_another_kind_of_run_is_told_part_by_part():
    message = refusal(PRETRAINED, TUNED)
    assert "\n  data.block_size: was 16, now not set\n" in message
    assert "\n  the training rows: not there before\n" in message
    assert "\n  the training data: not there any more\n" in message
    assert "{" not in message
    assert ONE not in message


@pytest.mark.parametrize(("name", "value"), [("trainable", "lora"), ("base", OTHER), ("lora_r", 4)])
def test_only_changes_that_are_allowed_are_offered(name, value):
    message = refusal(TUNED, TUNED | {name: value})
    assert "--allow_change" not in message
    assert message.endswith("start a new run with another --output_dir.")
    with pytest.raises(ValueError, match=f"unknown setting '{name}'"):
        check_allow_change([name], TrainArguments)


def test_many_differences_are_counted():
    message = refusal({str(number): 0 for number in range(100)}, {str(number): 1 for number in range(100)})
    assert message.count("was 0, now 1") == 10
    assert "and 90 more" in message
