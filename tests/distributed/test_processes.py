"""Signals, hangs, deaths and mistakes of one process reach all of them."""

import json
import os
import re
import signal
import time

import pytest

from tests.support.launcher import Launcher
from tests.support.processes import kill, wait_for_step
from tests.support.tiny_base import options, write_labels
from tests.support.tiny_run import records
from train.distributed.device import build_accelerator, check_engine
from train.distributed.heartbeat import DEAD_AFTER
from train.loop.finish import STOPPED
from train.loop.status import read_status

ENGINES = {"ddp": [], "fsdp": ["--dp_shard_size=2"]}
ENDLESS = {"max_steps": 100_000, "save_steps": 0, "eval_steps": 0}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_one_process_saves_and_stops_all(recipe, tmp_path, launcher, engine, number):
    running = launcher.start([recipe(**ENDLESS), *ENGINES[engine]], 2, tmp_path / "log")
    wait_for_step(tmp_path / "run", 3)
    os.kill(running[1], number)
    assert launcher.wait() == [STOPPED, STOPPED]
    status = read_status(tmp_path / "run")
    assert status["state"] == "stopped"
    assert status["checkpoint"] == f"checkpoint-{status['step']:08d}"
    assert records(tmp_path / "run")[-1]["step"] == status["step"]
    assert "run the same command again to continue" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_process_that_hangs_is_named(recipe, tmp_path, launcher):
    options = [recipe(**ENDLESS), f"--ddp_timeout={DEAD_AFTER + 4}"]
    running = launcher.start(options, 2, tmp_path / "log")
    wait_for_step(tmp_path / "run", 3)
    os.kill(running[1], signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while "lost contact" not in (shown := (tmp_path / "log").read_text()) and time.monotonic() < deadline:
        time.sleep(0.5)
    kill(running)
    launcher.wait()
    assert re.search(
        rf"error: process 0 lost contact .*process 1 \(pid {running[1]} on \S+\) has been silent for", shown
    )
    assert "Traceback" not in shown
    status = read_status(tmp_path / "run")
    assert status["state"] == "failed"


@pytest.mark.slow
def test_a_process_that_is_lost_ends_the_others_with_a_message(recipe, tmp_path, launcher):
    running = launcher.start([recipe(**ENDLESS)], 2, tmp_path / "log")
    wait_for_step(tmp_path / "run", 3)
    kill([running[1]])
    assert launcher.wait() == [2, -signal.SIGKILL]
    shown = (tmp_path / "log").read_text()
    assert re.search(
        rf"error: process 0 lost contact with the others: process 1 \(pid {running[1]} on .*\) has ended \(", shown
    )
    assert "Run the same command again to continue from the last checkpoint." in shown
    status = read_status(tmp_path / "run")
    assert status["state"] == "failed"
    assert f"process 1 (pid {running[1]} on " in status["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "options", "message"),
    [
        (
            2,
            ["--dp_shard_size=3"],
            r"--dp_shard_size \(3\) x --tp_size \(1\) = 3 must divide the number of processes \(2\)",
        ),
        (1, ["--dp_shard_size=2"], r"must divide the number of processes \(1\)"),
        (
            2,
            ["--tp_size=2", "--config_overrides=num_attention_heads=1"],
            r"--tp_size \(2\) must divide num_attention_heads",
        ),
        (
            2,
            ["--tp_size=2", "--config_overrides=attention_dropout=0.1"],
            r"attention_dropout \(0.1\) .*Set it to 0 with --config_overrides",
        ),
        (2, ["--dp_shard_size=2", "--torch_compile=true"], "--torch_compile does not work with --dp_shard_size 2"),
        (2, ["--dp_shard_size=2", "--async_save=true"], "--async_save does not work with --dp_shard_size 2"),
        (
            2,
            ["--micro_batch_size=4"],
            r"--global_batch_size \(4\) must be a multiple of --micro_batch_size \(4\) x processes \(2\)",
        ),
    ],
)
def test_mistakes_end_all_processes_with_exit_code_2(recipe, tmp_path, launcher, processes, options, message):
    launcher.start([recipe(), *options], processes, tmp_path / "log")
    assert launcher.wait() == [2] * processes
    shown = (tmp_path / "log").read_text()
    assert re.search("error: .*" + message, shown), shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_two_runs_in_one_folder_are_refused(recipe, tmp_path, launcher):
    path = recipe(**ENDLESS)
    running = launcher.start([path], 1, tmp_path / "log")
    wait_for_step(tmp_path / "run", 1)
    other = Launcher()
    other.start([path], 1, tmp_path / "other.log")
    assert other.wait() == [2]
    other.close()
    kill(running)
    launcher.wait()
    assert f"another process is training in {tmp_path / 'run'}" in (tmp_path / "other.log").read_text()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ACCELERATE_USE_FSDP", "--dp_shard_size"),
        ("ACCELERATE_USE_DEEPSPEED", "--dp_shard_size"),
        ("ACCELERATE_USE_MEGATRON_LM", "--tp_size"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "--tp_size"),
    ],
)
def test_engines_of_the_launcher_are_refused(monkeypatch, name, remedy):
    check_engine({name: "false"})
    monkeypatch.setenv(name, "true")
    with pytest.raises(ValueError, match=f"sets {name}, .*: use .*{remedy}"):
        build_accelerator("fp32")


@pytest.mark.slow
def test_a_main_process_that_takes_long_for_the_model_is_no_hang(recipe, tmp_path, launcher):
    launcher.run([recipe(), "--ddp_timeout=3"], 2, tmp_path / "log", script="slow_model")
    assert "lost contact" not in (tmp_path / "log").read_text()
    assert read_status(tmp_path / "run")["state"] == "complete"


@pytest.mark.slow
def test_a_main_process_that_is_paused_while_it_writes_the_model_is_no_hang(recipe, tmp_path, launcher):
    """Longer than it may be silent: the other one leaves, because nothing is left to do for it."""
    running = launcher.start([recipe(), "--ddp_timeout=3"], 2, tmp_path / "log", script="slow_model")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("checkpoint-*6")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    os.kill(running[0], signal.SIGSTOP)
    while "this process has nothing left to do" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(running[0], signal.SIGCONT)
    assert launcher.wait() == [0, 0]
    assert read_status(tmp_path / "run")["state"] == "complete"


@pytest.mark.slow
def test_a_full_disk_in_the_background_reaches_all_processes_with_its_words(recipe, tmp_path, launcher):
    launcher.start([recipe(), "--async_save=true"], 2, tmp_path / "log", script="full_in_background")
    assert launcher.wait() == [2, 2]
    shown = (tmp_path / "log").read_text()
    assert shown.count("error: [Errno 28] No space left on device") + shown.count("error: No space left on device") == 2
    assert "lost contact" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_reason_of_one_process_is_in_the_message_of_the_others(recipe, tmp_path, launcher, engine):
    running = launcher.start([recipe(), *ENGINES[engine]], 2, tmp_path / "log", script="memory_of_one")
    assert launcher.wait() == [2, 2]
    shown = (tmp_path / "log").read_text()
    assert f"process 1 (pid {running[1]} on " in shown
    assert "has ended with the error: out of memory with a micro-batch of 2 sequences" in shown
    assert "has ended with the error: out of memory" in read_status(tmp_path / "run")["reason"]


@pytest.mark.slow
def test_processes_with_different_settings_are_refused(recipe, tmp_path, launcher):
    launcher.start([recipe()], 2, tmp_path / "log", script="other_seed")
    assert launcher.wait() == [2, 2]
    shown = (tmp_path / "log").read_text()
    assert shown.count("error: process 1 was started with other settings than process 0 (was: process 0, now: ") == 2
    assert "seed: was 0, now 7" in shown


@pytest.mark.slow
def test_all_processes_finish_with_the_same_best_weights(base, tmp_path, launcher):
    """With checkpoints in the background, only the main process knows when the last one is there."""
    rows = write_labels(tmp_path / "rows.csv")
    values = {"model": base, "train_file": rows, "max_steps": 6, "eval_steps": 1, "optimizer": "adamw"}
    results = []
    for name, script, more in (
        ("plain", "finetune_classifier", {}), ("background", "slow_in_background", {"async_save": "true"})
    ):  # fmt: skip
        line = options(**values | more, output_dir=tmp_path / name)
        launcher.run(line, 2, tmp_path / f"{name}.log", script=script)
        results.append(json.loads((tmp_path / name / "test_results.json").read_text()))
    assert results[0]["step"] == 6
    assert results[0] == results[1]
