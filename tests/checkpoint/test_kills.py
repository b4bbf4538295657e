"""Kill a run with SIGKILL at any moment and start it again: weights and log equal those of a run without kills."""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.support.compare import assert_same_metrics, assert_same_weights
from tests.support.processes import kill, wait_for_step
from tests.support.tiny_run import records, weights

NUM_KILLS = int(os.environ.get("NUM_KILLS", "5"))
NUM_STEPS = max(40, 3 * NUM_KILLS)
SETTINGS = {
    "max_steps": NUM_STEPS, "global_batch_size": 8, "micro_batch_size": 2, "eval_steps": 10, "save_steps": 3,
    "save_total_limit": 2,
}  # fmt: skip
ROOM = 1100  # KB: three checkpoints of a model with the settings below
WIDER = "hidden_size=32,intermediate_size=48,residual_dropout=0.1"
ENGINES = {"one process": (1, []), "ddp": (2, []), "fsdp": (2, ["--dp_shard_size=2"])}


def log_of(run):
    """The records without the speed."""
    return [{name: v for name, v in line.items() if name not in ("tokens_per_second", "mfu")} for line in records(run)]


def interrupt_often(launcher, command, processes, folder):
    """Kill all processes, or one of them, at random moments of the run; returns the number of kills."""
    dice, kills = random.Random(0), 0
    for number in range(NUM_KILLS):
        running = launcher.start(command, processes, folder.with_suffix(".log"))
        if dice.random() < 0.8:  # the others come while it starts
            wait_for_step(folder, int((number + dice.random()) * NUM_STEPS / NUM_KILLS))
        time.sleep(dice.uniform(0, 0.3))
        kill([dice.choice(running)] if dice.random() < 0.5 else running)
        time.sleep(0.3)
        kill(running)  # those that still wait for one that is gone
        kills += -signal.SIGKILL in launcher.wait()
    return kills


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "precision"), [*((engine, "fp32") for engine in ENGINES), ("fsdp", "bf16")])
def test_no_bit_is_lost(recipe, tmp_path, launcher, engine, precision):
    processes, options = ENGINES[engine]
    command = [recipe(**SETTINGS, precision=precision), *options]
    launcher.run([*command, f"--output_dir={tmp_path / 'whole'}"], processes, tmp_path / "whole.log")
    command = [*command, f"--output_dir={tmp_path / 'killed'}"]
    kills = interrupt_often(launcher, command, processes, tmp_path / "killed")
    launcher.run(command, processes, tmp_path / "killed.log")
    print(f"{engine}, {precision}: {kills} kills")
    assert kills > NUM_KILLS / 2
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "killed")
    assert_same_weights(weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model"))


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for three checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_costs_old_checkpoints_and_nothing_else(recipe, tmp_path, launcher, small_disk):
    command = [recipe(**SETTINGS | {"save_total_limit": 9}), f"--config_overrides={WIDER}"]
    launcher.run([*command, f"--output_dir={tmp_path / 'whole'}"], 1, tmp_path / "whole.log")
    launcher.start([*command, f"--output_dir={small_disk / 'run'}"], 1, tmp_path / "small.log")
    launcher.wait()  # in the end the model itself may find no room
    shown = (tmp_path / "small.log").read_text()
    assert "to make room" in shown
    print(shown[-2000:])
    assert log_of(tmp_path / "whole") == log_of(small_disk / "run")
    newest = sorted(small_disk.glob("run/checkpoint-*"))[-1]
    assert newest.name.endswith(f"{NUM_STEPS:08d}")
    assert_same_weights(weights(tmp_path / "whole" / newest.name), weights(newest))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_disk_without_any_room_ends_all_processes(recipe, tmp_path, launcher, small_disk, engine):
    (small_disk / "others").write_bytes(bytes(1024 * (ROOM - 160)))
    command = [recipe(**SETTINGS), f"--config_overrides={WIDER}", f"--output_dir={small_disk / 'run'}"]
    launcher.start([*command, *ENGINES[engine][1]], 2, tmp_path / "log")
    assert launcher.wait() == [2, 2]
    shown = (tmp_path / "log").read_text()
    assert "error: the checkpoint of step 3 could not be written" in shown
    assert "No space left on device" in shown
    assert "Traceback" not in shown
    assert not list(small_disk.glob("run/*checkpoint*"))


@pytest.mark.slow
def test_the_number_of_processes_and_the_engine_may_change(recipe, tmp_path, launcher):
    command = [recipe(**SETTINGS)]
    launcher.run([*command, f"--output_dir={tmp_path / 'whole'}"], 1, tmp_path / "whole.log")
    command = [*command, f"--output_dir={tmp_path / 'elastic'}"]
    stages = [
        (1, []),
        (2, []),
        (2, ["--dp_shard_size=2"]),
        (4, ["--dp_shard_size=2", "--tp_size=2"]),
        (2, ["--tp_size=2"]),
    ]
    for number, (processes, options) in enumerate(stages):
        running = launcher.start([*command, *options], processes, tmp_path / "elastic.log")
        wait_for_step(tmp_path / "elastic", 7 * (number + 1))
        kill(running)
        launcher.wait()
    launcher.run(command, 1, tmp_path / "elastic.log")
    shown = (tmp_path / "elastic.log").read_text()
    for change in ("was 1, now 2", "was 2, now 4", "was 4, now 2", "was 2, now 1"):
        assert f"processes: {change}. The run continues with the same examples" in shown
    assert_same_metrics(log_of(tmp_path / "whole"), log_of(tmp_path / "elastic"))
