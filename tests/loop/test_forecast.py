"""The expected time of a run: what is timed, and how it adds up."""

import pytest
import torch

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from train.loop import forecast
from train.loop.forecast import Speed, format_duration, measure_speed, seconds_of, seconds_of_run

SPEED = Speed(micro_batch=2.0, update=0.5, evaluation=0.25)


def test_steps_and_evaluations_add_up():
    assert SPEED.step(4) == 8.5
    assert seconds_of_run(SPEED, max_steps=10, num_micro_batches=4, eval_steps=4, eval_micro_batches=3) == 85 + 3 * 0.75
    assert seconds_of_run(SPEED, max_steps=10, num_micro_batches=4, eval_steps=0, eval_micro_batches=3) == 85 + 0.75


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.5, "1.5 seconds"), (59, "59 seconds"), (130, "2.2 minutes"), (3000, "50 minutes"), (9000, "2.5 hours"),
     (90_000, "25 hours"), (5e6, "58 days")],
)  # fmt: skip
def test_durations_are_said_in_a_suitable_unit(seconds, text):
    assert format_duration(seconds) == text


def test_the_time_is_the_median_of_the_calls_after_the_first(monkeypatch):
    times = iter([0, 9, 10, 10.5, 20, 20.25, 30, 31])
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(times))
    assert seconds_of(lambda: None, torch.device("cpu")) == 0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_parts_are_measured_without_a_trace_in_the_random_state(precision):
    model = ScratchGPTForCausalLM(ScratchGPTConfig.from_preset("tiny", num_hidden_layers=1, residual_dropout=0.1))
    before = torch.random.get_rng_state()
    speed = measure_speed(
        model, optimizer="muon", micro_batch_size=2, block_size=8, precision=precision, device=torch.device("cpu")
    )
    assert min(speed.micro_batch, speed.update, speed.evaluation) > 0
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
