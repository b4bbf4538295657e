"""Options of earlier versions: the error names the new option."""

import importlib
import re
from pathlib import Path

import pytest

from train.settings.command import run_command
from train.settings.recipe import parse_recipe
from train.settings.renamed import ANSWERS, HABITS, OLD_VALUES, RENAMED, RENAMED_VALUES
from train.settings.training import TrainArguments

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
COMMANDS = (
    *("quickstart", "train_tokenizer", "prepare_data", "pretrain", "finetune", "finetune_classifier", "evaluate"),
    *("generate", "chat", "publish", "pull", "plan", "report", "rollback"),
)


def main_of(command):
    return importlib.import_module(f"train.{command}").main


def renamed_in(command, capsys):
    """Old name -> new name, for the options that `--help` of a command lists."""
    with pytest.raises(SystemExit):
        main_of(command)(["--help"])
    options = set(re.findall(r"^  --(\w+)", capsys.readouterr().out, re.MULTILINE))
    assert options, "the help has another form"
    found = {old: next((new for new in news if new in options), None) for old, news in RENAMED.items()}
    return {old: new for old, new in found.items() if new and old not in options}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_old_name_on_the_command_line_is_answered_with_the_new_one(command, capsys):
    for old, new in renamed_in(command, capsys).items():
        for argv in ([f"--{old}=1"], [f"--{old}", "1"]):
            assert run_command(main_of(command), argv) == 2
            expected = f"error: --{old} has been renamed to --{new}{RENAMED_VALUES.get(new, '')}.\n"
            assert capsys.readouterr().err == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_an_old_name_in_a_recipe_is_answered_with_the_new_one(command, capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for old, new in renamed_in(command, capsys).items():
        recipe.write_text(f"{old}: 1\n")
        assert run_command(main_of(command), [str(recipe)]) == 2
        expected = f"error: recipe {recipe}: {old} has been renamed to {new}{RENAMED_VALUES.get(new, '')}.\n"
        assert capsys.readouterr().err == expected


def test_some_command_knows_every_new_name(capsys):
    used = {pair for command in COMMANDS for pair in renamed_in(command, capsys).items()}
    assert used == {(old, new) for old, news in RENAMED.items() for new in news}
    assert RENAMED_VALUES.keys() <= {new for _, new in used}


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("pretrain", "lr", "unknown setting --lr: here it is called --learning_rate."),
        ("pretrain", "epochs", "here it is called --max_steps"),
        ("finetune", "epochs", "here it is called --num_train_epochs"),
        ("pretrain", "resume", "run the same command again"),
        ("generate", "max_tokens", "here it is called --max_new_tokens"),
        ("finetune", "push_to_hub", "run scratch-gpt publish"),
        ("pretrain", "n_layer", "--config_overrides"),
    ],
)
def test_names_of_other_tools_are_answered(command, name, message, capsys):
    assert run_command(main_of(command), [f"--{name}", "1"]) == 2
    assert message in capsys.readouterr().err


def test_names_of_other_tools_are_no_options_of_ours(capsys):
    options = set()
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main_of(command)(["--help"])
        options |= set(re.findall(r"^  --(\w+)", capsys.readouterr().out, re.MULTILINE))
    assert {new for news in HABITS.values() for new in news} <= options
    assert not set(ANSWERS) & set(RENAMED)


@pytest.mark.parametrize(("name", "old", "new"), [(name, old, new) for (name, old), new in OLD_VALUES.items()])
def test_an_old_value_is_answered_with_the_new_one(name, old, new, capsys):
    assert run_command(main_of("finetune"), [f"--{name}", old]) == 2
    assert f"; {old!r} is now called {new!r}." in capsys.readouterr().err


def test_a_value_that_looks_like_an_old_name_is_text():
    """With a space in it, argparse takes it for a value."""
    prompt = "--data = [1, 2]"
    assert parse_recipe([TrainArguments], ["--output_dir=a", "--sample_prompts", prompt])[0].sample_prompts == [prompt]


def test_contributing_has_the_same_table():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    _, heading, rest = text.partition("Renamed options\n")
    assert heading, "CONTRIBUTING.md has no heading 'Renamed options'"
    table: dict[str, set[str]] = {}
    for old, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", re.split(r"\n#", rest)[0], re.MULTILINE):
        new = re.findall(r"`(\w+)`", cells.partition("|")[0])
        table.setdefault(old, set()).update(set(new) - {"true", "false"})
    assert table == {old: set(news) for old, news in RENAMED.items()}
