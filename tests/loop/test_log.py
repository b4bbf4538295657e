"""The log files, trackers and the terminal."""

import json
from types import SimpleNamespace

import pytest

from train.loop.log import JsonLines, RunLog


def test_cutting_back_keeps_the_records_up_to_that_step(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.cut_back(0)
    for step in (1, 2, 2, 3):
        log.write({"step": step, "text": "ä\n\x85\u2028"})  # line ends to str.splitlines, not to JSON lines
    with log.path.open("a") as file:
        file.write('{"step": 2, "torn')
    log.cut_back(2)
    assert [record["step"] for record in log.read()] == [1, 2, 2]
    assert log.path.read_text(encoding="utf-8").count("\n") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl"]


@pytest.mark.parametrize("line", ["5", "[]", "{}", '{"step": "2"}', "null", "[" * 100_000, '{"step": 1'])
def test_lines_that_are_no_records_are_skipped(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    assert JsonLines(path).read() == [{"step": 1}, {"step": 3}]
    JsonLines(path).cut_back(2)
    assert path.read_text() == '{"step": 1}\n'


def test_a_run_log_writes_to_files_tracker_and_terminal(tmp_path, capsys):
    tracked = []
    accelerator = SimpleNamespace(is_main_process=True, log=lambda metrics, step: tracked.append((step, metrics)))
    log = RunLog(tmp_path, accelerator, first_step=0, last_step=4, peak_tokens_per_second=1600.0)
    log.count(tokens=600, seconds=1.0)
    log.count(tokens=600, seconds=2.0)
    state = SimpleNamespace(step=2, tokens_seen=1200)
    log.write_step(state, {"loss": 3.0, "grad_norm": 1.0, "learning_rate": 0.1})
    log.write_evaluation(state, {"eval_loss": 2.0, "eval_confusion": [[1]]}, "1.1000 bits per byte")
    log.write_samples(2, [("def ", "f(x)\n"), ("a", "b"), ("c", "d")])
    log.close(2)
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == {
        "step": 2, "tokens_seen": 1200, "loss": 3.0, "grad_norm": 1.0, "learning_rate": 0.1,
        "tokens_per_second": 400.0, "mfu": 0.25,
    }  # fmt: skip
    assert second["eval_loss"] == 2.0
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert samples[0] == {"step": 2, "prompt": "def ", "text": "f(x)\n"}
    assert [sample["prompt"] for sample in samples] == ["def ", "a", "c"]
    assert [step for step, _ in tracked] == [2, 2]
    shown = capsys.readouterr().out
    assert "400 tokens/s" in shown
    assert "1.1000 bits per byte" in shown
    assert "    > def \n    | f(x)\n    > a\n    | b\n" in shown
    assert f"2 of 3 samples; all are in {tmp_path / 'samples.jsonl'}" in shown
    assert "stopped after step 2 and saved: run the same command again" in shown


def test_other_processes_write_no_files(tmp_path):
    accelerator = SimpleNamespace(is_main_process=False, log=lambda metrics, step: None)
    log = RunLog(tmp_path, accelerator, first_step=0, last_step=4)
    log.write_step(SimpleNamespace(step=2, tokens_seen=1), {"loss": 3.0, "grad_norm": 1.0, "learning_rate": 0.1})
    assert list(tmp_path.iterdir()) == []


def test_the_best_evaluation_of_a_continued_run_is_known(tmp_path, capsys):
    metrics = JsonLines(tmp_path / "metrics.jsonl")
    for step, loss in enumerate([3.0, 2.0, float("nan"), 2.5]):
        metrics.write({"step": step, "eval_loss": loss})
    accelerator = SimpleNamespace(is_main_process=True, log=lambda metrics, step: None)
    log = RunLog(tmp_path, accelerator, first_step=3, last_step=9)
    log.write_evaluation(SimpleNamespace(step=4, tokens_seen=1), {"eval_loss": 2.25}, "validation loss 2.25")
    assert "validation loss 2.25 (best 2.0000)" in capsys.readouterr().out
