"""--torch_compile: when "auto" compiles, and that a continued run decides as before."""

import math

import pytest
import torch
import yaml

from train import pretrain
from train.checkpoint.recorded import recorded_settings
from train.loop import run as run_module
from train.loop.compilation import PAYS_FROM, cache_folder, compiles, planned_seconds
from train.settings.recipe import parse_recipe
from train.settings.training import TrainArguments


@pytest.mark.parametrize(
    ("asked", "device", "seconds", "is_split", "expected"),
    [
        ("auto", "cuda", PAYS_FROM, False, True),
        ("auto", "cuda", PAYS_FROM - 1, False, False),
        ("auto", "cuda", 1e6, True, False),
        ("auto", "cpu", 1e6, False, False),
        ("auto", "mps", 1e6, False, False),
        ("true", "cpu", 0, False, True),
        ("false", "cuda", 1e6, False, False),
    ],
)
def test_auto_compiles_where_it_pays(asked, device, seconds, is_split, expected):
    assert compiles(asked, torch.device(device), seconds, is_split=is_split) == expected


def test_an_unknown_speed_plans_no_time():
    assert planned_seconds(1e9, math.inf) == 0
    assert planned_seconds(18e6, 1e6) == pytest.approx(100)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, "true"), (False, "false"), ("auto", "auto"), ("true", "true"), (None, "auto")],
)
def test_booleans_of_older_recipes_are_read(tmp_path, value, expected):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "x", "torch_compile": value}))
    assert parse_recipe([TrainArguments], [str(path)])[0].torch_compile == expected
    assert parse_recipe([TrainArguments], ["--output_dir=x", "--torch_compile=True"])[0].torch_compile == "true"


def test_other_words_are_refused():
    with pytest.raises(ValueError, match=r"torch_compile.* takes auto or true or false, not 'maybe'"):
        parse_recipe([TrainArguments], ["--output_dir=x", "--torch_compile=maybe"])


def test_a_continued_run_decides_as_before(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "compiles", lambda asked, *_, **__: asked != "false")
    monkeypatch.setattr("transformers.PreTrainedModel.compile", lambda model: None)
    pretrain.main([recipe(max_steps=3, warmup_steps=1)])
    shown = capsys.readouterr().out
    assert "torch.compile           on: the first step takes a minute or more" in shown
    assert cache_folder() in shown
    assert recorded_settings(tmp_path / "run")["torch_compile"] is True
    monkeypatch.setattr(run_module, "compiles", lambda *_, **__: False)
    assert pretrain.main([recipe(max_steps=3, warmup_steps=1)]) == 0  # the same settings: still true
    with pytest.raises(ValueError, match="torch_compile: was True, now False"):
        pretrain.main([recipe(max_steps=3, warmup_steps=1), "--torch_compile=false"])
