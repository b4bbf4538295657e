"""EleutherAI's harness loads our models as `hf` models and computes the same metrics."""

import json
import random

import pytest
import torch
import yaml

from tests.support.tiny import tiny_model
from tests.support.tiny_loop import VOCABULARY
from train.metrics.evaluate_metrics import BitsPerByte, score_targets
from train.metrics.minimal_pairs import accuracies, encode_pairs, read_pairs, sum_log_probs
from train.metrics.perplexity import token_byte_lengths

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

MINIMAL_PAIRS = {
    "output_type": "multiple_choice",
    "doc_to_text": "",
    "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
    "doc_to_target": 0,
    "target_delimiter": "",  # by default the harness adds a leading space
    "metric_list": [{"metric": "acc"}],
}
TEXTS = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{sentence_good}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=VOCABULARY)


@pytest.fixture(params=["object", "path"])
def harness_model(request, model, tokenizer, tmp_path):
    """The model as an object or as a path."""
    if request.param == "object":
        return {"model": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")}
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return {"model": "hf", "model_args": {"pretrained": str(tmp_path / "model"), "device": "cpu", "batch_size": 4}}


@pytest.fixture
def pairs_file(tmp_path):
    words = random.Random(0)

    def sentence():
        return " ".join(words.choices(["def", "f", "return", "x", "y", "(x):"], k=words.randint(2, 6)))

    rows = [{"sentence_good": sentence(), "sentence_bad": sentence() + " z"} for _ in range(15)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(harness_model, task, path, tmp_path):
    data = {"data_files": {"test": str(path)}, "cache_dir": str(tmp_path / "cache")}
    settings = {"task": "local", "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(settings | task))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(**harness_model, tasks=["local"], task_manager=tasks, bootstrap_iters=0)
    samples = sorted(results["samples"]["local"], key=lambda sample: sample["doc_id"])
    return results["results"]["local"], [sample["filtered_resps"] for sample in samples]


def test_accuracy_of_minimal_pairs_matches(harness_model, model, tokenizer, pairs_file, tmp_path):
    results, answers = run(harness_model, MINIMAL_PAIRS, pairs_file, tmp_path)
    pairs = read_pairs([pairs_file])
    sums = sum_log_probs(model, encode_pairs(pairs, tokenizer, block_size=64), batch_size=4)
    (ours,), _ = accuracies(pairs, sums)
    assert 0 < ours.num_correct < ours.num_pairs == 15
    assert results["acc,none"] == pytest.approx(ours.accuracy)
    log_probs = torch.tensor([log_prob for choices in answers for log_prob, _ in choices], dtype=torch.float64)
    torch.testing.assert_close(log_probs, sums, atol=1e-4, rtol=0)


def test_bits_per_byte_match(harness_model, model, tokenizer, pairs_file, tmp_path):
    results, _ = run(harness_model, TEXTS, pairs_file, tmp_path)
    metric = BitsPerByte(token_byte_lengths(tokenizer))
    for pair in read_pairs([pairs_file]):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(pair.good)["input_ids"]]])
        _, log_probs = score_targets(model(ids[:, :-1]).logits, ids[:, 1:])
        metric.add_batch(references=ids[:, 1:], log_probs=log_probs)
    assert results["bits_per_byte,none"] == pytest.approx(metric.compute()["bits_per_byte"], rel=1e-5)


def test_loglikelihood_matches_our_logits(model, tokenizer):
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    questions = [("def f(x):", "\n    return x"), ("return", " x"), ("", "def")]
    answers = harness.loglikelihood([Instance("loglikelihood", {}, question, 0) for question in questions])
    for (context, continuation), (log_prob, _) in zip(questions, answers, strict=True):
        start = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
        end = tokenizer(context + continuation)["input_ids"][len(tokenizer(context)["input_ids"]) :]
        log_probs = model(torch.tensor([start + end])).logits[0].detach().log_softmax(-1)
        expected = sum(float(log_probs[len(start) - 1 + i, token]) for i, token in enumerate(end))
        assert log_prob == pytest.approx(expected, abs=1e-4)
