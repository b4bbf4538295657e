"""The metadata of model cards: it describes the run and its origin, without paths of this machine."""

import json
import re

import datasets
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from tests.support.tiny_base import TEXTS, options, save_base, write_conversations, write_labels
from tests.support.tiny_card import METRICS, ON_HUB, OWN, made, read
from tests.support.tiny_run import RECIPE, SHAPE
from train import finetune, finetune_classifier, prepare_data, pretrain
from train.data.blocks import open_data
from train.data.corpora import dataset_corpus, python_corpus, split_corpus
from train.hub.cards.finetuned import table_of_labels
from train.hub.cards.markdown import fenced, plain
from train.hub.cards.metadata import adapter_metadata
from train.hub.cards.origin import Source, base_on_hub, hub_name, origin_of, public_recipe, row_source
from train.settings.corpus import CorpusArguments
from train.settings.finetuning import BaseArguments, RowsArguments

# Metadata


def test_local_text_is_not_a_dataset_on_the_hub():
    assert read(made()).to_dict() == {
        "language": ["en"],
        "library_name": "transformers",
        "metrics": ["loss", "perplexity", "bits_per_byte"],
        "pipeline_tag": "text-generation",
        "tags": ["scratch_gpt", "custom_code"],
        "model-index": [
            {
                "name": "tiny",
                "results": [
                    {
                        "task": {"type": "text-generation", "name": "Text generation"},
                        "dataset": {"name": "a.txt", "type": "a.txt"},
                        "metrics": [
                            {"type": "loss", "value": 2.0, "name": "Loss (nats per token)"},
                            {"type": "perplexity", "value": 7.389056, "name": "Perplexity (per token)"},
                            {"type": "bits_per_byte", "value": 1.5, "name": "Bits per byte"},
                        ],
                    }
                ],
            }
        ],
    }


def test_datasets_and_base_models_on_the_hub_are_named():
    data = read(made(ON_HUB, ON_HUB, base_model="alice/base"))
    assert data.datasets == ["alice/texts"]
    assert (data.base_model, data.base_model_relation) == ("alice/base", "finetune")
    assert {(r.dataset_type, r.dataset_config, r.dataset_split) for r in data.eval_results} == {
        ("alice/texts", "big", "train")
    }


def test_results_of_a_classifier():
    data = read(made(task="text-classification", metrics={"accuracy": 0.5, "f1": 0.25, "loss": 1.0}))
    found = [(r.metric_type, r.metric_value, r.metric_name, r.metric_args) for r in data.eval_results]
    assert found == [
        ("accuracy", 0.5, "Accuracy", None),
        ("f1", 0.25, "F1 (mean over labels)", {"average": "macro"}),
        ("loss", 1.0, "Loss (nats per text)", None),
    ]


def test_values_that_are_not_finite_are_omitted():
    assert [r.metric_type for r in read(made(metrics=METRICS | {"perplexity": float("inf")})).eval_results] == [
        "loss",
        "bits_per_byte",
    ]
    data = read(made(metrics={"loss": float("nan")}))
    assert "model-index" not in data.to_dict()
    assert "model_name" not in data.to_dict()


def test_results_on_different_text_never_get_one_name():
    """The Hub's classes group results by the type of the dataset and forget all names but the first."""
    other = Source("b.txt")
    both = ModelCardData(model_name="x", eval_results=made().eval_results + made(measured_on=other).eval_results)
    assert {result.dataset_name for result in read(both).eval_results} == {OWN.description, other.description}
    assert Source("文字.txt").identifier == "文字.txt"
    assert len(Source("x" * 200).identifier) == 96


def test_an_adapter_names_its_base_model():
    data = adapter_metadata(made(base_model="alice/base"))
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "alice/base", "adapter")
    assert data.tags == ["lora", "scratch_gpt"]
    assert "base_model_relation" not in adapter_metadata(made()).to_dict()
    assert made(base_model="alice/base").library_name == "transformers"


# Names and paths


def test_names_on_the_hub_and_paths_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    assert hub_name("alice/tiny") == "alice/tiny"
    assert hub_name("alice/tiny@v1") == "alice/tiny"
    assert hub_name("squad") == "squad"
    for path in ("runs/model", str(tmp_path), "./x/y", "~/model", "a/b/c", "../x", "", None):
        assert hub_name(path) is None, path


def test_the_base_of_a_local_adapter_counts(tmp_path):
    for name, expected in (("alice/base", "alice/base"), (str(tmp_path), None), (None, None)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
        assert base_on_hub(str(tmp_path)) == expected


def test_random_weights_have_no_base():
    rows = RowsArguments(dataset_name="alice/texts")
    origins = [
        origin_of("finetune", "{}", BaseArguments("alice/base", random_weights=is_random), rows, "validation")
        for is_random in (False, True)
    ]
    assert [origin.base_model for origin in origins] == ["alice/base", None]
    assert [origin.base_markdown for origin in origins] == [
        "[alice/base](https://huggingface.co/alice/base)",
        "none (random weights)",
    ]


def test_where_rows_come_from(tmp_path):
    tables = RowsArguments(train_file=[str(tmp_path / "b.csv"), "a.csv"], validation_fraction=0.25)
    assert row_source(tables, "train") == Source("a.csv, b.csv")
    assert row_source(tables, "validation") == Source("0.25 of the rows of a.csv, b.csv, held out at random")
    on_hub = RowsArguments(dataset_name="alice/texts", dataset_config_name="big", validation_split="dev")
    assert row_source(on_hub, "train") == Source("dataset alice/texts big (train)", "alice/texts", "big", "train")
    assert row_source(on_hub, "validation").split == "dev"
    mixed = RowsArguments(dataset_name="alice/texts", validation_file=[str(tmp_path / "c.csv")])
    assert row_source(mixed, "validation") == Source("c.csv")
    held_out = row_source(RowsArguments(dataset_name="alice/texts"), "validation")
    assert held_out.description == "0.1 of the rows of dataset alice/texts (train), held out at random"
    assert held_out.dataset == "alice/texts"
    (tmp_path / "saved").mkdir()
    saved = row_source(RowsArguments(dataset_name=str(tmp_path / "saved")), "train")
    assert (saved.description, saved.dataset) == ("dataset saved (train)", None)


def test_the_origin_of_a_corpus(tmp_path, monkeypatch):
    assert python_corpus().origin == {"language": ["en", "code"]}
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    rows.save_to_disk(tmp_path / "saved")
    saved = dataset_corpus(CorpusArguments(dataset_name=str(tmp_path / "saved")))
    assert (saved.description, saved.origin) == ("dataset saved (train)", {})
    monkeypatch.setattr("train.data.corpora.load_split", lambda *args: rows)
    named = dataset_corpus(CorpusArguments(dataset_name="alice/texts"))
    origin = {"dataset": "alice/texts", "config": None, "split": "train"}
    assert [part.origin for part in (named, *split_corpus(named, 0.2))] == [origin] * 3


def test_data_of_earlier_versions_has_a_source(data_dir):
    data = open_data(data_dir)
    for facts in data.manifest["splits"].values():
        del facts["origin"]
    assert pretrain.corpus_source(data, "train") == Source("0.txt")


def test_a_public_recipe_has_no_local_paths(tmp_path):
    entries = {
        "model": "alice/base@v1", "tokenizer": None, "dataset_name": str(tmp_path), "train_file": [], "seed": 0,
        "output_dir": "runs/new", "config": str(tmp_path / "shape.json"),
    }  # fmt: skip
    recipe = public_recipe("finetune", yaml.safe_dump(entries, sort_keys=False))
    assert yaml.safe_load(recipe.text) == {"model": "alice/base@v1", "seed": 0, "config": "shape.json"}
    assert recipe.command == "scratch-gpt finetune recipe.yaml --dataset_name ... --output_dir ..."
    local = public_recipe("pretrain", yaml.safe_dump({"model": str(tmp_path), "config": "examples/tiny"}))
    assert yaml.safe_load(local.text) == {"config": "examples/tiny"}
    assert local.command == "scratch-gpt pretrain recipe.yaml --model ..."


# Whole runs


def metadata(folder):
    text = (folder / "README.md").read_text()
    assert text.count("path/to/this/folder") > 1
    return ModelCard(text).data, text


@pytest.fixture
def on_hub(monkeypatch):
    """Datasets on the Hub, replaced by rows in memory."""
    rows = datasets.Dataset.from_dict({"text": TEXTS * 20, "label": [text.split()[-1] for text in TEXTS] * 20})
    for module in ("train.data.corpora", "train.data.rows"):
        monkeypatch.setattr(f"{module}.load_split", lambda *args, **kwargs: rows)


def test_the_card_of_a_pretrained_model_names_its_dataset(on_hub, tmp_path):
    save_base(tmp_path / "base")
    options_of_data = ["--tokenizer", str(tmp_path / "base"), "--output_dir", str(tmp_path / "data")]
    prepare_data.main(
        [*options_of_data, "--dataset_name", "alice/texts", "--dataset_config_name", "big", "--block_size", "16"]
    )
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    settings = RECIPE | {"data_dir": str(tmp_path / "data"), "config": str(tmp_path / "config.json")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings | {"output_dir": str(tmp_path / "run")}))
    pretrain.main([str(tmp_path / "recipe.yaml")])
    data, text = metadata(tmp_path / "run" / "model")
    assert (data.library_name, data.pipeline_tag, data.datasets) == (
        "transformers",
        "text-generation",
        ["alice/texts"],
    )
    assert data.tags == ["scratch_gpt", "from-scratch", "custom_code"]
    assert data.license is data.language is data.base_model is None
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    results = {result.metric_type: result for result in data.eval_results}
    assert results["bits_per_byte"].metric_value == pytest.approx(last["eval_bits_per_byte"], abs=1e-6)
    assert results["loss"].metric_value == pytest.approx(last["eval_loss"], abs=1e-6)
    assert (results["loss"].dataset_type, results["loss"].dataset_config) == ("alice/texts", "big")
    assert "(https://huggingface.co/datasets/alice/texts)" in text
    assert "`scratch-gpt pretrain recipe.yaml --data_dir ... --output_dir ...` computed these metrics" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_the_card_of_an_assistant(base, tmp_path, trainable):
    rows = write_conversations(tmp_path / "rows.jsonl")
    line = options(model=base, train_file=rows, output_dir=tmp_path / "run", trainable=trainable)
    assert finetune.main(line) == 0
    data, text = metadata(tmp_path / "run" / "model")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["scratch_gpt", "conversational", "custom_code"]
    assert data.datasets is data.base_model is None
    assert {result.metric_type for result in data.eval_results} == {"loss", "perplexity", "bits_per_byte"}
    assert "- train 11 conversations" in text
    assert (
        f"recipe.yaml --model ... --train_file ... --output_dir ...` with this `recipe.yaml`:\n\n{'`' * 3}yaml" in text
    )
    assert str(tmp_path) not in text
    assert str(base) not in text
    assert (tmp_path / "run" / "adapter").exists() == (trainable == "lora")
    if trainable == "lora":
        _, card = metadata(tmp_path / "run" / "adapter")
        assert "- base model: not on the Hub" in card
        assert "- labels:" not in card
        assert re.search(r"\| perplexity \| \d+\.\d{4} \(before fine-tuning: \d+\.\d{4}\) \|", card)
        assert "- train 11 conversations" in card
        assert "`scratch-gpt chat --model path/to/this/folder`" in card
        assert "lora_r: null" in card


def test_the_cards_of_a_classifier_and_its_adapter(on_hub, base, tmp_path):
    settings = {"model": base, "dataset_name": "alice/texts", "output_dir": tmp_path / "run", "trainable": "lora"}
    assert finetune_classifier.main(options(**settings, test_split="exam")) == 0
    data, text = metadata(tmp_path / "run" / "model")
    assert (data.pipeline_tag, data.datasets) == ("text-classification", ["alice/texts"])
    tested = json.loads((tmp_path / "run" / "test_results.json").read_text())
    found = {result.metric_type: (result.metric_value, result.dataset_split) for result in data.eval_results}
    assert found == {
        name: (pytest.approx(tested[f"test_{name}"], abs=1e-6), "exam") for name in ("accuracy", "f1", "loss")
    }
    assert "dataset_name: alice/texts" in text
    adapter, text_of_adapter = metadata(tmp_path / "run" / "adapter")
    assert (adapter.library_name, adapter.pipeline_tag) == ("peft", "text-classification")
    assert adapter.eval_results == data.eval_results
    assert "- labels: blue., green., red.\n" in text_of_adapter
    for card in (text, text_of_adapter):
        assert f"| test accuracy | {tested['test_accuracy']:.2%} |" in card
        counts = [sum(row) for row in tested["test_confusion_matrix"]]
        assert re.search(rf"\| majority rate \(always [\w.]+\) \| {max(counts) / sum(counts):.2%} \|", card)
    assert ', num_labels=3)\nmodel = PeftModel.from_pretrained(base, "path/to/this/folder")' in text_of_adapter
    assert str(base) not in text + text_of_adapter


# Text


TRICKY = {
    "a|b": "a\\|b",
    "<img src=x onerror=alert(1)>": "&lt;img src=x onerror=alert(1)&gt;",
    "&lt;": "&amp;lt;",
    "$a_$": "\\$a\\_\\$",
    "_x_ a_b *c* `d` ~e~": "\\_x\\_ a_b \\*c\\* \\`d\\` \\~e\\~",
    "[a](http://b)": "\\[a\\](http://b)",
    "two\nlines": "two lines",
    "back\\slash": "back\\\\slash",
    "README.md, 5.2 %": "README.md, 5.2 %",
}


@pytest.mark.parametrize("text", TRICKY)
def test_text_is_shown_literally(text):
    assert plain(text) == TRICKY[text]


def test_labels_do_not_break_the_table_of_a_card():
    lines = table_of_labels([[1, 0, 0], [0, 2, 0], [0, 0, 3]], ["a|b", "<b>x</b>", "$a_$"]).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [6] * 5
    assert [line.split(" ")[1] for line in lines[2:]] == ["a\\|b", "&lt;b&gt;x&lt;/b&gt;", "\\$a\\_\\$"]


def test_labels_and_names_of_files_are_escaped_in_whole_cards(base, tmp_path):
    rows = tmp_path / "<b>rows|$x$.csv"
    write_labels(rows)
    rows.write_text(rows.read_text().replace(",red", ",<i>|$a_$"))
    settings = {"model": base, "train_file": rows, "output_dir": tmp_path / "run", "trainable": "lora"}
    assert finetune_classifier.main(options(**settings)) == 0
    for folder in ("model", "adapter"):
        text = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", metadata(tmp_path / "run" / folder)[1].split("\n---\n")[-1])
        assert "&lt;i&gt;\\|\\$a\\_\\$" in text
        assert "&lt;b&gt;rows\\|\\$x\\$.csv" in text
        assert "<i>" not in text
        assert "<b>" not in text


def test_backticks_do_not_end_a_block():
    assert fenced("a\n```\nb") == "````text\na\n```\nb\n````"
    assert fenced("a\n", "yaml") == "```yaml\na\n```"
