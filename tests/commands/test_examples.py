"""The commands in the READMEs of the examples, run on a short text and for few steps."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTTokenizer
from train.model.new import build_config, new_model
from train.settings.finetuning import (
    BaseArguments,
    ConversationArguments,
    LabelArguments,
    TuneArguments,
    TuneClassifierArguments,
)
from train.settings.recipe import parse_recipe
from train.settings.run_folder import MODEL_FOLDER
from train.settings.training import DataArguments, ModelArguments, TrainArguments

ROOT = Path(__file__).parents[2]
SHAKESPEARE = ROOT / "examples" / "tiny_shakespeare"
VERSE = "ROMEO:\nBut, soft! what light through yonder window breaks?\n\n"
FEW_STEPS = ["--max_steps=2", "--warmup_steps=0"]


def recipe(monkeypatch):
    monkeypatch.chdir(ROOT)  # the paths in a recipe are relative to the root of the repository
    return parse_recipe((ModelArguments, DataArguments, TrainArguments), [str(SHAKESPEARE / "pretrain.yaml")])


def commands(readme):
    """[module, argument, ...] of each command in the README's blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").replace("scratch-gpt ", "python -m train.").splitlines()
    return [shlex.split(line.removeprefix("python -m ")) for line in lines if line.startswith("python -m ")]


def test_the_commands_of_the_readme_make_a_model(tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "input.txt").write_text(400 * VERSE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    ran = []
    for module, *arguments in commands(SHAKESPEARE / "README.md"):
        if module.startswith("benchmarks."):
            continue  # minutes of training
        few = FEW_STEPS if module == "train.pretrain" else []
        assert not importlib.import_module(module).main([*arguments, *few])
        ran.append(module.rpartition(".")[2])
    data = ["train_tokenizer", "prepare_data"]
    assert ran == [*data, "pretrain", "pretrain", *data, "pretrain", "generate"]
    for run in ("fast", "run", "best"):
        assert Path("runs/tiny_shakespeare", run, MODEL_FOLDER, "model.safetensors").exists()
    assert "\nROMEO:" in capsys.readouterr().out.partition("complete: the model is in")[2]  # the output of generate


@pytest.mark.parametrize("name", ["fast", "pretrain", "best"])
def test_the_recipes_of_shakespeare_evaluate_on_the_whole_validation_part(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = str(SHAKESPEARE / f"{name}.yaml")
    *_, train = parse_recipe((ModelArguments, DataArguments, TrainArguments), [path])
    assert train.max_eval_samples == 0


def test_the_best_model_of_shakespeare_does_not_see_the_validation_part():
    splits = [line for line in commands(SHAKESPEARE / "README.md") if "--vocab_size" in line or "--block_size" in line]
    for line in splits:
        assert line[line.index("--validation_fraction") + 1] == "0.1"
        assert line[line.index("--validation_part") + 1] == "end"
    assert [line[0] for line in splits] == ["train.prepare_data", "train.train_tokenizer", "train.prepare_data"]


def test_shakespeare_keeps_to_the_budget_of_nanogpt(monkeypatch):
    model, _, train = recipe(monkeypatch)
    config = build_config(model, ScratchGPTTokenizer.train_from_texts([VERSE], type="characters"))
    shape = (config.num_hidden_layers, config.num_attention_heads, config.hidden_size, config.max_position_embeddings)
    assert shape == (4, 4, 128, 64)
    assert (train.max_steps, train.global_batch_size) == (2000, 12)
    assert (config.attention_dropout, config.residual_dropout, config.embedding_dropout) == (0, 0, 0)


def test_shakespeare_has_no_more_parameters_than_nanogpt(monkeypatch):
    model, _, train = recipe(monkeypatch)
    letters = "".join(map(chr, range(65)))  # as many as the text has
    config = build_config(model, ScratchGPTTokenizer.train_from_texts([letters], type="characters"))
    assert new_model(config, train.seed).num_parameters() == 788_736  # nanoGPT: 795,904 and 8,192 for its positions


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("swapped_lines/recipe.yaml", (BaseArguments, LabelArguments, TuneClassifierArguments)),
        ("spam/recipe.yaml", (BaseArguments, LabelArguments, TuneClassifierArguments)),
        ("python_assistant/recipe.yaml", (BaseArguments, ConversationArguments, TuneArguments)),
    ],
)
def test_the_recipes_of_fine_tuning_are_read(path, kinds):
    line = ["--model=base", "--train_file=rows.csv", "--output_dir=run"]
    settings = parse_recipe(kinds, [str(ROOT / "examples" / path), *line])
    assert settings[2].for_examples(1000, 200, ScratchGPTConfig.from_preset("laptop")).max_steps > 10
