"""Two hosts, as two network namespaces with a cable between them: the weights of one, and as few bytes as in theory."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import Launcher
from test_engines import assert_same_weights
from tiny_run import weights

REPOSITORY = Path(__file__).parents[1]
HOSTS = [("scratch-gpt-a", "10.77.0.1"), ("scratch-gpt-b", "10.77.0.2")]


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


def remove():
    for name, _ in HOSTS:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def hosts():
    """Two network namespaces that reach each other through `cable`."""
    remove()
    try:
        for name, _ in HOSTS:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to make network namespaces")
    (first, _), (second, _) = HOSTS
    ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
    for name, address in HOSTS:
        ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
        ip("-n", name, "link", "set", "cable", "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield
    remove()


def bytes_sent():
    """What the first host has sent through the cable."""
    shown = subprocess.run(
        ["ip", "netns", "exec", HOSTS[0][0], "cat", "/proc/net/dev"], check=True, capture_output=True, text=True
    ).stdout
    (line,) = (line for line in shown.splitlines() if "cable:" in line)
    return int(line.split(":")[1].split()[8])


def train_on_both(arguments):
    """Trains with one process per host; returns the bytes that the first has sent."""
    before, running = bytes_sent(), []
    for rank, (name, _) in enumerate(HOSTS):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": HOSTS[0][1], "MASTER_PORT": "29600", "GLOO_SOCKET_IFNAME": "cable",
            "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "train.pretrain", *arguments]
        running.append(subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ))  # fmt: skip
    with contextlib.ExitStack() as stack:
        for process in running:
            stack.callback(process.kill)
        shown = [process.communicate(timeout=240)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0], "\n".join(shown)
    return bytes_sent() - before


@pytest.mark.slow
@pytest.mark.usefixtures("hosts")
def test_two_hosts_give_the_weights_of_one(recipe, tmp_path):
    command = [recipe()]
    launcher = Launcher()
    launcher.run([*command, f"--output_dir={tmp_path / 'one'}"], 2, tmp_path / "one.log")
    launcher.close()
    train_on_both([*command, f"--output_dir={tmp_path / 'two'}"])
    assert_same_weights(weights(tmp_path / "one" / "model"), weights(tmp_path / "two" / "model"))


WIDE = (
    "hidden_size=128,intermediate_size=384,num_hidden_layers=3,num_attention_heads=4,residual_dropout=0.0,"
    "tie_word_embeddings=true"
)
PER_BLOCK = 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128 + 2 * 32  # matrices, two norms, norms of queries and keys
OUTSIDE = 280 * 128 + 128  # embeddings and last norm


@pytest.mark.slow
@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize(
    ("engine", "micro_batches"), [("ddp", 4), ("fsdp", 1), ("fsdp", 4), ("fsdp that keeps weights", 4)]
)
def test_bytes_per_step_are_those_of_theory(recipe, tmp_path, engine, micro_batches, record_property):
    settings = {
        "batch_size": 8, "micro_batch_size": 4 // micro_batches, "optimizer": "adamw", "save_every": 0, "eval_every": 0,
        "warmup_steps": 0, "sample_prompts": [], "config_overrides": WIDE,
    }  # fmt: skip
    options = {"ddp": [], "fsdp": ["--fsdp_size=2"]}.get(engine, ["--fsdp_size=2", "--fsdp_keep_weights=true"])
    sent = []
    for steps in (5, 25):
        command = [recipe(**settings), f"--output_dir={tmp_path / str(steps)}", f"--max_steps={steps}", *options]
        sent.append(train_on_both(command))
    blocks = 3 * PER_BLOCK
    parameters = blocks + OUTSIDE
    measured = (sent[1] - sent[0]) / 20 / parameters
    half = 4 / 2  # (n - 1) / n of 4 bytes, which each of two processes sends when something is gathered
    times = 2 if engine == "fsdp" else 1  # that the weights of a block are gathered
    gathered = micro_batches * half * (times * blocks + OUTSIDE) / parameters
    theory = 4.0 if engine == "ddp" else gathered + 4.0  # gloo scatters a sum as it reduces one: twice the bytes
    print(f"{engine}, {micro_batches} micro-batches: {measured:.2f} bytes per parameter and step, theory {theory:.2f}")
    assert measured == pytest.approx(theory, rel=0.05)
