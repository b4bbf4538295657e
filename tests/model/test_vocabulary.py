"""The tokenizer of another model is refused, even if it has as many tokens."""

import json
import shutil

import pytest

from hf_scratch_gpt import ScratchGPTTokenizer
from tests.support.tiny_base import options, write_conversations
from train import evaluate, finetune, generate, pretrain
from train.model.find import find_model
from train.model.vocabulary import vocabulary_in
from train.settings.command import run_command


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A tokenizer of the same size, trained on another text."""
    folder = tmp_path_factory.mktemp("other")
    texts = ["zebra quagga okapi " * 9, "xylophone quartz"] * 20
    tokenizer = ScratchGPTTokenizer.train_from_texts(texts, 280, model_max_length=32, show_progress=False)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(recipe, tmp_path):
    assert pretrain.main([recipe(max_steps=1, warmup_steps=0)]) == 0
    return tmp_path / "run" / "model"


def test_a_replaced_tokenizer_is_refused_by_every_command(model, other, tmp_path, capsys):
    find_model("--model", str(model))
    shutil.copy(other / "tokenizer.json", model)
    rows = write_conversations(tmp_path / "rows.jsonl")
    for command, line in (
        (evaluate, [f"--model={model}", f"--text={__file__}"]),
        (generate, [f"--model={model}", "--prompt=x"]),
        (finetune, options(model=model, train_file=rows, output_dir=tmp_path / "tuned")),
    ):
        assert run_command(command.main, line) == 2
        shown = capsys.readouterr().err
        assert f"--model {model}: tokenizer.json has other tokens or ids than the tokenizer that the model was" in shown


def test_the_hash_depends_on_tokens_and_ids_only(other, tmp_path):
    path = tmp_path / "tokenizer.json"
    shutil.copy(other / "tokenizer.json", path)
    expected = vocabulary_in(other)
    value = json.loads((other / "tokenizer.json").read_text())
    value["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    path.write_text(json.dumps(value))
    assert vocabulary_in(tmp_path) == expected
    vocabulary = value["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(value))
    assert vocabulary_in(tmp_path) != expected
    path.unlink()
    assert vocabulary_in(tmp_path) is None
