"""A step, a run, an evaluation and samples: equal however they are split, stopped or looked at."""

import json
import math
import os
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import LlamaConfig, LlamaForCausalLM

from hf_scratch_gpt import ScratchGPTTokenizer
from train import loop, resume
from train.arguments import TrainArguments
from train.data import StepSampler
from train.metrics import RunLog, token_byte_lengths
from train.optimizer import build_optimizers
from train.run import Run, TrainState

BLOCK = 12
VOCABULARY = 270


@dataclass
class Rows:
    """Validation or training rows in memory."""

    ids: torch.Tensor
    block_size: int = BLOCK

    def __len__(self):
        return len(self.ids)

    def rows(self, indices):
        return self.ids[torch.as_tensor(list(indices))]


class RaggedLabels(StepSampler):
    """Hides a different share of the labels of each sequence, all of them in some micro-batches."""

    def micro_batches(self, step):
        for number, batch in super().micro_batches(step):
            shares = batch["input_ids"][:, :1] % (BLOCK + 3)
            labels = batch["shift_labels"]
            yield number, batch | {"shift_labels": labels.masked_fill(torch.arange(BLOCK) < shares, -100)}


@pytest.fixture(autouse=True)
def new_accelerator_state():
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def tokenizer():
    return ScratchGPTTokenizer.train_from_texts(
        ["def f(x):\n    return x\n"] * 20, VOCABULARY, model_max_length=64, show_progress=False
    )


@pytest.fixture
def build(tmp_path, tokenizer):
    """Builds a run with changed settings; dropout is on."""

    def build(name="run", sampler=StepSampler, dropout=0.1, seed=0, **settings):
        settings = {
            "max_steps": 6, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 2, "learning_rate": 3e-3,
            "log_every": 1, "eval_every": 3, "save_every": 2, "eval_sequences": 5, "seed": seed,
        } | settings  # fmt: skip
        arguments = TrainArguments(str(tmp_path / name), **settings)
        (tmp_path / name).mkdir(exist_ok=True)
        torch.manual_seed(seed)
        ids = torch.randint(6, VOCABULARY, (23, BLOCK + 1))
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, attention_dropout=dropout, tie_word_embeddings=True, max_position_embeddings=64,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=None, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        model = LlamaForCausalLM(config).train()
        optimizers = build_optimizers(
            model, optimizer=arguments.optimizer, learning_rate=arguments.learning_rate, weight_decay=0.1
        )
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        model, *optimizers = accelerator.prepare(model, *optimizers)
        return Run(
            arguments=arguments,
            accelerator=accelerator,
            model=model,
            optimizers=optimizers,
            batches=sampler(Rows(ids), arguments.batch_size, arguments.micro_batch_size, seed),
            validation=Rows(ids[:7].flip(1)),
            tokenizer=tokenizer,
            token_bytes=token_byte_lengths(tokenizer),
            frozen={"learning_rate": arguments.learning_rate, "batch_size": arguments.batch_size},
        )

    return build


def start(run):
    return loop.train(run, resume.resume(run))


def weights(run):
    return {name: tensor.clone() for name, tensor in run.bare_model.state_dict().items()}


def assert_same_weights(one, other):
    assert all(torch.equal(one[name], other[name]) for name in one)


def records(run, name="metrics.jsonl"):
    lines = [json.loads(line) for line in (run.folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


@pytest.mark.parametrize("sampler", [StepSampler, RaggedLabels])
def test_accumulation_changes_nothing_but_the_rounding(build, sampler):
    results = []
    for name, micro_batch_size in (("whole", 16), ("split", 1)):
        run = build(
            name, sampler, dropout=0.0, batch_size=16, micro_batch_size=micro_batch_size, max_steps=12, eval_every=0
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
    batches = [batch for _, batch in run.batches.micro_batches(0)]
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

    with pytest.raises(ValueError, match="step 1 has no token to predict"):
        start(build(sampler=NoLabels))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_run_continues_as_if_it_had_not_stopped(build, monkeypatch, optimizer):
    settings = {"optimizer": optimizer, "sample_prompts": ["def"], "sample_tokens": 3}
    whole = build("whole", **settings)
    start(whole)
    first = build("parts", **settings)
    real_step = loop.train_step

    def killed_in_step_6(run, state, wants_stop=False):
        if state.step == 5:
            raise KeyboardInterrupt
        return real_step(run, state, wants_stop)

    monkeypatch.setattr(loop, "train_step", killed_in_step_6)
    with pytest.raises(KeyboardInterrupt):
        start(first)
    monkeypatch.setattr(loop, "train_step", real_step)
    second = build("parts", **settings)
    torch.manual_seed(99)
    state = resume.resume(second)
    assert state.step == 4  # the last multiple of save_every
    state = loop.train(second, state)
    assert state.step == 6
    assert_same_weights(weights(whole), weights(second))
    assert records(whole) == records(second)
    assert records(whole, "samples.jsonl") == records(second, "samples.jsonl")
    assert state.best_eval_loss == min(record["eval_loss"] for record in records(whole) if "eval_loss" in record)


def test_dropout_differs_between_steps_and_micro_batches(build):
    run = build(dropout=0.5, learning_rate=1e-12, batch_size=4, micro_batch_size=2)
    one_batch = next(iter(run.batches.micro_batches(0)))[1]
    seen = []
    for step, number in ((0, 0), (0, 1), (1, 0), (0, 0)):
        torch.manual_seed(loop.seed_at(0, step, number))
        seen.append(loop.forward_loss(run, run.model, one_batch, 1).item())
    assert seen[0] == seen[3]
    assert len(set(seen)) == 3


def test_a_restart_without_checkpoint_cuts_the_logs(build):
    run = build(save_every=0)
    (run.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    assert resume.resume(run) == TrainState()
    assert (run.folder / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("sample_prompts", [["def f", "", "x"]])
def test_looking_at_a_run_does_not_disturb_it(build, sample_prompts):
    plain = build("plain", eval_every=0)
    start(plain)
    watched = build("watched", eval_every=1, sample_prompts=sample_prompts, sample_tokens=4)
    state = torch.random.get_rng_state()
    assert len(loop.sample(watched)) == 3
    assert torch.equal(torch.random.get_rng_state(), state)
    start(watched)
    assert watched.model.training
    assert_same_weights(weights(plain), weights(watched))


def test_samples_are_the_same_for_the_same_weights(build):
    run = build(sample_prompts=["def f", "def f"], sample_tokens=8)
    first, again = loop.sample(run), loop.sample(run)
    assert first == again
    assert first[0] != first[1]  # each prompt has its own seed


def test_evaluation_is_the_mean_over_sequences_spread_evenly(build):
    run = build(eval_sequences=5, micro_batch_size=2)
    figures = loop.evaluate(run)
    rows = run.validation.rows([0, 1, 2, 4, 5])  # 5 of 7
    run.model.eval()
    logits = run.model(input_ids=rows[:, :-1]).logits
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    assert figures["eval_loss"] == pytest.approx(nats / (5 * BLOCK), abs=1e-5)
    assert figures["eval_perplexity"] == pytest.approx(math.exp(figures["eval_loss"]))
    num_bytes = run.token_bytes[rows[:, 1:]].sum().item()
    assert figures["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    whole = build("all", eval_sequences=0)
    assert loop.evaluate(whole)["eval_loss"] != figures["eval_loss"]


def test_the_order_of_a_run(build, monkeypatch):
    calls = []
    for name in ("set_learning_rate", "train_step", "evaluate", "sample", "save"):
        original = getattr(loop, name)
        monkeypatch.setattr(
            loop, name, lambda *args, name=name, original=original, **kw: calls.append(name) or original(*args, **kw)
        )
    start(build(max_steps=3, warmup_steps=0, eval_every=2, save_every=2))
    step = ["set_learning_rate", "train_step"]
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

    monkeypatch.setattr(run.optimizers[0], "step", remember)
    result = loop.train_step(run, TrainState())
    assert result.grad_norm > 0.1
    assert norms[0] == pytest.approx(max_grad_norm or result.grad_norm, rel=1e-3)


def test_one_batch_can_be_learnt_by_heart(build):
    run = build(
        batch_size=2, micro_batch_size=2, max_steps=60, dropout=0.0, learning_rate=0.02, eval_every=0, save_every=0
    )
    run.batches = StepSampler(Rows(run.batches.blocks.ids[:2]), 2, 2, 0)
    start(run)
    losses = [record["loss"] for record in records(run) if "loss" in record]
    assert losses[0] > 5
    assert losses[-1] < 0.3


def spoil(monkeypatch, run, bad_steps, factor=math.nan):
    """Multiplies the loss of some steps, counted from 1; a step has two micro-batches."""
    real_loss, calls = loop.forward_loss, iter(range(1000))

    def forward_loss(*args, **kwargs):
        is_bad = run.model.training and next(calls) // 2 + 1 in bad_steps
        return real_loss(*args, **kwargs) * (factor if is_bad else 1)

    monkeypatch.setattr(loop, "forward_loss", forward_loss)


def test_an_update_that_is_not_finite_is_left_out_and_recorded(build, monkeypatch):
    run = build(eval_every=0)
    before = {}
    real_skip = RunLog.write_skip
    monkeypatch.setattr(RunLog, "write_skip", lambda *args: before.update(weights(run)) or real_skip(*args))
    spoil(monkeypatch, run, {4})
    steps = iter(range(100))
    monkeypatch.setattr(run.optimizers[0], "step", lambda real=run.optimizers[0].step: (next(steps), real()))
    state = start(run)
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (6, [4], 0)
    assert next(steps) == 5  # updates
    assert [record["skipped"] for record in records(run) if "skipped" in record] == ["loss is nan"]
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_a_run_that_does_not_recover_stops_with_the_last_good_checkpoint(build, monkeypatch):
    run = build(eval_every=0, max_skipped=2)
    spoil(monkeypatch, run, {4, 5, 6})
    with pytest.raises(ValueError, match=r"2 updates in a row .* step 5 \(loss is nan\).*checkpoint-00000004"):
        start(run)
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_skips_are_counted_across_a_restart(build, monkeypatch):
    run = build(eval_every=0, save_every=1, max_steps=3, warmup_steps=0)
    spoil(monkeypatch, run, {3})
    start(run)
    state = resume.resume(build(eval_every=0, save_every=1, max_steps=3, warmup_steps=0))
    assert (state.skipped_in_a_row, state.skipped_steps, len(state.recent)) == (1, [3], 2)


def test_a_gradient_that_is_not_finite_is_left_out_too(build, monkeypatch):
    run = build(max_skipped=1)
    monkeypatch.setattr(run.accelerator, "clip_grad_norm_", lambda *args: torch.tensor(math.inf))
    before = weights(run)
    with pytest.raises(ValueError, match=r"gradient norm is inf.*checkpoint is none"):
        start(run)
    assert_same_weights(before, weights(run))


def test_steps_are_left_out_on_request(build):
    run = build(eval_every=0)
    run.left_out = [(2, 3)]
    state = loop.train(run, TrainState())
    logged = records(run)
    assert [record["step"] for record in logged if "skipped" in record] == [2, 3]
    assert state.tokens_seen == 4 * 4 * BLOCK
    assert state.skipped_in_a_row == 0  # they are no sign of trouble


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                                   torch.OutOfMemoryError("CUDA out of memory")])  # fmt: skip
def test_too_little_memory_ends_with_the_settings_that_need_less(build, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(loop, "forward_loss", fail)
    with pytest.raises(
        ValueError, match=r"micro-batch of 2 sequences on cpu.*--micro_batch_size 1, or --gradient_chec"
    ):
        start(build())


def test_other_errors_stay_what_they_are(build, monkeypatch):
    def fail(*args):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(loop, "forward_loss", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        start(build())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends(build, monkeypatch, capsys, number):
    run = build(save_every=0, eval_every=0)
    real_step = loop.train_step

    def signalled(run, state, wants_stop=False):
        if state.step == 1:
            os.kill(os.getpid(), number)
        return real_step(run, state, wants_stop)

    monkeypatch.setattr(loop, "train_step", signalled)
    before = signal.getsignal(number)
    assert start(run).step == 3  # the step in progress and one that tells all processes
    assert signal.getsignal(number) == before
    assert "stopped after step 3 and saved: the same command continues" in capsys.readouterr().out
    assert [path.name for path in run.folder.glob("checkpoint-*")] == ["checkpoint-00000003"]


def test_a_second_interrupt_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), loop.stop_on_signals() as stop:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)


def test_changed_settings_are_refused_with_old_and_new(build):
    start(build(max_steps=2))
    changed = build(max_steps=2, learning_rate=1e-2)
    with pytest.raises(ValueError, match=r"learning_rate: was 0.003, now 0.01\n.*new run with another --output_dir"):
        resume.resume(changed)


def test_a_change_that_is_allowed_by_name_is_made_and_said(build, capsys):
    start(build(max_steps=2))
    changed = build(max_steps=2, learning_rate=1e-2, allow_change=["learning_rate"])
    assert resume.resume(changed).step == 2
    assert "changed on request: learning_rate: was 0.003, now 0.01" in capsys.readouterr().out
    other = build(max_steps=2, learning_rate=1e-2, allow_change=["batch_size"])
    with pytest.raises(ValueError, match=r"learning_rate: was 0\.003"):
        resume.resume(other)


def test_a_change_that_only_shows_more_is_allowed(build):
    start(build(max_steps=4, warmup_steps=0))
    again = build(max_steps=4, warmup_steps=0)
    again.arguments = replace(again.arguments, eval_every=1)
    assert resume.resume(again).step == 4


def test_seeds_are_distinct_and_fit_torch():
    seeds = {loop.seed_at(seed, step, number) for seed in range(5) for step in range(20) for number in range(5)}
    seeds |= {loop.seed_at(0, 11, 1), loop.seed_at(0, 1, 11), loop.seed_at(0, "sample", 1)}
    assert len(seeds) == 502
    assert all(0 <= seed < 2**63 for seed in seeds)
