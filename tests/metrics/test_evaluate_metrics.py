"""The metrics against scikit-learn and hand calculations, in `evaluate.combine`, and in the Trainer."""

import itertools
import math

import evaluate
import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.support.tiny import VOCAB, tiny_ids, tiny_model
from train.metrics import evaluate_metrics
from train.metrics.evaluate_metrics import (
    BitsPerByte,
    ClassificationMetrics,
    Perplexity,
    TokenAccuracy,
    classification_metrics,
)

IGNORED = -100
TOKEN_BYTES = torch.tensor([0, 1, 2, 5])
BATCHES = [
    {"predictions": [[1, 2, 3], [3, 3, 3]], "references": [[1, 2, 0], [3, IGNORED, IGNORED]],
     "log_probs": [[-1.0, -2.0, -0.5], [-0.25, -9.0, -9.0]]},
    {"predictions": [[2]], "references": [[1]], "log_probs": [[-4.0]]},
]  # fmt: skip
NATS, TOKENS, BYTES = 1.0 + 2.0 + 0.5 + 0.25 + 4.0, 5, 1 + 2 + 0 + 5 + 1
BUILDERS = {
    "perplexity": Perplexity,
    "bits_per_byte": lambda **settings: BitsPerByte(TOKEN_BYTES, **settings),
    "token_accuracy": TokenAccuracy,
    "accuracy": lambda **settings: ClassificationMetrics(num_labels=4, **settings),
}
EXPECTED = {
    "perplexity": math.exp(NATS / TOKENS),
    "bits_per_byte": NATS / math.log(2) / BYTES,
    "token_accuracy": 3 / 5,
    "accuracy": 3 / 5,
}
SUBSETS = [names for size in range(1, 5) for names in itertools.combinations(BUILDERS, size)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The cache folder of evaluate."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "home"))
    return tmp_path / "home"


def flat(batch):
    return {name: list(itertools.chain(*rows)) for name, rows in batch.items()}


def both_batches():
    return {name: [*BATCHES[0][name], *BATCHES[1][name]] for name in BATCHES[0]}


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_every_subset_can_be_combined(names, home):
    combined = evaluate.combine([BUILDERS[name]() for name in names])
    for batch in BATCHES:
        combined.add_batch(**batch)
    by_batch = combined.compute()
    assert {name: by_batch[name] for name in names} == pytest.approx({name: EXPECTED[name] for name in names})
    assert combined.compute(**both_batches()) == by_batch
    for prediction, reference, log_prob in zip(*flat(both_batches()).values(), strict=True):
        combined.add(prediction=prediction, reference=reference, log_probs=log_prob)
    assert combined.compute() == by_batch
    assert not home.exists()


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("settings", [{}, {"cache_dir": True}], ids=["in memory", "on disk"])
def test_in_batches_at_once_or_one_by_one(name, settings, tmp_path, home):
    metric = BUILDERS[name](**{key: str(tmp_path / "cache") for key in settings})
    for batch in BATCHES:
        metric.add_batch(**{key: values for key, values in batch.items() if key in metric.features})
    assert list(tmp_path.rglob("*.arrow")) if settings else not list(tmp_path.iterdir())
    assert metric.compute()[name] == pytest.approx(EXPECTED[name])
    assert metric.compute(**both_batches())[name] == pytest.approx(EXPECTED[name])
    for batch in BATCHES:
        for prediction, reference, log_prob in zip(*flat(batch).values(), strict=True):
            given = {"prediction": prediction, "reference": reference, "log_probs": log_prob}
            metric.add(**{key: value for key, value in given.items() if key != "log_probs" or key in metric.features})
    assert metric.compute()[name] == pytest.approx(EXPECTED[name])
    assert not list(tmp_path.rglob("*.arrow"))
    assert not home.exists()


def read_only(rows):
    array = np.array(rows)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("kind", [np.array, torch.tensor, read_only, lambda rows: [torch.tensor(row) for row in rows]])
def test_arrays_and_tensors_are_read_like_lists(kind):
    rows = {"references": [[1, 2, IGNORED]], "log_probs": [[-1.0, -2.0, 0.0]]}
    metrics = Perplexity().compute(**{name: kind(values) for name, values in rows.items()})
    assert metrics == pytest.approx({"perplexity": math.exp(1.5), "nats_per_token": 1.5})


def test_a_metric_keeps_sums_and_not_tokens():
    metric = Perplexity()
    for _ in range(3):
        metric.add_batch(references=torch.ones(50, 40, dtype=torch.long), log_probs=torch.full((50, 40), -1.0))
    assert len(metric) == 3
    assert metric.compute()["perplexity"] == pytest.approx(math.e)


@pytest.mark.parametrize(
    ("build", "given", "message"),
    [
        (Perplexity, {"references": [1, 2], "log_probs": [-1.0]}, "'references': 2, 'log_probs': 1.*shift labels"),
        (Perplexity, {"references": [1], "log_probs": [0.5]}, "log_probs contains 0.5: the logarithm"),
        (Perplexity, {"references": [1]}, "log_probs"),
        (Perplexity, {"references": [IGNORED], "log_probs": [-1.0]}, "all references are -100"),
        (Perplexity, {}, "nothing to compute from"),
        (
            TokenAccuracy,
            {"references": [1], "predictions": [[0.1, 0.9]]},
            "predictions contains 0.1, not ids: .* argmax",
        ),
        (TokenAccuracy, {"references": [IGNORED], "predictions": [1]}, "all references are -100"),
        (BUILDERS["bits_per_byte"], {"references": [4], "log_probs": [-1.0]}, "id 4 .* 0 and 3: token_bytes belongs"),
        (BUILDERS["accuracy"], {"references": [1], "predictions": [4]}, "id 4 .* 0 and 3: num_labels"),
        (ClassificationMetrics, {"references": [-1], "predictions": [1]}, "id -1 is not between"),
        (ClassificationMetrics, {"references": [IGNORED], "predictions": [1]}, "must be square and not empty"),
    ],
)
def test_refuses(build, given, message):
    with pytest.raises(ValueError, match=message):
        build().compute(**given)


def test_refuses_a_batch_without_a_field():
    with pytest.raises(ValueError, match="log_probs is missing"):
        Perplexity().add_batch(references=[1])


def test_refuses_fields_of_other_metrics():
    with pytest.raises(ValueError, match=r"Bad inputs.*scores"):
        Perplexity().add_batch(references=[1], log_probs=[-1.0], scores=[1])


# Classification


CASES = {
    "all classes": ([0, 1, 2, 2, 1, 0, 2], [0, 2, 2, 2, 1, 1, 0], 3),
    "a class never predicted": ([0, 1, 2, 2], [0, 0, 2, 2], 3),
    "a class that does not occur": ([0, 1, 1], [0, 2, 1], 3),
    "a class that neither occurs nor is predicted": ([0, 1, 1], [0, 1, 0], 4),
    "two classes": ([0, 1, 1, 0, 1], [0, 1, 0, 0, 1], 2),
    "one class only": ([1, 1], [1, 1], 2),
}


@pytest.mark.parametrize("case", CASES)
def test_classification_as_scikit_learn(case):
    sklearn = pytest.importorskip("sklearn.metrics")
    references, predictions, size = CASES[case]
    metrics = ClassificationMetrics(size).compute(predictions=predictions, references=references)
    assert metrics["accuracy"] == sklearn.accuracy_score(references, predictions)
    assert metrics["confusion_matrix"] == sklearn.confusion_matrix(
        references, predictions, labels=range(size)
    ).tolist()  # fmt: skip
    macro = sklearn.precision_recall_fscore_support(references, predictions, average="macro", zero_division=0)
    assert [metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx(macro[:3])
    for positive in range(size):
        metrics = ClassificationMetrics(size, positive=positive).compute(predictions=predictions, references=references)
        of_one = sklearn.precision_recall_fscore_support(
            references, predictions, labels=[positive], average="macro", zero_division=0
        )
        names = ("positive_precision", "positive_recall", "positive_f1")
        assert [metrics[name] for name in names] == pytest.approx(of_one[:3])


def test_the_matrix_is_as_large_as_the_classes_that_occur():
    metrics = ClassificationMetrics().compute(predictions=[0, 2, 5], references=[0, 1, IGNORED])
    assert metrics["confusion_matrix"] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_confusion_matrices_may_be_weighted():
    assert classification_metrics([[0.5, 0.25], [0.0, 0.25]]) == classification_metrics(torch.tensor([[2, 1], [0, 1]]))


@pytest.mark.parametrize(
    ("confusion", "positive", "message"),
    [
        ([[1, 2]], None, r"shape \(1, 2\)"),
        ([[0, 0], [0, 0]], None, "sum 0.0: it must be square and not empty"),
        ([[1, 0], [0, 1]], 2, "positive is 2, but the classes are 0 to 1"),
    ],
)
def test_refuses_a_matrix(confusion, positive, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(confusion, positive)


# Models


def test_scores_of_targets_match_log_softmax(monkeypatch):
    monkeypatch.setattr(evaluate_metrics, "POSITIONS_AT_ONCE", 4)
    logits = torch.randn(2, 5, VOCAB).bfloat16()
    targets = tiny_ids(2, 5)
    targets[1, 2] = IGNORED
    predictions, log_probs = evaluate_metrics.score_targets(logits, targets)
    expected = logits.float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    expected[1, 2] = 0
    torch.testing.assert_close(log_probs, expected)
    assert torch.equal(predictions, logits.argmax(-1))


@pytest.mark.parametrize("by_batch", [False, True], ids=["at the end", "by batch"])
def test_in_the_trainer_perplexity_is_exp_of_eval_loss(tmp_path, by_batch):
    rows = [{"input_ids": row, "labels": row.clone()} for row in tiny_ids(batch=7, seq=11)]
    metrics = [Perplexity(), BitsPerByte(torch.full((VOCAB,), 2)), TokenAccuracy()]
    trainer = Trainer(
        model=tiny_model(),
        args=TrainingArguments(
            str(tmp_path), per_device_eval_batch_size=3, batch_eval_metrics=by_batch, use_cpu=True,
            report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        eval_dataset=rows,
        preprocess_logits_for_metrics=evaluate_metrics.score_labels,
        compute_metrics=evaluate_metrics.compute_metrics_with(metrics),
    )  # fmt: skip
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_nats_per_token"], rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]), rel=1e-5)
    assert metrics["eval_bits_per_byte"] == pytest.approx(metrics["eval_loss"] / math.log(2) / 2, rel=1e-5)
    ids = torch.stack([row["input_ids"] for row in rows])
    hits = trainer.model(ids).logits[:, :-1].argmax(-1) == ids[:, 1:]
    assert metrics["eval_token_accuracy"] == pytest.approx(float(hits.float().mean()))
