"""The console command: its list, what it runs, and what pip installs for it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from train import cli

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
    assert cli.main(["pull", "--help"], package="train") == 2
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


def test_the_wheel_carries_every_folder_of_train():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(TRAIN).as_posix() for path in TRAIN.rglob("__init__.py")}
    wanted = {f"hf_scratch_gpt.training.{folder.replace('/', '.')}".removesuffix("..") for folder in folders}
    assert set(settings["packages"]) == {"hf_scratch_gpt", "scratch_gpt_cli", *wanted}
