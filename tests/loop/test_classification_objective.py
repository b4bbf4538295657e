"""The parts of a classifier: labels, batches with padding on either side, weights, metrics, pictures."""

import matplotlib.image
import numpy as np
import pytest
import torch

from hf_scratch_gpt import ScratchGPTForSequenceClassification, ScratchGPTTokenizer
from tests.support.tiny import tiny_model
from tests.support.tiny_base import TEXTS
from train.data.labelled_texts import LabelledTexts, balanced_weights, count_training_texts, label_names, tokenize
from train.data.rows import Row
from train.hub.cards.finetuned import table_of_labels
from train.loop.classification import TextClassification
from train.metrics.label_scores import label_table, majority_rate
from train.metrics.plots import draw_confusion_matrix, draw_loss_curve


def rows(*labels):
    return [Row(f"x:{i}", {"label": label, "text": f"text {i}"}) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["spam", "ham", "spam"], ["ham", "spam"]),
        ([10, 9, 10], ["9", "10"]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        ([1.0, 2.0], ["1", "2"]),
        (["2", "b", "a"], ["2", "a", "b"]),
    ],
)
def test_labels_have_an_order_that_the_rows_do_not_decide(labels, names):
    assert label_names(rows(*labels), "label") == label_names(rows(*reversed(labels)), "label") == names


@pytest.mark.parametrize("label", [None, "", 1.5, ["a"], float("nan")])
def test_cells_that_are_no_label(label):
    with pytest.raises(ValueError, match=r"x:1: column 'label' has the value .*a label is text or a whole number"):
        label_names(rows("a", label, "b"), "label")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_either_padding_side_gives_the_logits_of_single_texts(attention):
    ids = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    model = tiny_model(ScratchGPTForSequenceClassification, num_labels=3, attn_implementation=attention)
    objective = TextClassification(["a", "b", "c"], torch.ones(3))
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([text])).logits for text in ids])
        for side in ("left", "right"):
            batch = LabelledTexts(ids, np.array([0, 1, 2]), 0, side).batch([0, 1, 2])
            assert batch["input_ids"].shape == (3, 5)
            assert (batch["input_ids"][1, 0 if side == "left" else -1]).item() == 0
            torch.testing.assert_close(objective._logits(model, batch), alone, atol=1e-5, rtol=1e-5)


def test_metrics_of_batches_add_up():
    model = tiny_model(ScratchGPTForSequenceClassification, num_labels=3)
    texts = LabelledTexts([[5, 6], [7, 8, 9], [10], [11, 12]], np.array([0, 1, 2, 1]), 0, "right")
    weights = balanced_weights(texts.labels, 3)
    torch.testing.assert_close(weights, torch.tensor([4 / 3, 2 / 3, 4 / 3]))
    objective = TextClassification(["a", "b", "c"], weights)
    with torch.no_grad():
        whole = objective.evaluate_batch(model, texts.batch([0, 1, 2, 3])).tolist()
        parts = [objective.evaluate_batch(model, texts.batch(some)).tolist() for some in ([0, 3], [1, 2])]
        logits = torch.cat([model(torch.tensor([text])).logits for text in texts.ids])
    assert whole == pytest.approx([a + b for a, b in zip(*parts, strict=True)], abs=1e-5)
    metrics = objective.compute_metrics(whole)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 1]), weight=weights)
    assert metrics["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)
    right = (logits.argmax(-1) == torch.tensor([0, 1, 2, 1])).float().mean().item()
    assert metrics["eval_accuracy"] == right
    assert [sum(row) for row in metrics["eval_confusion_matrix"]] == [1, 2, 1]
    assert objective.count_targets(texts.batch([0, 2])) == (pytest.approx(8 / 3), 3)


def test_the_tables_of_labels():
    rows = [line.split() for line in label_table([[3, 1], [0, 4]], ["ham", "spam"]).splitlines()]
    assert rows[1:] == [["ham", "1.0000", "0.7500", "0.8571", "4"], ["spam", "0.8000", "1.0000", "0.8889", "4"]]
    wide = label_table([[3, 1], [0, 4]], ["ham" * 30, "two\nlines"]).splitlines()
    assert {len(line) for line in wide} == {80}
    assert majority_rate([[3, 1], [0, 5]]) == (5 / 9, 1)
    table = table_of_labels([[3, 1], [0, 4]], ["ham", "spam"]).splitlines()
    assert table[2:] == ["| ham | 1.0000 | 0.7500 | 0.8571 | 4 |", "| spam | 0.8000 | 1.0000 | 0.8889 | 4 |"]


@pytest.mark.parametrize("names", [["a", "b"], [f"a long label {i}" for i in range(14)]])
def test_the_picture_grows_with_the_labels(tmp_path, names):
    draw_confusion_matrix(np.eye(len(names), dtype=int).tolist(), names, tmp_path / "matrix.png", "title")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["$a_$", "$\\foo$", "\udc00", "a\nb\0", "\u5b57", "long " * 99, "{x}", "_a_"])
def test_any_label_can_be_drawn(tmp_path, name):
    draw_confusion_matrix([[1, 0], [0, 1]], [name, "b"], tmp_path / "matrix.png", f"title {name}")
    records = [{"tokens_seen": 1e6, "loss": 2.0}, {"tokens_seen": 2e6, "eval_loss": 1.0}]
    draw_loss_curve(records, tmp_path / "curve.png", title=f"title {name}", num_choices=2, per="text")
    height, width = matplotlib.image.imread(tmp_path / "matrix.png").shape[:2]
    assert max(height, width) < 800


def test_the_picture_of_many_labels_stays_small(tmp_path):
    names = [f"label {i}" for i in range(600)]
    draw_confusion_matrix(np.eye(600, dtype=int).tolist(), names, tmp_path / "matrix.png", "title")
    assert max(matplotlib.image.imread(tmp_path / "matrix.png").shape) < 4200


def test_longer_texts_lose_their_end_and_are_counted(base):
    tokenizer = ScratchGPTTokenizer.from_pretrained(base)
    some = [Row(f"x:{i}", {"text": text, "label": str(i % 2)}) for i, text in enumerate([*TEXTS[:3], "a"])]
    texts = tokenize(some, ("text", "label"), ["0", "1"], tokenizer, max_length=4)
    assert [len(ids) for ids in texts.ids] == [4, 4, 4, 1]
    assert texts.num_truncated == 3
    assert texts.ids[0] == tokenizer(TEXTS[0])["input_ids"][:4]


def test_texts_that_were_trained_on_are_counted():
    train, other = rows("a", "b", "c"), [*rows("a"), Row("y", {"text": "new", "label": "a"})]
    assert count_training_texts(train, {"validation": other, "test": other[1:]}, "text") == {"validation": 1}
