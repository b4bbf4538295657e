"""The console command: its list, what it runs, and what pip installs for it."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from train import cli
from train.cli import early

REPOSITORY = Path(__file__).parents[2]
TRAIN = REPOSITORY / "train"


def test_every_file_of_train_is_a_listed_command():
    assert set(cli.COMMANDS) == {path.stem for path in TRAIN.glob("*.py")} - {"__init__", "__main__"}


def test_help_lists_the_commands_in_order_without_importing_torch():
    program = (
        "import sys; from train.cli import main; main(['--help']); "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, text=True, capture_output=True, check=True)
    listed = [line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.parametrize("start", ["console", "module"])
def test_help_of_a_command_does_not_import_torch(command, start):
    """As `scratch-gpt COMMAND --help` and as `python -m train.COMMAND --help`; it is the help of the whole command."""
    if start == "console":
        program = f"from train.cli import main; main([{command!r}, '--help'], package='train')"
        arguments = ["-c", program]
    else:
        arguments = ["-m", f"train.{command}", "--help"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONPROFILEIMPORTTIME": "1"}
    shown = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, text=True, capture_output=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "train.settings.recipe" in imported
    assert not imported & {"torch", "transformers", "huggingface_hub", "numpy"}
    assert "examples:\n" in shown.stdout


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_early_help_is_that_of_the_command(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"scratch-gpt {command}"])
    with pytest.raises(SystemExit):
        early.check_command_line("train", command, ["--help"])
    early_help = capsys.readouterr().out
    with pytest.raises(SystemExit):
        importlib.import_module(f"train.{command}").main(["--help"])
    assert capsys.readouterr().out == early_help


def test_a_mistake_is_answered_before_torch_is_imported():
    program = (
        "import sys; from train.cli import main; code = main(['pretrain', '--lr', '1'], package='train'); "
        "assert not {'torch', 'transformers'} & sys.modules.keys(); sys.exit(code)"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, text=True, capture_output=True)
    assert (shown.returncode, shown.stderr) == (2, "error: unknown setting --lr: here it is called --learning_rate.\n")


def test_a_package_is_bare_only_during_the_check(tmp_path, monkeypatch):
    """A stand-in for `hf_scratch_gpt.training`, whose parent imports torch."""
    (tmp_path / "heavy_parent" / "training").mkdir(parents=True)
    (tmp_path / "heavy_parent" / "__init__.py").write_text("whole = True\n")
    (tmp_path / "heavy_parent" / "training" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with early.bare_parents("heavy_parent.training"):
        importlib.import_module("heavy_parent.training")
        assert not hasattr(sys.modules["heavy_parent"], "whole")
    assert importlib.import_module("heavy_parent").whole
    assert "heavy_parent.training" not in sys.modules
    del sys.modules["heavy_parent"]


def test_a_command_gets_its_arguments_and_its_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scratch-gpt"])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train-tokenizer", "--help"], package="train")
    assert stopped.value.code == 0
    assert "usage: scratch-gpt train_tokenizer" in capsys.readouterr().out


def test_a_mistake_in_a_command_is_one_line_and_exit_code_2(capsys):
    assert cli.main(["pull", "--modell=x"], package="train") == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("name", "message"),
    [("pretrian", "unknown command 'pretrian': did you mean pretrain?"), ("xyz", "scratch-gpt --help lists the comma")],
)
def test_an_unknown_command_gets_the_nearest_one(capsys, name, message):
    assert cli.main([name]) == 2
    assert message in capsys.readouterr().err


def test_without_the_training_libraries_it_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # its import fails
    for name in ("train.pull", "train.hub.client", "train.hub.download"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert cli.main(["pull", "--model", "alice/tiny"], package="train") == 2
    assert 'pip install "hf_scratch_gpt[train]"' in capsys.readouterr().err


def test_completion_offers_all_commands():
    script = (
        f'eval "$({sys.executable} -c "from train.cli import main; main([\'--completion\'])")"; complete -p scratch-gpt'
    )
    shown = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, text=True, capture_output=True, check=True).stdout
    assert " ".join(cli.COMMANDS) in shown


def test_python_m_train_is_the_same():
    command = [sys.executable, "-m", "train", "--version"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    shown = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, check=True).stdout
    assert shown.startswith("scratch-gpt ")


def test_the_wheel_carries_every_folder():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(TRAIN).as_posix() for path in TRAIN.rglob("__init__.py")}
    wanted = {f"hf_scratch_gpt.training.{folder.replace('/', '.')}".removesuffix("..") for folder in folders}
    package = {path.parent.name for path in (REPOSITORY / "hf_scratch_gpt").glob("*/__init__.py")}
    wanted |= {f"hf_scratch_gpt.{name}" for name in package}
    assert set(settings["packages"]) == {"hf_scratch_gpt", "scratch_gpt_cli", *wanted}
