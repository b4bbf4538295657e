"""scratch-gpt finetune_classifier from start to end: the parameters it trains, the files it writes, its pipeline."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, pipeline

from hf_scratch_gpt import ScratchGPTTokenizer
from tests.support.stopped import killed_after
from tests.support.tiny_base import COLOURS, TEXTS, options, write_labels, write_rows
from train import finetune_classifier
from train.settings.command import run_command


@pytest.fixture
def tune(tmp_path, base):
    """Run the command with changed settings; returns the run folder."""

    def tune(name="run", expected=0, **settings):
        data = [str(write_labels(tmp_path / "rows.csv"))]
        defaults = {"model": str(base), "train_file": data, "output_dir": str(tmp_path / name)}
        assert finetune_classifier.main(options(**defaults | settings)) == expected
        return tmp_path / name

    return tune


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_classifier_learns_and_a_pipeline_says_its_labels(tune, capsys, tmp_path):
    rows = str(write_labels(tmp_path / "exam.csv"))
    run = tune(max_steps=60, learning_rate=0.02, eval_steps=20, logging_steps=20, test_file=[rows])
    evaluations = [record for record in records(run) if "eval_loss" in record]
    assert [record["step"] for record in evaluations] == [0, 20, 40, 60]
    assert evaluations[0]["eval_loss"] == pytest.approx(1.1, abs=0.1)  # ln 3
    assert evaluations[-1]["eval_accuracy"] == 1
    assert sum(map(sum, evaluations[-1]["eval_confusion_matrix"])) == 3
    assert {path.name for path in (run / "confusion_matrices").iterdir()} == {
        f"step-{step:08d}.png" for step in (0, 20, 40, 60)
    }
    classify = pipeline("text-classification", model=str(run / "model"))
    answers = classify([f"The {thing} number 40 is {colour}." for thing, colour in zip("abc", COLOURS, strict=True)])
    assert [answer["label"] for answer in answers] == COLOURS
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"}
    assert json.loads((run / "test_results.json").read_text())["test_accuracy"] == 1
    card = (run / "model" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "| blue | 1.0000 | 1.0000 | 1.0000 | 10 |" in card
    assert str(run) not in card
    assert {"loss_curve.png", "confusion_matrix.png"} < {path.name for path in (run / "model").iterdir()}
    assert re.search(r"train texts +27 \(blue \d+, green \d+, red \d+\)", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({"trainable": "head"}, {"score.weight"}),
        ({"trainable": "layers", "num_trainable_layers": 1}, {"score.weight", "model.norm.weight", "model.layers.1."}),
        ({"trainable": "all"}, {"score.weight", "model."}),
    ],
)
def test_only_what_is_named_is_trained(tune, base, settings, trained):
    run = tune(**settings, weight_decay=0.1)
    before, after = load_file(base / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    for name, weights in after.items():
        is_trained = any(name.startswith(prefix) for prefix in trained)
        assert name == "score.weight" or torch.equal(weights, before[name]) != is_trained, name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked by PEFT
def test_lora_trains_adapters_that_load_merged_and_alone(tune, base, tmp_path):
    peft = pytest.importorskip("peft")
    run = tune(trainable="lora", lora_r=2)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {path.name for path in (run / "adapter").iterdir()}
    newest = sorted(run.glob("checkpoint-*"))[-1]
    assert not (newest / "model.safetensors").exists()
    merged = AutoModelForSequenceClassification.from_pretrained(run / "model")
    original = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    alone = peft.PeftModel.from_pretrained(original, run / "adapter").eval()
    ids = torch.randint(6, 200, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, alone(ids).logits)
        torch.testing.assert_close(merged.model.embed_tokens.weight, original.model.embed_tokens.weight)
    weights = load_file(run / "model" / "model.safetensors")
    before = load_file(base / "model.safetensors")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, weights[name])}
    assert changed == {name for name in before if "_proj" in name}


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_stopped_run_continues_bit_identically(tune, trainable):
    whole = tune("whole", trainable=trainable, max_steps=6, save_steps=2, eval_steps=2)
    with killed_after(3):
        tune("parts", trainable=trainable, max_steps=6, save_steps=2, eval_steps=2)
    parts = tune("parts", trainable=trainable, max_steps=6, save_steps=2, eval_steps=2)
    one, other = (load_file(run / "model" / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [record.get("loss") for record in records(whole)] == [record.get("loss") for record in records(parts)]


def test_the_best_weights_are_kept(tune, capsys):
    settings = {"max_steps": 6, "eval_steps": 1, "optimizer": "adamw", "learning_rate": 0.5, "save_total_limit": 1}
    run = tune(**settings)  # bound to get worse
    evaluations = {record["step"]: record["eval_loss"] for record in records(run) if record.get("eval_loss")}
    best = min((loss, step) for step, loss in evaluations.items() if step)[1]
    assert best != 6
    assert f"lowest validation loss: step {best}; using its weights" in capsys.readouterr().out
    checkpoint = load_file(run / f"checkpoint-{best:08d}" / "model.safetensors")
    assert torch.equal(load_file(run / "model" / "model.safetensors")["score.weight"], checkpoint["score.weight"])
    shutil.rmtree(run / "model")
    tune(**settings, load_best_model_at_end=False)
    checkpoint = load_file(run / "checkpoint-00000006" / "model.safetensors")
    assert torch.equal(load_file(run / "model" / "model.safetensors")["score.weight"], checkpoint["score.weight"])


def test_class_weights_balance_the_loss(tune, tmp_path):
    """At step 0 all runs have the same weights, so the loss of each label can be read off runs that see only it."""
    rows = [{"text": text, "label": int("red" in text and i < 9)} for i, text in enumerate(TEXTS)]
    everything = str(write_rows(tmp_path / "rare.jsonl", rows))
    parts = [str(write_rows(tmp_path / f"{n}.jsonl", [row for row in rows if row["label"] == n])) for n in (0, 1)]

    def first(name, validation, **settings):
        run = tune(
            name, train_file=[everything], validation_file=[validation], test_file=[everything], max_steps=1, **settings
        )
        return records(run)[0]

    frequent, rare = (first(f"only {n}", parts[n])["eval_loss"] for n in (0, 1))
    plain = first("plain", everything)
    balanced = first("balanced", everything, class_weights="balanced")
    assert [sum(row) for row in plain["eval_confusion_matrix"]] == [33, 3]
    assert plain["eval_loss"] == pytest.approx((33 * frequent + 3 * rare) / 36, abs=1e-5)
    assert balanced["eval_loss"] == pytest.approx((frequent + rare) / 2, abs=1e-5)
    assert abs(frequent - rare) > 0.01


def test_bpe_dropout_trains_on_texts_cut_in_many_ways(tune, base, monkeypatch, capsys):
    seen = []
    real = finetune_classifier.with_bpe_dropout
    monkeypatch.setattr(finetune_classifier, "with_bpe_dropout", lambda *args: seen.append(real(*args)) or seen[-1])
    run = tune(max_steps=None, num_train_epochs=3.0, bpe_dropout=0.3)
    (texts,) = seen
    assert (texts.num_versions, len(texts)) == (3, 72)
    tokenizer = ScratchGPTTokenizer.from_pretrained(base)
    for number in range(24):
        versions = [texts.ids[start + number] for start in (0, 24, 48)]
        assert len({tokenizer.decode(ids) for ids in versions}) == 1
    assert len({tuple(ids) for ids in texts.ids}) > 60
    assert (texts.labels[:24] == texts.labels[48:]).all()
    shown = capsys.readouterr().out
    assert re.search(r"train texts +24 \(blue \d", shown)
    assert "(3.00 epochs)" in shown
    again = tune("again", max_steps=None, num_train_epochs=3.0, bpe_dropout=0.3)
    assert records(run)[-1]["eval_loss"] == records(again)[-1]["eval_loss"]


@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_run(tune, tmp_path, suffix):
    import pandas

    expected = tune("csv")
    table = pandas.read_csv(tmp_path / "rows.csv")
    path = tmp_path / f"rows.{suffix}"
    if suffix == "tsv":
        table.to_csv(path, sep="\t", index=False)
    elif suffix == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    run = tune(suffix, train_file=[str(path)])
    assert records(run)[-1]["eval_loss"] == records(expected)[-1]["eval_loss"]


def test_a_saved_dataset_with_named_classes(tune, tmp_path):
    import datasets

    labels = [i % 3 for i in range(30)]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=COLOURS)})
    table = datasets.Dataset.from_dict({"text": TEXTS[:30], "label": labels}, features=features)
    datasets.DatasetDict({"train": table, "exam": table}).save_to_disk(tmp_path / "saved")
    run = tune(train_file=None, dataset_name=str(tmp_path / "saved"), test_split="exam")
    assert json.loads((run / "model" / "config.json").read_text())["id2label"] == {
        "0": "blue",
        "1": "green",
        "2": "red",
    }
    assert sum(map(sum, json.loads((run / "test_results.json").read_text())["test_confusion_matrix"])) == 30


BAD = {
    "unseen label": (
        {"validation_rows": [{"text": "x", "label": "pink"}]},
        r"validation.jsonl:1: the label 'pink' is not in the training rows, which have blue, green, red",
    ),
    "empty text": ({"rows": [{"text": " ", "label": i % 2} for i in range(20)]}, r"rows.jsonl:\d+: .*empty text"),
    "no label": ({"rows": [{"text": "x", "label": None}] * 20}, "None: a label is text or a w"),
    "one class": ({"rows": [{"text": "x", "label": "a"}] * 20}, "has only the label 'a': a classifier needs"),
    "unknown column": ({"label_column": "colour"}, r"no column 'colour'; its columns are text, label.*--label_column"),
    "vocabulary": ({"other_tokenizer": True}, r"has 297 tokens, but the model .* only 285: it is another model's"),
    "no weights": ({"without": "model.safetensors"}, r"has no weights .*--random_weights true"),
    "no config": ({"without": "config.json"}, "is not a model folder: it has no config.json"),
    "no tokenizer": ({"without": "tokenizer_config.json"}, "has no tokenizer: give its folder with --tokenizer"),
    "no model": ({"model": "./nowhere"}, "--model ./nowhere does not exist"),
    "too long": ({"max_length": 65}, "--max_length is 65, but the model reads at most 64 tokens"),
    "layers": ({"trainable": "layers", "num_trainable_layers": 3}, "--num_trainable_layers is 3, but .* 2 layers"),
    "no effect": ({"num_trainable_layers": 1}, r"--num_trainable_layers \(1\) requires --trainable layers"),
    "lora only": ({"lora_r": 4}, r"--lora_r \(4\) requires --trainable lora"),
    "two lengths": ({"num_train_epochs": 1.0}, r"--num_train_epochs \(1.0\) and --max_steps \(4\) exclude each"),
    "prompts": ({"sample_prompts": ["x"]}, "--sample_prompts has no effect: a classifier generates no text"),
    "two sources": ({"validation_fraction": 0.5, "validation_rows": [{"text": "x", "label": "red"}]},
                    "--validation_file and --validation_fraction exclude each other"),
    "no source": ({"train_file": None}, "required: --train_file or --dataset_name"),
    "nothing left": ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave no row to train on"),
    "override": ({"config_overrides": "colour=3"}, "--config_overrides sets colour, which the config of"),
    "shape": ({"config_overrides": "intermediate_size=48"}, "6 weights of another size than its config says"),
    "dropout": ({"bpe_dropout": 1.0}, "--bpe_dropout is 1.0: it must be below 1"),
    "random head": ({"random_weights": True, "trainable": "head"}, "--random_weights with --trainable head would"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_training_starts(name, tmp_path, base, capsys):
    settings, message = BAD[name]
    settings = dict(settings)
    model = shutil.copytree(base, tmp_path / "model")
    if lacking := settings.pop("without", None):
        (model / lacking).unlink()
    if settings.pop("other_tokenizer", False):
        other = ScratchGPTTokenizer.train_from_texts(
            ["abcdefghijklmnopqrstuvwxyz, 0123456789! " * 9, *TEXTS * 3], 297, show_progress=False
        )
        other.save_pretrained(model)
    data = [str(write_labels(tmp_path / "rows.csv"))]
    if rows := settings.pop("rows", None):
        data = [str(write_rows(tmp_path / "rows.jsonl", rows))]
    if rows := settings.pop("validation_rows", None):
        settings["validation_file"] = [str(write_rows(tmp_path / "validation.jsonl", rows))]
    defaults = {"model": str(model), "train_file": data, "output_dir": str(tmp_path / "run")}
    assert run_command(finetune_classifier.main, options(**defaults | settings)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
