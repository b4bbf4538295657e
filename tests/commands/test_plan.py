"""`plan` against hand calculations, and its memory against a measured run."""

import math
import re
from dataclasses import replace

import pytest
import torch

from benchmarks.plan_memory import case, measured_peak
from hf_scratch_gpt import PRESETS, ScratchGPTConfig, ScratchGPTForCausalLM
from train import plan
from train.loop.optimizers import layer_matrices
from train.model.flops import flops_per_token, parameter_parts
from train.plan import PlanArguments
from train.settings.command import run_command
from train.settings.training import ModelArguments

# 2 layers of: q 64 x 64, k and v 32 x 64, o 64 x 64, gate and up 192 x 64, down 64 x 192 = 49,152 weights
TINY = ScratchGPTConfig.from_preset("tiny")
MATRICES = 2 * 49_152
OTHERS = 512 * 64 + 2 * (2 * 64 + 2 * 16) + 64  # embedding, norms of the layers and of their heads, last norm
ONE = PlanArguments(global_batch_size=8, block_size=128, precision="fp32")  # a single micro-batch of 1024 tokens


@pytest.mark.parametrize("preset", PRESETS)
def test_matrices_are_the_ones_that_muon_trains(preset):
    config = ScratchGPTConfig.from_preset(preset, num_hidden_layers=1, vocab_size=8, rope_parameters=None)
    config.max_position_embeddings = 8
    with torch.device("meta"):
        model = ScratchGPTForCausalLM(config)
    assert parameter_parts(config)[0] == sum(matrix.numel() for matrix in layer_matrices(model))


def test_parameters_of_the_tiny_preset():
    assert parameter_parts(TINY) == (MATRICES, OTHERS)


def test_weights_and_optimizer_state():
    assert plan.split_bytes(TINY, ONE, 4, 4) == 4 * (MATRICES + OTHERS)
    assert plan.optimizer_bytes(TINY, ONE) == 4 * MATRICES + 8 * OTHERS
    assert plan.optimizer_bytes(TINY, replace(ONE, optimizer="adamw")) == 8 * (MATRICES + OTHERS)


def test_fsdp_shards_all_weights_and_tensor_parallelism_splits_the_matrices():
    grid = replace(ONE, num_gpus=8, dp_shard_size=4, tp_size=2, micro_batch_size=2)
    assert plan.split_bytes(TINY, grid, 4, 4) == (4 * MATRICES / 2 + 4 * OTHERS) / 4


def test_activations_of_a_token_in_one_layer():
    """fp32: 2 norms of 2 x 64, heads 2 x (64 + 32) with their norms, v 32, output 64, 4 sums, MLP 3 x 192."""
    assert plan.layer_bytes_per_token(TINY, ONE) == 4 * (4 * 64 + 2 * 96 + 32 + 64 + 4 + 3 * 192)
    # bf16: 2 norms of 64 in float32, 5 copies of inputs, the rest but the sums in 2 bytes
    low = 4 * 2 * 64 + 2 * 5 * 64 + 2 * (2 * 96 + 32 + 64) + 4 * 4 + 2 * 3 * 192
    assert plan.layer_bytes_per_token(TINY, replace(ONE, precision="bf16")) == low


def test_tensor_parallelism_does_not_split_the_norms():
    norms = 4 * 4 * 64
    whole = plan.layer_bytes_per_token(TINY, ONE) - norms
    split = plan.layer_bytes_per_token(TINY, replace(ONE, num_gpus=2, tp_size=2)) - norms
    assert split == whole / 2


def test_gradient_checkpointing_keeps_the_inputs_of_layers():
    assert plan.kept_activation_bytes(TINY, replace(ONE, gradient_checkpointing="true")) == 2 * 1024 * 64 * 4


def test_selective_gradient_checkpointing_keeps_products_too():
    """The input, q, attention, output, gate and up; 4 sums. Narrow k, v and down are computed again."""
    selective = replace(ONE, gradient_checkpointing="selective")
    assert plan.kept_activation_bytes(TINY, selective) == 2 * 1024 * 4 * (64 + 64 + 64 + 64 + 2 * 192 + 4)
    low = 4 * 64 + 2 * (64 + 64 + 64 + 2 * 192) + 4 * 4
    assert plan.kept_activation_bytes(TINY, replace(selective, precision="bf16")) == 2 * 1024 * low
    split = replace(selective, num_gpus=2, tp_size=2)
    assert plan.kept_activation_bytes(TINY, split) == 2 * 1024 * 4 * (2 * 64 + (64 + 64 + 2 * 192 + 4) / 2)


def test_logits_of_a_chunk_and_the_gradient_of_the_head():
    """Two float32 tensors of logits for 8192 tokens at a time, however many there are."""
    norm, head = 1024 * 64 * 4 * 4, 512 * 64 * 4
    assert plan.loss_bytes(TINY, ONE) == norm + head + 2 * 4 * 1024 * 512
    two_chunks = replace(ONE, micro_batch_size=128, global_batch_size=128)
    assert plan.loss_bytes(TINY, two_chunks) == 16 * norm + head + 2 * 4 * 8192 * 512


def test_traffic_of_plain_data_parallelism():
    """A ring sends each gradient twice, except for the own part: 4 bytes per parameter with 2 processes."""
    ddp = replace(ONE, num_gpus=2, micro_batch_size=4)
    assert plan.traffic(TINY, ddp) == {"all-reduce of gradients": 4 * (MATRICES + OTHERS)}


def test_traffic_of_fsdp_grows_with_the_micro_batches():
    fsdp = replace(ONE, num_gpus=4, dp_shard_size=4, micro_batch_size=1, optimizer="adamw", precision="bf16")
    assert plan.traffic(TINY, fsdp) == {
        "all-gather of weights": 2 * 3 / 4 * 2 * (2 * MATRICES + OTHERS),  # 2 micro-batches, 2 bytes
        "reduce-scatter of gradients": 3 / 4 * 4 * (MATRICES + OTHERS),
    }


def test_traffic_of_replicas_of_shards_and_of_muon():
    sent = plan.traffic(TINY, replace(ONE, num_gpus=4, dp_shard_size=2, micro_batch_size=2))
    assert sent["all-reduce of gradients"] == 4 * (MATRICES + OTHERS) / 2
    assert sent["all-gather of Muon's momentum"] == 4 * MATRICES / 2


def test_traffic_of_tensor_parallelism():
    tensor = replace(ONE, num_gpus=2, tp_size=2, optimizer="adamw")
    again = replace(tensor, gradient_checkpointing="true")
    assert plan.traffic(TINY, tensor) == {"all-reduce of activations": 2 * 4 * 1024 * 64 * 4}
    assert plan.traffic(TINY, again) == {"all-reduce of activations": 2 * 6 * 1024 * 64 * 4}


def test_flops_are_6_n_and_8_n_with_attention():
    head, attention = 512 * 64, 4 * 2 * 128 * 64
    assert flops_per_token(TINY, 128) == 6 * (MATRICES + head) + 3 * attention
    assert flops_per_token(TINY, 128, gradient_checkpointing=True) == 8 * MATRICES + 6 * head + 4 * attention


def test_seconds_of_a_step():
    two = replace(ONE, num_gpus=2, micro_batch_size=4, tflops=1.0, mfu=0.5, bandwidth_gb_per_second=2.0, overlap=0.25)
    computing, sending = plan.step_seconds(TINY, two)
    assert computing == pytest.approx(1024 * flops_per_token(TINY, 128) / (2 * 1e12 * 0.5))
    assert sending == pytest.approx(4 * (MATRICES + OTHERS) / 2e9 * 0.75)


def test_interval_of_checkpoints():
    """10 s to save, one failure in 1000 h / 8: sqrt(2 x 10 x 450,000) = 3000."""
    assert plan.checkpoint_interval(replace(ONE, num_gpus=8, micro_batch_size=1, save_seconds=10.0,
                                            hours_between_failures=1000.0)) == 3000  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_gpus": 0}, "--num_gpus is 0: it must be positive"),
        ({"mfu": 1.5}, "--mfu is 1.5: it must be between 0 and 1"),
        ({"overlap": -0.5}, "--overlap is -0.5: it must be between 0 and 1"),
        ({"num_gpus": 6, "dp_shard_size": 4}, r"--num_gpus \(6\) must be a multiple of --dp_shard_size \(4\)"),
        ({"num_gpus": 3}, r"--global_batch_size \(8\) must be a multiple of --micro_batch_size \(8\).*\(3\) = 24"),
        ({"num_gpus": 2, "micro_batch_size": 4, "tflops": 1.0}, r"--tflops \(1.0\) requires --bandwidth_gb_per_second"),
        ({"hours_between_failures": 9.0}, r"--hours_between_failures \(9.0\) requires --save_seconds"),
        ({"save_seconds": 5.0}, r"--save_seconds \(5.0\) requires --hours_between_failures"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(ONE, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block_size": 256}, "--block_size is 256, but max_position_embeddings is 128"),
        ({"num_gpus": 8, "tp_size": 8, "block_size": 64}, r"--tp_size \(8\) must divide num_attention_heads \(4\)"),
    ],
)
def test_a_plan_must_fit_the_model(wrong, message):
    with pytest.raises(ValueError, match=message):
        plan.plan_config(ModelArguments(config="tiny"), replace(ONE, **wrong))


def test_the_remedy_in_the_warning_fits(capsys):
    arguments = ["--config", "llama3-1b", "--num_gpus", "8", "--global_batch_size", "64", "--gpu_memory_gb", "40"]
    assert run_command(plan.main, arguments) == 0
    warning = capsys.readouterr().out.partition("WARNING")[2]
    assert "GB exceed 90% of --gpu_memory_gb 40" in warning
    assert run_command(plan.main, arguments + warning.partition("It fits with: ")[2].split()) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_the_table_shows_formulas_and_results(capsys):
    arguments = (
        "--config tiny --num_gpus 8 --dp_shard_size 2 --global_batch_size 64 --block_size 128 --tokens 1e6 --tflops 100"
    )
    more = " --bandwidth_gb_per_second 10 --save_seconds 10 --hours_between_failures 1000"
    assert run_command(plan.main, (arguments + more).split()) == 0
    printed = capsys.readouterr().out
    assert "3,000 s = sqrt(2 x 10 s x 1000 h x 3600 / 8 GPUs)" in printed
    assert f"1,007,616 = {math.ceil(1e6 / 8192)} steps x 8,192" in printed
    assert "WARNING" not in printed


def test_the_time_on_this_machine_is_measured_for_one_process(capsys):
    arguments = "--config tiny --block_size 32 --global_batch_size 8 --micro_batch_size 4 --max_steps 100"
    assert run_command(plan.main, arguments.split()) == 0
    (line,) = re.findall("^time on this machine.*", capsys.readouterr().out, re.MULTILINE)
    assert re.search(r"[\d.]+ (seconds|minutes) = 100 steps x [\d.e-]+ s, measured \((fp32|bf16) on (cpu|cuda)", line)
    for more in ("--measure false", "--num_gpus 2", "--tflops 10"):
        assert run_command(plan.main, f"{arguments} {more}".split()) == 0
        assert "this machine" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"free_memory_of": lambda device: 1e6}, "not measured: the run does not fit into the 0.001 GB that are free"),
        ({"matmul_rate": lambda device, precision: 1e6}, r"not measured: a micro-batch takes \d+ s or more, the run"),
    ],
)
def test_what_would_take_too_much_is_not_measured(limits, message, monkeypatch):
    for name, function in limits.items():
        monkeypatch.setattr(plan, name, function)
    assert re.search(message, plan.measured_time(TINY, ONE, steps=10))


@pytest.mark.parametrize(
    ("settings", "phase"),
    [
        ({}, "at the loss"),
        ({"gradient_checkpointing": "true", "micro_batch_size": 8, "block_size": 256}, "in backward, first layer"),
        ({"gradient_checkpointing": "selective"}, "at the loss"),
        ({"micro_batch_size": 16, "block_size": 256}, "at the loss"),
        ({"micro_batch_size": 1, "block_size": 64}, "in the optimizer"),
        ({"micro_batch_size": 1, "block_size": 64, "optimizer": "adamw"}, "in backward, first layer"),
    ],
    ids=["plain", "checkpointing", "selective", "several chunks", "muon", "adamw"],
)
def test_memory_is_within_8_percent_of_a_measured_run(settings, phase):
    settings = {"micro_batch_size": 4, "block_size": 128} | settings
    expected = plan.memory_by_phase(*case("laptop", {}, settings), "cpu")
    assert max(expected, key=expected.get) == phase
    measured = measured_peak("laptop", {}, settings, torch.device("cpu"))  # the kernels of GPUs keep other tensors
    assert expected[phase] == pytest.approx(measured, rel=0.08)
