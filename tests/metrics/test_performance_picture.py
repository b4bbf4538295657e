"""The picture of docs/performance.md: ratios from the tables of the benchmarks."""

import json

import pytest
from PIL import Image

from benchmarks import picture
from benchmarks.picture import CPU, cpu_bars, gpu_bars

STEP = {
    "title": "Training step, 12 x 64 characters",
    "header": ["", "milliseconds (median)"],
    "rows": [["nanoGPT, AdamW", "1,000.0"], ["ours, Muon", "1,500.0"], ["ours, AdamW", "500.0"]],
}
GENERATION = {
    "title": "gpt2, one sequence, 64 new tokens",
    "header": ["", "weights (MB)", "tokens/s (median)"],
    "rows": [
        ["transformers' GPT-2, bfloat16", "1", "20"],
        ["ours, bfloat16", "1", "25"],
        ["ours, int8, compiled", "1", "80"],
        ["ours, int8", "1", "40"],
    ],
}


def test_tables_become_ratios_to_the_peer():
    assert list(cpu_bars([STEP, GENERATION])) == [
        ("training step, 128 wide, Muon", "nanoGPT", 1.5),
        ("training step, 128 wide, AdamW", "nanoGPT", 0.5),
        ("generated token, 124M, bf16", "transformers' GPT-2", 0.8),
        ("generated token, 124M, int8", "transformers' GPT-2", 0.5),
        ("generated token, 124M, int8 compiled", "transformers' GPT-2", 0.25),
    ]


def test_the_last_table_counts():
    newer = STEP | {"rows": [["nanoGPT, AdamW", "10"], ["ours, Muon", "20"], ["ours, AdamW", "5"]]}
    assert [ratio for _, _, ratio in cpu_bars([STEP, newer])] == [2.0, 0.5]


def test_rows_of_a_gpu_become_ratios():
    rows = {"ours_gpt2": {"step_ms": 60.0, "peak_gib": 7.0}, "nanogpt": {"step_ms": 80.0, "peak_gib": 9.0}}
    assert list(gpu_bars(rows)) == [("training step, 124M, shape of GPT-2", "nanoGPT", 0.75)]


@pytest.mark.parametrize("comparison", CPU, ids=lambda one: one.label)
def test_committed_tables_have_every_row(comparison):
    lines = (picture.RESULTS / "cpu.jsonl").read_text(encoding="utf-8").splitlines()
    bars = cpu_bars([json.loads(line) for line in lines])
    assert comparison.label in [label for label, _, _ in bars]


def test_a_picture_is_drawn(tmp_path):
    (tmp_path / "cpu.jsonl").write_text(json.dumps(STEP) + "\n")
    picture.main(["--cpu", str(tmp_path / "cpu.jsonl"), "--output", str(tmp_path / "picture.png")])
    with Image.open(tmp_path / "picture.png") as image:
        assert min(image.size) > 300
