"""--torch_compile: when "auto" compiles, and that a continued run decides as before."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from train import pretrain
from train.checkpoint.recorded import recorded_settings
from train.loop import compilation
from train.loop import run as run_module
from train.loop.compilation import PAYS_FROM, cache_folder, compiles, planned_seconds
from train.settings.recipe import parse_recipe
from train.settings.training import TrainArguments

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compiler(monkeypatch):
    """The machine has a compiler."""
    monkeypatch.setattr(compilation, "can_compile", lambda _device: True)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("asked", "device", "seconds", "options", "expected"),
    [
        ("auto", "cuda", PAYS_FROM["cuda"], {}, True),
        ("auto", "cuda", PAYS_FROM["cuda"] - 1, {}, False),
        ("auto", "cuda", 1e6, {"is_split": True}, False),
        ("auto", "cuda", 1e6, {"num_processes": 2}, True),
        ("auto", "cpu", PAYS_FROM["cpu"], {}, True),
        ("auto", "cpu", PAYS_FROM["cpu"] - 1, {}, False),
        ("auto", "cpu", 1e6, {"num_processes": 2}, False),
        ("auto", "mps", 1e6, {}, False),
        ("true", "cpu", 0, {}, True),
        ("false", "cuda", 1e6, {}, False),
    ],
)
def test_auto_compiles_where_it_pays(asked, device, seconds, options, expected):
    assert compiles(asked, torch.device(device), seconds, **options) == expected


@pytest.mark.parametrize(
    ("path", "expected"), [("", False), pytest.param(None, shutil.which("g++") is not None, marks=pytest.mark.slow)]
)
def test_a_compiler_is_looked_for(tmp_path, path, expected):
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    if path is not None:
        environment |= {"PATH": path, "CXX": ""}
    script = "import torch; from train.loop.compilation import can_compile; print(can_compile(torch.device('cpu')))"
    result = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == f"{expected}\n", result.stderr


def test_auto_asks_for_a_compiler(monkeypatch):
    monkeypatch.setattr(compilation, "can_compile", lambda _device: False)
    assert not compiles("auto", torch.device("cpu"), 1e6)


def test_without_a_compiler_compiling_is_refused(recipe, monkeypatch):
    monkeypatch.setattr(compilation, "can_compile", lambda _device: False)
    with pytest.raises(
        ValueError, match=r"true: torch.compile does not work on this machine.* or add --torch_compile fa"
    ):
        pretrain.main([recipe(), "--torch_compile"])
    monkeypatch.setattr(run_module, "recorded_settings", lambda _folder: {"torch_compile": True})
    with pytest.raises(ValueError, match=r"or add --torch_compile false --allow_change torch_compile\.$"):
        pretrain.main([recipe()])


def test_a_compiled_run_that_is_continued_in_parts_is_not_compiled(monkeypatch):
    """Then the changed setting is refused like others, with --allow_change as the remedy."""
    monkeypatch.setattr(run_module, "recorded_settings", lambda _folder: {"torch_compile": True})
    monkeypatch.setattr(run_module, "run_on_main", lambda _accelerator, function: function())
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    arguments = TrainArguments("run", dp_shard_size=2)
    found = run_module.with_compilation(arguments, accelerator, math.inf, SimpleNamespace(mean_length=16))
    assert found.torch_compile == "false"


def test_an_unknown_speed_plans_no_time():
    assert planned_seconds(1e9, math.inf, torch.device("mps")) == 0
    assert planned_seconds(18e6, 1e6, torch.device("cuda")) == pytest.approx(100)
    assert planned_seconds(40e6, 1e6, torch.device("cpu")) == pytest.approx(100)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, "true"), (False, "false"), ("auto", "auto"), ("true", "true"), (None, "auto")],
)
def test_booleans_of_older_recipes_are_read(tmp_path, value, expected):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "x", "torch_compile": value}))
    assert parse_recipe([TrainArguments], [str(path)])[0].torch_compile == expected
    assert parse_recipe([TrainArguments], ["--output_dir=x", "--torch_compile=True"])[0].torch_compile == "true"


@pytest.mark.parametrize("name", ["torch_compile", "gradient_checkpointing"])
def test_the_bare_option_means_true(name):
    for argument, expected in ((f"--{name}", "true"), (f"--no_{name}", "false")):
        assert getattr(parse_recipe([TrainArguments], ["--output_dir=x", argument])[0], name) == expected


def test_other_words_are_refused():
    with pytest.raises(ValueError, match=r"torch_compile.* takes auto or true or false, not 'maybe'"):
        parse_recipe([TrainArguments], ["--output_dir=x", "--torch_compile=maybe"])


@pytest.mark.usefixtures("compiler")
def test_a_continued_run_decides_as_before(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "compiles", lambda asked, *_, **__: asked != "false")
    monkeypatch.setattr("transformers.PreTrainedModel.compile", lambda model: None)
    pretrain.main([recipe(max_steps=3, warmup_steps=1)])
    shown = capsys.readouterr().out
    assert "torch.compile           on: the first step takes half a minute or more" in shown
    assert cache_folder() in shown
    assert recorded_settings(tmp_path / "run")["torch_compile"] is True
    monkeypatch.setattr(run_module, "compiles", lambda *_, **__: False)
    monkeypatch.setattr(compilation, "can_compile", lambda _device: False)  # complete: nothing to compile
    assert pretrain.main([recipe(max_steps=3, warmup_steps=1)]) == 0  # the same settings: still true
    with pytest.raises(ValueError, match="torch_compile: was True, now False"):
        pretrain.main([recipe(max_steps=3, warmup_steps=1), "--torch_compile=false"])
