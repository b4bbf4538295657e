"""The log files, trackers and the terminal."""

import json
import re
from types import SimpleNamespace

from train.loop.log import JsonLines, RunLog, TrainingDisplay


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


def test_without_a_terminal_progress_is_one_plain_line_per_log(capsys):
    progress = TrainingDisplay(10, 1000)
    progress.update(20, "loss 1.0")
    progress.close()
    shown = capsys.readouterr()
    assert re.fullmatch(r"step   20/1000 \| loss 1.0 \| 0:0\d:\d\d left\n", shown.out)
    assert shown.err == ""


def test_only_one_process_shows_progress(capsys):
    progress = TrainingDisplay(0, 10, is_shown=False)
    progress.update(1, "loss 1.0")
    progress.print("text")
    assert capsys.readouterr().out == ""


def test_a_run_log_writes_to_files_tracker_and_terminal(tmp_path, capsys):
    tracked = []
    accelerator = SimpleNamespace(is_main_process=True, log=lambda metrics, step: tracked.append((step, metrics)))
    log = RunLog(tmp_path, accelerator, first_step=0, last_step=4, peak_tokens_per_second=1600.0)
    log.count(tokens=600, seconds=1.0)
    log.count(tokens=600, seconds=2.0)
    state = SimpleNamespace(step=2, tokens_seen=1200)
    log.write_step(state, {"loss": 3.0, "grad_norm": 1.0, "learning_rate": 0.1})
    log.write_evaluation(state, {"eval_loss": 2.0, "eval_confusion": [[1]]}, "1.1000 bits per byte")
    log.write_samples(2, [("def ", "f(x)\n")])
    log.close(2)
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == {
        "step": 2, "tokens_seen": 1200, "loss": 3.0, "grad_norm": 1.0, "learning_rate": 0.1,
        "tokens_per_second": 400.0, "mfu": 0.25,
    }  # fmt: skip
    assert second["eval_loss"] == 2.0
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {
        "step": 2, "prompt": "def ", "text": "f(x)\n",
    }  # fmt: skip
    assert [step for step, _ in tracked] == [2, 2]
    shown = capsys.readouterr().out
    assert "400 tokens/s" in shown
    assert "1.1000 bits per byte" in shown
    assert "'def ' -> 'f(x)\\n'" in shown
    assert "stopped after step 2 and saved: run the same command again" in shown


def test_other_processes_write_no_files(tmp_path):
    accelerator = SimpleNamespace(is_main_process=False, log=lambda metrics, step: None)
    log = RunLog(tmp_path, accelerator, first_step=0, last_step=4)
    log.write_step(SimpleNamespace(step=2, tokens_seen=1), {"loss": 3.0, "grad_norm": 1.0, "learning_rate": 0.1})
    assert list(tmp_path.iterdir()) == []
