"""`~` in a path stands for the home folder, on the command line and in a recipe."""

from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from train.quickstart import QuickstartArguments
from train.settings.corpus import CorpusArguments
from train.settings.finetuning import BaseArguments, ConversationArguments, LabelArguments, TuneArguments
from train.settings.recipe import PATH, option, option_list, parse_recipe, required
from train.settings.training import DataArguments, ModelArguments, TrainArguments


@dataclass
class Paths:
    output_dir: str = required("A folder.", is_path=True)
    model: str | None = option("A folder or a name.", is_path=True)
    text: list[str] = option_list("Files.", is_path=True)
    name: str = option("Not a path.", "")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    return tmp_path


def test_a_tilde_is_expanded_on_the_command_line(home):
    (paths,) = parse_recipe([Paths], ["--output_dir=~/run", "--text", "~/a", "b", "~", "--name", "~/a"])
    assert paths == Paths(str(home / "run"), text=[str(home / "a"), "b", str(home)], name="~/a")


def test_a_tilde_is_expanded_in_a_recipe_and_in_its_path(home):
    (home / "recipe.yaml").write_text("output_dir: ~/run\nmodel: ~/model\ntext: [~/a, a~b]\n")
    (paths,) = parse_recipe([Paths], ["~/recipe.yaml"])
    assert paths == Paths(str(home / "run"), str(home / "model"), [str(home / "a"), "a~b"])


def test_a_name_on_the_hub_stays_as_it_is(home):
    assert parse_recipe([Paths], ["--output_dir=run", "--model=alice/tiny@main"])[0].model == "alice/tiny@main"


def test_help_shows_paths_as_such(capsys):
    with pytest.raises(SystemExit):
        parse_recipe([Paths], ["--help"])
    assert "--output_dir PATH" in capsys.readouterr().out


TRAINING = (ModelArguments, DataArguments, TrainArguments, TuneArguments)
KINDS = (*TRAINING, BaseArguments, ConversationArguments, LabelArguments, CorpusArguments, QuickstartArguments)
PATHS = {
    *("config", "data_dir", "output_dir", "model", "tokenizer", "dataset_name", "text", "validation_text"),
    *("train_file", "validation_file", "test_file"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_path_options_are_marked(kind):
    marked = {entry.name for entry in fields(kind) if entry.metadata.get("metavar") == PATH}
    assert marked == PATHS & {entry.name for entry in fields(kind)}


def test_a_path_that_is_not_a_string_is_kept():
    assert parse_recipe([Paths], [f"--output_dir={Path('a') / 'b'}"])[0].output_dir == str(Path("a") / "b")
