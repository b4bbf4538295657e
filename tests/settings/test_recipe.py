"""Recipes: arguments in a file, checked as strictly as a command line."""

import re
from dataclasses import dataclass, fields
from typing import Literal

import pytest
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from train.settings.command import run_command
from train.settings.corpus import CorpusArguments, TokenizerArguments
from train.settings.recipe import option, option_list, parse_recipe, recipe_text
from train.settings.training import DataArguments, ModelArguments, TrainArguments

NEEDED = ["--output_dir=run"]


@dataclass
class Few:
    rate: float = option("A number.", 0.5)
    steps: int = option("A count.", 3)
    maybe: int | None = option("A count or none.")
    fast: bool = option("A switch.", False)
    packing: bool = option("A switch that is on.", True)
    mode: Literal["best", "last"] = option("A choice.", "best")
    texts: list[str] = option_list("Texts.")
    name: str = option("A text.", "plain")


@pytest.fixture
def read(tmp_path):
    """Parse a recipe with this text, and then a command line."""

    def read(text, *argv, kind=Few):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return parse_recipe([kind], [str(path), *argv])[0]

    return read


def test_types_come_from_the_fields(read):
    few = read("rate: 2e-5\nsteps: 7\nfast: yes\nmaybe: 4\nname: a b\n")
    assert few == Few(rate=2e-5, steps=7, fast=True, maybe=4, name="a b")


def test_the_command_line_wins(read):
    assert read("steps: 7\ntexts: [a, b]\n", "--steps", "8", "--texts", "c") == Few(steps=8, texts=["c"])


def test_later_recipes_win(tmp_path):
    for name, steps in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"steps: {steps}")
    assert parse_recipe([Few], [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])[0].steps == 2


@pytest.mark.parametrize(
    ("argv", "fast", "packing"),
    [
        ([], False, True),
        (["--fast", "--no_packing"], True, False),
        (["--fast", "true", "--packing", "no"], True, False),
        (["--fast=False", "--packing=True"], False, True),
        (["--no-packing"], False, False),
    ],
)
def test_switches_have_all_forms(argv, fast, packing):
    assert parse_recipe([Few], argv) == (Few(fast=fast, packing=packing),)


@pytest.mark.parametrize("value", ["~/a", "a"])
def test_a_tilde_in_other_options_is_text(value):
    assert parse_recipe([Few], ["--name", value])[0].name == value


@pytest.mark.parametrize("text", ["", "maybe: null\n", "maybe:\ntexts: []\n", "# nothing\n"])
def test_null_means_not_set(read, text):
    assert read(text) == Few()


@pytest.mark.parametrize("texts", [["a"], ["def f(", "- a b", ""], ["-x"], ["--steps=9"], ["ä 'q' \"r\""]])
def test_lists_become_several_values(read, texts):
    assert read(recipe_text(Few(texts=texts))).texts == texts


def test_text_that_looks_like_an_option_is_refused_among_several(read):
    with pytest.raises(ValueError, match="'-x' starts with '-'"):
        read("texts: [a, -x]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 1", r"recipe.yaml: unknown setting 'step': did you mean steps\?"),
        ("xyz: 1", "unknown setting 'xyz': --help"),
        ("steps: 10.5", "--steps: invalid int value: '10.5'"),
        ("steps: 1e3", "--steps: invalid int value: '1e3'"),
        ("steps: true", "steps does not take True"),
        ("name: no", "name does not take False; text needs quotation marks"),
        ("rate: fast", "--rate: invalid float value: 'fast'"),
        ("rate: [1, 2]", "rate takes one value"),
        ("rate: {a: 1}", "rate does not take"),
        ("fast: maybe", "--fast: Truthy value expected"),
        ("mode: worst", r"--mode: invalid choice: 'worst'"),
        ("steps: 1\nsteps: 2", "'steps' is set twice"),
        ("- 1", "must consist of lines 'name: value'"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_mistakes_in_a_recipe_are_named(read, text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--step=1"], r"unknown setting '--step=1': did you mean --steps\?"),
        (["--ste", "1"], "unknown setting '--ste'"),  # no abbreviations
        (["--steps", "x"], "--steps: invalid int value"),
        (["--steps", "1", "stray"], "unknown setting 'stray'"),
        (["recipe.json"], "neither a recipe"),
    ],
)
def test_mistakes_on_the_command_line_are_named(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe([Few], argv)


def test_an_args_file_beside_the_script_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "pretrain.args").write_text("--steps 99")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "pretrain.py")])
    assert parse_recipe([Few])[0].steps == 3


def test_what_is_written_is_read_back(read):
    arguments = TrainArguments(
        "run", learning_rate=2e-5, sample_prompts=["a", "b: c"], lr_scheduler_type="wsd", decay_fraction=0.1
    )
    assert read(recipe_text(arguments), kind=TrainArguments) == arguments


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--global_batch_size=100"],
            r"--global_batch_size \(100\) must be a multiple of --micro_batch_size \(8\) x processes \(1\)",
        ),
        (["--micro_batch_size=0"], "--micro_batch_size is 0: it must be a number of at least 1"),
        (["--learning_rate=-1"], "--learning_rate is -1.0"),
        (["--learning_rate=0"], "learning rate of 0"),
        (["--learning_rate=nan"], "--learning_rate is nan"),
        (["--learning_rate=inf"], "--learning_rate is inf"),
        (["--adam_beta2=1"], "--adam_beta2 is 1.0: it must be at most"),
        (
            ["--matrix_learning_rate=0.1", "--optimizer=adamw"],
            r"--matrix_learning_rate \(0.1\) requires --optimizer muon",
        ),
        (["--decay_fraction=0.1"], r"--decay_fraction \(0.1\) requires --lr_scheduler_type wsd"),
        (["--no_reshard_after_forward"], r"--reshard_after_forward \(False\) requires --dp_shard_size above 1"),
        (["--max_steps=10", "--warmup_steps=11"], r"--warmup_steps \(11\).*--max_steps \(10\)"),
        (["--max_steps=10", "--warmup_steps=6", "--lr_scheduler_type=wsd", "--decay_fraction=0.5"], r"\(5 steps\)"),
        (["--max_steps=10", "--warmup_steps=9", "--lr_scheduler_type=wsd"], r"\(2 steps\)"),
        (["--save_total_limit=0"], "--save_total_limit is 0"),
        (["--optimizer=sgd"], "--optimizer: invalid choice: 'sgd'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe([TrainArguments], [*NEEDED, *argv])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--text", "a", "--dataset_name", "b"], r"--text \(a\) and --dataset_name \(b\) exclude each other"),
        (["--streaming"], r"--streaming \(True\) requires --dataset_name"),
        (["--dataset_config_name", "en"], r"--dataset_config_name \(en\) requires --dataset_name"),
        (["--validation_fraction", "1"], "between 0 and 1"),
    ],
)
def test_corpora_that_contradict_are_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe([CorpusArguments], argv)


def test_a_batch_is_shared_equally_by_all_processes():
    arguments = TrainArguments("run", global_batch_size=24, micro_batch_size=8)
    arguments.check_processes(3)
    with pytest.raises(ValueError, match=r"\(24\).*\(8\) x processes \(2\) = 16"):
        arguments.check_processes(2)


def test_missing_settings_are_named():
    with pytest.raises(ValueError, match="required: --output_dir"):
        parse_recipe([TrainArguments], [])


def test_pretrain_has_few_options_and_each_is_described():
    entries = [entry for kind in (ModelArguments, DataArguments, TrainArguments) for entry in fields(kind)]
    assert len(entries) <= 40
    assert all(entry.metadata["help"].endswith(".") for entry in entries)
    names = [entry.name for kind in (CorpusArguments, TokenizerArguments) for entry in fields(kind)]
    assert not set(names) & {entry.name for entry in entries}


def test_help_says_each_default_once(capsys):
    with pytest.raises(SystemExit) as end:
        parse_recipe([TrainArguments], ["--help"], description="Trains.")
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert "[recipe.yaml ...] [--name value ...]" in text
    assert "(default: 1000)" in text
    assert text.count("--max_steps MAX_STEPS") == 1
    assert "--max-steps" not in text
    assert re.search(r"--no_reshard_after_forward\s+Set --reshard_after_forward to False\.\n", text)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("global_batch_size is wrong"), "global_batch_size is wrong"),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), "No such file or directory: /a/b"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (SafetensorError("No space left on device"), "No space left on device"),
        (StrictDataclassError("hidden_size must be int"), "hidden_size must be int"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(capsys, error, message):
    def main(argv):
        raise error

    assert run_command(main, []) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda argv: 1 // 0, [])


def test_an_interrupt_says_how_to_continue(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert run_command(main, []) == 130
    assert "run the same command again to continue" in capsys.readouterr().err


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (130, 130)])
def test_exit_codes_pass_through(result, code):
    assert run_command(lambda argv: result, []) == code


@pytest.mark.parametrize(
    ("max_steps", "given", "steps"), [(5, None, 0), (300, None, 30), (9000, None, 100), (50, 7, 7)]
)
def test_the_warm_up_follows_from_the_length_of_the_run(max_steps, given, steps):
    assert TrainArguments("run", max_steps=max_steps, warmup_steps=given).num_warmup_steps == steps
