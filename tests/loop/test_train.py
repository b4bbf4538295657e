"""Steps, runs, evaluations and samples: the same however they are split, stopped or observed."""

import math
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.support.stopped import killed_after, signalled_after
from tests.support.tiny_loop import BLOCK, Rows, assert_same_weights, records, start, weights
from train.checkpoint.checkpointer import Checkpointer
from train.checkpoint.state import TrainState
from train.data.sampler import StepSampler
from train.loop import evaluation, language_modeling
from train.loop import train as loop
from train.loop.resume import resume
from train.loop.samples import RowSampler
from train.loop.signals import stop_on_signals
from train.settings.seeds import seed_at


class RaggedLabels(StepSampler):
    """Hide a different share of the labels of each sequence, all of them in some micro-batches."""

    def micro_batches(self, step):
        for number, batch in super().micro_batches(step):
            shares = batch["input_ids"][:, :1] % (BLOCK + 3)
            labels = batch["shift_labels"]
            yield number, batch | {"shift_labels": labels.masked_fill(torch.arange(BLOCK) < shares, -100)}


@pytest.mark.parametrize("sampler", [StepSampler, RaggedLabels])
def test_accumulation_changes_nothing_but_the_rounding(build, sampler):
    results = []
    for name, micro_batch_size in (("whole", 16), ("split", 1)):
        run = build(
            name,
            sampler,
            dropout=0.0,
            global_batch_size=16,
            micro_batch_size=micro_batch_size,
            max_steps=12,
            eval_steps=0,
        )
        start(run)
        results.append([record for record in records(run) if "loss" in record])
    assert len(results[0]) == 12
    for whole, split in zip(*results, strict=True):
        assert whole["tokens_seen"] == split["tokens_seen"]
        assert whole["loss"] == pytest.approx(split["loss"], abs=5e-6)
        assert whole["grad_norm"] == pytest.approx(split["grad_norm"], abs=5e-6)


def test_the_loss_is_the_mean_over_all_target_tokens(build):
    run = build(sampler=RaggedLabels, dropout=0.0)
    batches = [batch for _, batch in run.sampler.micro_batches(0)]
    ids, labels = (torch.cat([batch[name] for batch in batches]) for name in ("input_ids", "shift_labels"))
    expected = torch.nn.functional.cross_entropy(run.model(input_ids=ids).logits.flatten(0, 1), labels.flatten())
    result = loop.train_step(run, TrainState())
    assert result.loss == pytest.approx(expected.item(), abs=1e-5)
    assert result.num_tokens == (labels != -100).sum() < labels.numel()


def test_a_batch_without_any_target_is_refused(build):
    class NoLabels(StepSampler):
        def micro_batches(self, step):
            for number, batch in super().micro_batches(step):
                yield number, batch | {"shift_labels": torch.full_like(batch["shift_labels"], -100)}

    with pytest.raises(ValueError, match="step 1 has nothing to predict"):
        start(build(sampler=NoLabels))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_run_continues_as_if_it_had_not_stopped(build, optimizer):
    settings = {"optimizer": optimizer, "sample_prompts": ["def"], "max_new_tokens": 3}
    whole = build("whole", **settings)
    start(whole)
    first = build("parts", **settings)
    with killed_after(5):
        start(first)
    second = build("parts", **settings)
    torch.manual_seed(99)
    state = resume(second, recipe="")
    assert state.step == 4  # the last multiple of save_steps
    assert loop.train(second, state)
    assert state.step == 6
    assert_same_weights(weights(whole), weights(second))
    assert records(whole) == records(second)
    assert records(whole, "samples.jsonl") == records(second, "samples.jsonl")


def test_dropout_differs_between_steps_and_micro_batches(build):
    run = build(dropout=0.5, learning_rate=1e-12, global_batch_size=4, micro_batch_size=2)
    one_batch = next(iter(run.sampler.micro_batches(0)))[1]
    seen = []
    for step, number in ((0, 0), (0, 1), (1, 0), (0, 0)):
        torch.manual_seed(seed_at(0, step, number))
        seen.append(run.objective.loss(run.model, one_batch, 1).item())
    assert seen[0] == seen[3]
    assert len(set(seen)) == 3


def test_a_restart_without_checkpoint_cuts_the_logs(build):
    run = build(save_steps=0)
    (run.folder / "metrics.jsonl").write_text('{"step": 0, "eval_loss": 9.0}\n{"step": 1, "loss": 9.0}\n')
    assert resume(run, recipe="") == TrainState()
    assert (run.folder / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("sample_prompts", [["def f", "", "x"]])
def test_evaluations_and_samples_do_not_change_a_run(build, sample_prompts):
    plain = build("plain", eval_steps=0)
    start(plain)
    watched = build("watched", eval_steps=1, sample_prompts=sample_prompts, max_new_tokens=4)
    state = torch.random.get_rng_state()
    assert len(evaluation.sample(watched)) == 3
    assert torch.equal(torch.random.get_rng_state(), state)
    start(watched)
    assert watched.model.training
    assert_same_weights(weights(plain), weights(watched))


def test_samples_are_the_same_for_the_same_weights(build):
    run = build(sample_prompts=["def f", "def f"], max_new_tokens=8)
    first, again = evaluation.sample(run), evaluation.sample(run)
    assert first == again
    assert first[0] != first[1]  # each prompt has its own seed


def test_prompts_are_completed_together_as_they_are_alone(build, monkeypatch):
    run = build(sample_prompts=["def f", "", "x", "def f(x):\n    ret"] * 5, max_new_tokens=12)
    together = evaluation.sample(run)
    assert len({text for _, text in together}) > 15
    real_complete = language_modeling.complete

    def one_by_one(model, prompts, seeds, *args):
        assert 1 < len(prompts) <= language_modeling.SAMPLES_AT_ONCE
        return [real_complete(model, [one], [seed], *args)[0] for one, seed in zip(prompts, seeds, strict=True)]

    monkeypatch.setattr(language_modeling, "complete", one_by_one)
    assert evaluation.sample(run) == together


def test_samples_follow_the_probabilities():
    scores = torch.tensor([[0.1, 0.2, 0.7]]).log()
    sampler = RowSampler([7])
    counts = torch.bincount(torch.cat([sampler(scores, scores).argmax(-1) for _ in range(3000)]), minlength=3)
    assert (counts / 3000).tolist() == pytest.approx([0.1, 0.2, 0.7], abs=0.03)


def test_evaluation_is_the_mean_over_sequences_spread_evenly(build):
    run = build(max_eval_samples=5, micro_batch_size=2)
    metrics = evaluation.evaluate(run)
    rows = run.validation.rows([0, 1, 2, 4, 5])  # 5 of 7
    run.model.eval()
    logits = run.model(input_ids=rows[:, :-1]).logits
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    assert metrics["eval_loss"] == pytest.approx(nats / (5 * BLOCK), abs=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    num_bytes = run.objective.token_bytes[rows[:, 1:]].sum().item()
    assert metrics["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    whole = build("all", max_eval_samples=0)
    assert evaluation.evaluate(whole)["eval_loss"] != metrics["eval_loss"]


def test_the_order_of_a_run(build, monkeypatch):
    calls = []
    for owner, name in (
        (loop, "train_step"), (loop, "set_learning_rate"), (evaluation, "evaluate"), (evaluation, "sample"),
        (Checkpointer, "save"),
    ):  # fmt: skip
        original = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, name=name, original=original, **kw: calls.append(name) or original(*args, **kw)
        )
    start(build(max_steps=3, warmup_steps=0, eval_steps=2, save_steps=2))
    step = ["train_step", "set_learning_rate"]
    assert calls == [*step, *step, "evaluate", "sample", "save", *step, "evaluate", "sample", "save"]


def test_the_learning_rate_follows_the_schedule_in_all_optimizers(build):
    run = build(max_steps=10, warmup_steps=4, matrix_learning_rate=0.03, learning_rate=0.01)
    run.optimizers[-1].param_groups[0]["peak_learning_rate"] = 0.03
    loop.set_learning_rate(run, 1)
    rates = [group["lr"] for optimizer in run.optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([0.01 * 2 / 5, 0.01 * 2 / 5, 0.03 * 2 / 5])


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.01])
def test_gradients_are_clipped_and_the_norm_before_is_reported(build, monkeypatch, max_grad_norm):
    run = build(max_grad_norm=max_grad_norm, dropout=0.0)
    norms = []

    def remember():
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    monkeypatch.setattr(run.checkpoints.optimizers[0], "step", remember)
    result = loop.train_step(run, TrainState())
    assert result.grad_norm > 0.1
    assert norms[0] == pytest.approx(max_grad_norm or result.grad_norm, rel=1e-3)


def test_one_batch_can_be_memorized(build):
    run = build(
        global_batch_size=2,
        micro_batch_size=2,
        max_steps=60,
        dropout=0.0,
        learning_rate=0.02,
        eval_steps=0,
        save_steps=0,
    )
    run.sampler = StepSampler(Rows(run.sampler.source.ids[:2]), 2, 2, 0)
    start(run)
    losses = [record["loss"] for record in records(run) if "loss" in record]
    assert losses[0] > 5
    assert losses[-1] < 0.3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends(build, capsys, number):
    run = build(save_steps=0, eval_steps=0)
    before = signal.getsignal(number)
    with signalled_after(1, number):
        assert start(run).step == 3  # the step in progress, and one in which all processes learn of it
    assert signal.getsignal(number) == before
    assert "stopped after step 3 and saved: run the same command again" in capsys.readouterr().out
    assert [path.name for path in run.folder.glob("checkpoint-*")] == ["checkpoint-00000003"]


def test_a_second_interrupt_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)


def test_changed_settings_are_refused_with_old_and_new(build):
    start(build(max_steps=2))
    changed = build(max_steps=2, learning_rate=1e-2)
    with pytest.raises(ValueError, match=r"learning_rate: was 0.003, now 0.01\n.*new run with another --output_dir"):
        resume(changed, recipe="")


def test_a_change_that_is_allowed_by_name_is_made_and_printed(build, capsys):
    start(build(max_steps=2))
    changed = build(max_steps=2, learning_rate=1e-2, allow_change=["learning_rate"])
    assert resume(changed, recipe="").step == 2
    assert "changed as allowed: learning_rate: was 0.003, now 0.01" in capsys.readouterr().out
    other = build(max_steps=2, learning_rate=1e-2, allow_change=["global_batch_size"])
    with pytest.raises(ValueError, match=r"learning_rate: was 0\.003"):
        resume(other, recipe="")


def test_a_change_that_only_shows_more_is_allowed(build):
    start(build(max_steps=4, warmup_steps=0))
    again = build(max_steps=4, warmup_steps=0)
    again.arguments = replace(again.arguments, eval_steps=1)
    assert resume(again, recipe="").step == 4


def test_seeds_are_distinct_and_fit_torch():
    seeds = {seed_at(seed, step, number) for seed in range(5) for step in range(20) for number in range(5)}
    seeds |= {seed_at(0, 11, 1), seed_at(0, 1, 11), seed_at(0, "sample", 1)}
    assert len(seeds) == 502
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_only_the_main_process_gathers_the_weights_and_decides_with_its_norm(build, monkeypatch):
    run = build()
    assert run.whole_weights().keys() == dict(run.bare_model.named_parameters()).keys()
    half = torch.tensor(0.5)
    assert run.from_main(half) == 0.5
    monkeypatch.setattr(run, "accelerator", SimpleNamespace(is_main_process=False, num_processes=2))
    assert run.whole_weights() == {}
    assert run.from_main(half) == 0.0
