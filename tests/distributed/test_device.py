"""Number formats, processes, speed and memory of a machine."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from train.distributed import device
from train.distributed.device import (
    build_accelerator,
    check_world_size,
    has_bfloat16_hardware,
    matmul_rate,
    resolve_precision,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("precision", "launched", "has_hardware", "resolved"),
    [
        ("auto", None, True, "bf16"),
        ("auto", None, False, "fp32"),
        ("auto", "no", True, "bf16"),  # set by accelerate launch by default
        ("auto", "bf16", False, "bf16"),
        ("auto", "fp16", True, "fp16"),
        ("fp32", "bf16", True, "fp32"),
        ("bf16", "no", False, "bf16"),
        ("fp16", None, True, "fp16"),
    ],
)
def test_precision_comes_from_the_option_then_the_launcher_then_the_hardware(
    monkeypatch, precision, launched, has_hardware, resolved
):
    monkeypatch.setattr(device, "has_bfloat16_hardware", lambda where: has_hardware)
    assert resolve_precision(precision, GPU, launched) == resolved


def test_fp16_needs_a_gpu():
    with pytest.raises(ValueError, match="--precision fp16 needs a GPU"):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_a_cpu_has_bfloat16_with_either_unit(monkeypatch, name):
    for each in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, each, lambda: False)
    assert not has_bfloat16_hardware(CPU)
    monkeypatch.setattr(torch.cpu, name, lambda: True)
    assert has_bfloat16_hardware(CPU)


def test_other_torch_versions_may_lack_the_names(monkeypatch):
    for each in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, each)
    assert not has_bfloat16_hardware(CPU)


def test_processes_that_do_not_see_each_other_are_refused():
    check_world_size(2, "2")
    check_world_size(1, None)
    with pytest.raises(ValueError, match=r"started 2 processes.*but only 1 takes part"):
        check_world_size(1, "2")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_rate_of_matrix_products_is_that_of_the_fastest_round(monkeypatch, precision, dtype):
    """With a clock that only matrix products advance: 3 rounds, whose products take 4, 1 and 2 seconds."""
    matrices = []

    class Matrix:
        def __init__(self, rows, columns, **kwargs):
            assert (rows, kwargs) == (columns, {"dtype": dtype, "device": CPU})
            self.size, self.seconds = rows, []
            matrices.append(self)

        def __matmul__(self, other):
            assert other is self
            self.seconds.append((4.0, 1.0, 2.0)[len(self.seconds) // 5])

    clock = SimpleNamespace(perf_counter=lambda: sum(matrices[0].seconds))
    monkeypatch.setattr(torch, "ones", Matrix)
    monkeypatch.setattr(device, "time", clock)
    rate = matmul_rate(CPU, precision)
    (matrix,) = matrices
    assert len(matrix.seconds) == 15
    assert rate == 2 * matrix.size**3  # multiplications and additions of one product, in one second


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems manage memory differently")
def test_freed_memory_is_kept():
    """In a new process: threads and earlier tests affect the allocator."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000


COUNT_FAULTS = """
import resource, torch
from train.distributed.device import build_accelerator, keep_freed_memory
keep_freed_memory()
faults = []
for _ in range(9):  # a small allocation behind the large one makes the heap grow once more
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(20_000_000).fill_(1)  # 80 MB, above glibc's own limit of 32 MB: 20 000 pages
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(faults)[4])
"""


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "would divide all gradients by it: remove it"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "use --torch_compile true instead"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "use no, bf16 or fp16"),
    ],
)
def test_what_a_launcher_would_change_silently_is_refused(monkeypatch, name, value, remedy):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"the launcher sets .*{value}.*{remedy}"):
        build_accelerator("auto")


def test_the_defaults_of_the_launcher_are_accepted(monkeypatch):
    for name, value in (("GRADIENT_ACCUMULATION_STEPS", "1"), ("DYNAMO_BACKEND", "NO"), ("MIXED_PRECISION", "no")):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    build_accelerator("fp32")
