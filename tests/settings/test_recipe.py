"""Recipes: arguments in a file, checked as strictly as a command line."""

import re
from dataclasses import dataclass, fields
from typing import Literal

import pytest
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hf_scratch_gpt import PRESETS
from train.settings.command import run_command
from train.settings.corpus import CorpusArguments, TokenizerArguments
from train.settings.finetuning import BaseArguments, ConversationArguments, LabelArguments, TuneArguments
from train.settings.recipe import option, option_list, parse_recipe, recipe_text, required
from train.settings.training import PRESET_NAMES, DataArguments, ModelArguments, TrainArguments

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


def test_the_last_of_several_values_wins():
    """As scripts rely on it that append their own arguments."""
    assert parse_recipe([Few], ["--steps", "1", "--steps=2", "--fast", "--no_fast"])[0] == Few(steps=2)


def test_a_list_given_twice_has_the_values_of_both(read):
    assert parse_recipe([Few], ["--texts", "a", "b", "--texts=c"])[0].texts == ["a", "b", "c"]
    assert read("texts: [x]", "--texts", "a", "--texts", "b").texts == ["a", "b"]  # not those of the recipe
    assert read("texts: [x]", "--texts", "a", "--texts", "null").texts == []
    assert read("texts: [x]", "--texts", "a", "null", "--texts", "b", "c").texts == ["b", "c"]


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


def test_text_that_looks_like_an_option_is_text_in_a_recipe(read):
    assert read("texts: [a, -x, --steps=9]").texts == ["a", "-x", "--steps=9"]


@pytest.mark.parametrize(
    ("line", "argv", "expected"),
    [
        ("maybe: 4", ["--maybe", "null"], Few()),
        ("steps: 7", ["--steps=null"], Few()),
        ("fast: true", ["--fast", "null"], Few()),
        ("mode: last", ["--mode", "null"], Few()),
        ("texts: [a, b]", ["--texts", "null"], Few()),
        ("name: x", ["--name", "null"], Few()),
        ("maybe: 4", ["--maybe", "null", "--steps", "4"], Few(steps=4)),
    ],
)
def test_the_command_line_can_remove_what_a_recipe_sets(read, line, argv, expected):
    assert read(line, *argv) == expected


def test_one_of_two_settings_that_exclude_each_other_can_be_removed(read):
    recipe = "output_dir: run\nnum_train_epochs: 2\n"
    with pytest.raises(ValueError, match="exclude each other"):
        read(recipe, "--max_steps", "7", kind=TuneArguments)
    assert read(recipe, "--max_steps", "7", "--num_train_epochs", "null", kind=TuneArguments).max_steps == 7


def test_without_a_recipe_null_is_a_text():
    assert parse_recipe([Few], ["--name", "null", "--texts", "null"]) == (Few(name="null", texts=["null"]),)


def test_a_required_setting_cannot_be_removed(read):
    with pytest.raises(ValueError, match="required: --output_dir"):
        read("output_dir: run", "--output_dir", "null", kind=TrainArguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 1", r"recipe.yaml: unknown setting step: did you mean steps\?"),
        ("xyz: 1", "unknown setting xyz: --help"),
        ("steps: 10.5", r"recipe.yaml: steps takes a whole number, not '10.5'\."),
        ("steps: 1e3", "steps takes a whole number, not '1e3'"),
        ("steps: 9223372036854775808", "steps is 9223372036854775808: it must be at most 9223372036854775807"),
        ("steps: -99999999999999999999", "steps is -99999999999999999999: it must be at least -9223372036854775807"),
        ("rate: .nan", "rate is nan: it must be a finite number"),
        ("rate: 1e999", "rate is 1e999: it must be a finite number"),
        ("maybe: [1]", "maybe takes one value"),
        ("steps: true", "steps does not take True"),
        ("name: no", "name does not take False; text needs quotation marks"),
        ("rate: fast", "rate takes a number, not 'fast'"),
        ("rate: [1, 2]", "rate takes one value"),
        ("rate: {a: 1}", "rate does not take"),
        ("fast: maybe", "fast takes true or false, not 'maybe'"),
        ("mode: worst", "mode takes best or last, not 'worst'"),
        ("texts: [a, {b: c}]", r"texts does not take \{'b': 'c'\}"),
        ("texts: [a, null]", "texts does not take None"),
        ("? [a]\n: 1", "a name must be a word"),
        ("a: &x 1\nb: *x", r"it has an alias \(\*x\)"),
        ("texts: " + "[" * 50_000, "nested too deeply"),
        ("name: " + "x" * 2_000_000, r"has 2,000,006 bytes: a recipe is a list of settings"),
        ("steps: " + "x" * 900_000, r"steps takes a whole number, not 'x{79} \.\.\."),
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
        (["--step=1"], r"unknown setting --step: did you mean --steps\?"),
        (["--ste", "1"], "unknown setting --ste:"),  # no abbreviations
        (["-s", "1"], "unknown setting -s: options have the form --name value"),
        (["--steps", "x"], r"^--steps takes a whole number, not 'x'\.$"),
        (["--rate", "nan"], "--rate is nan: it must be a finite number"),
        (["--rate=-inf"], "--rate is -inf: it must be"),
        (["--steps"], "--steps needs a value"),
        (["--texts", "--steps", "1"], "--texts needs a value"),
        (["--texts", "-x"], "--texts needs a value; one that begins with a dash is written --texts=VALUE"),
        (["--no_packing=true"], "--no_packing takes no value: write --packing followed by true or false"),
        (["--name", "two", "words"], r"'words' belongs to no option: .* quotation marks, --name \"\.\.\.\""),
        (["--steps", "1", "recipe.yaml"], "recipe recipe.yaml must come before the options"),
        (["recipe.json"], "neither a recipe"),
        (["nowhere.yaml"], r"recipe nowhere.yaml does not exist"),
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
        (["--micro_batch_size=0"], "--micro_batch_size is 0: it must be a number of at least 1"),
        (["--learning_rate=-1"], "--learning_rate is -1.0"),
        (["--learning_rate=0"], "learning rate of 0"),
        (["--learning_rate=nan"], "--learning_rate is nan: it must be a finite number"),
        (["--learning_rate=inf"], "--learning_rate is inf"),
        (["--adam_beta2=1"], "--adam_beta2 is 1.0: it must be at most"),
        (
            ["--muon_momentum=0.9", "--optimizer=adamw"],
            r"--muon_momentum \(0.9\) requires --optimizer muon",
        ),
        (
            ["--matrix_learning_rate=0.1", "--optimizer=adamw"],
            r"--matrix_learning_rate \(0.1\) requires --optimizer muon",
        ),
        (["--decay_fraction=0.1"], r"--decay_fraction \(0.1\) requires --lr_scheduler_type wsd"),
        (["--no_reshard_after_forward"], r"--reshard_after_forward \(False\) requires --dp_shard_size above 1"),
        (["--save_total_limit=0"], "--save_total_limit is 0"),
        (["--optimizer=sgd"], "--optimizer takes muon or adamw, not 'sgd'"),
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


def test_missing_settings_are_named_and_described():
    with pytest.raises(ValueError, match="required: ") as error:
        parse_recipe([ModelArguments, DataArguments, TrainArguments], [], description="Does.\n\n    pretrain --now\n")
    first, *lines, example = str(error.value).splitlines()
    assert first == "required: --config or --model, --data_dir, --output_dir."
    assert lines[1] == "  --data_dir           Folder written by scratch-gpt prepare_data."
    assert example == "Example: pretrain --now"


@pytest.mark.parametrize("rows", [ConversationArguments, LabelArguments])
def test_missing_rows_are_named_with_the_other_missing_settings(rows):
    with pytest.raises(ValueError, match="required: --model, --train_file or --dataset_name, --output_dir") as error:
        parse_recipe([BaseArguments, rows, TuneArguments], [])
    assert "Tables to train on" in str(error.value)
    needed = ["--model", "m", "--output_dir", "run"]
    with pytest.raises(ValueError, match="required: --train_file or --dataset_name"):
        parse_recipe([BaseArguments, rows, TuneArguments], needed)
    _, found, _ = parse_recipe([BaseArguments, rows, TuneArguments], [*needed, "--dataset_name", "d"])
    assert (found.train_file, found.dataset_name) == ([], "d")


def test_a_setting_can_be_required_unless_another_is_given():
    @dataclass
    class Source:
        model: str | None = option("A model.")
        config: str | None = required("A shape.", unless=("model",))

    assert parse_recipe([Source], ["--model", "m"]) == (Source(model="m"),)
    assert parse_recipe([Source], ["--config", "c"]) == (Source(config="c"),)
    with pytest.raises(ValueError, match="required: --config or --model"):
        parse_recipe([Source], [])


def test_a_recipe_with_100_000_entries_is_refused_at_once(read):
    with pytest.raises(ValueError, match="unknown setting"):
        read("".join(f"a{i}: 1\n" for i in range(90_000)))


def test_a_misspelt_recipe_gets_the_nearest_file(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(ValueError, match=r"recipe \S+/recipy.yaml does not exist: did you mean \S+/recipe.yaml\?"):
        parse_recipe([Few], [str(tmp_path / "recipy.yaml")])


def test_the_named_presets_are_those_of_the_package():
    assert tuple(PRESETS) == PRESET_NAMES


def test_pretrain_has_few_options_and_each_is_described():
    entries = [entry for kind in (ModelArguments, DataArguments, TrainArguments) for entry in fields(kind)]
    assert len(entries) <= 42
    assert all(entry.metadata["help"].endswith(".") for entry in entries)
    names = [entry.name for kind in (CorpusArguments, TokenizerArguments) for entry in fields(kind)]
    assert not set(names) & {entry.name for entry in entries}


def test_help_says_each_default_once(capsys):
    with pytest.raises(SystemExit) as end:
        parse_recipe([TrainArguments], ["--help"], description="Trains.")
    shown = capsys.readouterr().out
    text = " ".join(shown.split())
    assert end.value.code == 0
    assert "[recipe.yaml ...] [--name value ...]" in text
    assert "(default: 1000)" in text
    assert text.count("--max_steps N") == 1
    assert "--max-steps" not in text
    assert "--no_" not in text
    assert "--reshard_after_forward {true,false}" in text
    assert "(default: true)" in text
    assert text.index("length and batch:") < text.index("optimizer:") < text.index("logging:")
    assert not re.search(r"^options:", shown, re.MULTILINE)  # each option has a group


def test_help_ends_with_the_examples(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(
            [Few], ["--help"], description="Does it.\n\n    it --now\n    it --later\n\nMore about 100 % of it.\n"
        )
    text = capsys.readouterr().out
    assert text.index("Does it.") < text.index("More about 100 % of it.") < text.index("--rate X")
    assert text.endswith("examples:\n  it --now\n  it --later\n")


def test_the_options_of_a_short_command_are_not_grouped(capsys):
    with pytest.raises(SystemExit):
        parse_recipe([Few], ["--help"])
    assert re.findall(r"^\S+:", capsys.readouterr().out, re.MULTILINE) == ["usage:", "options:"]


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


def test_a_text_without_its_option_gets_the_option():
    @dataclass
    class Asked:
        model: str = option("A model.", "m")
        prompt: str = option("A text.", "")

    with pytest.raises(ValueError, match=r"^'Once upon' belongs to no option: did you mean --prompt 'Once upon'\?$"):
        parse_recipe([Asked], ["--model", "x", "Once upon"])
