"""Two hosts, simulated by network namespaces: the weights of one host, and no more traffic than in theory."""

import os
import subprocess

import pytest

from tests.support.compare import assert_same_weights
from tests.support.processes import complete_records, wait_for_step
from tests.support.tiny_run import weights

HOSTS = [(f"gpt-{os.getpid()}-{number}", f"10.77.0.{number}") for number in (1, 2)]


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
    """Bytes that the first host has sent through the cable."""
    shown = subprocess.run(
        ["ip", "netns", "exec", HOSTS[0][0], "cat", "/proc/net/dev"], check=True, capture_output=True, text=True
    ).stdout
    (line,) = (line for line in shown.splitlines() if "cable:" in line)
    return int(line.split(":")[1].split()[8])


@pytest.mark.slow
@pytest.mark.usefixtures("hosts")
def test_two_hosts_give_the_weights_of_one(recipe, tmp_path, launcher):
    command, log = [recipe()], tmp_path / "log"
    launcher.run([*command, f"--output_dir={tmp_path / 'one'}"], 2, log)
    launcher.start([*command, f"--output_dir={tmp_path / 'two'}"], 2, log, HOSTS)
    assert launcher.wait() == [0, 0], log.read_text()
    assert_same_weights(weights(tmp_path / "one" / "model"), weights(tmp_path / "two" / "model"))


WIDE = (
    "hidden_size=128,intermediate_size=384,num_hidden_layers=3,num_attention_heads=4,residual_dropout=0.0,"
    "tie_word_embeddings=true"
)
PER_LAYER = 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128 + 2 * 32  # matrices, two norms, norms of queries and keys
OUTSIDE = 280 * 128 + 128  # embeddings and last norm


@pytest.mark.slow
@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize(
    ("engine", "micro_batches"), [("ddp", 4), ("fsdp", 1), ("fsdp", 4), ("fsdp that keeps weights", 4)]
)
def test_bytes_per_step_are_those_of_theory(recipe, tmp_path, launcher, engine, micro_batches):
    settings = {
        "global_batch_size": 8, "micro_batch_size": 4 // micro_batches, "optimizer": "adamw", "save_steps": 0,
        "eval_steps": 0, "warmup_steps": 0, "sample_prompts": [], "config_overrides": WIDE,
    }  # fmt: skip
    options = {"ddp": [], "fsdp": ["--dp_shard_size=2"]}.get(
        engine, ["--dp_shard_size=2", "--reshard_after_forward=false"]
    )
    run, seen = tmp_path / "run", []
    launcher.start([recipe(**settings), "--max_steps=40", *options], 2, tmp_path / "log", HOSTS)
    for step in (5, 35):
        wait_for_step(run, step)
        seen.append((complete_records(run)[-1]["step"], bytes_sent()))
    assert launcher.wait() == [0, 0], (tmp_path / "log").read_text()
    (step, sent), (later_step, later_sent) = seen
    layers = 3 * PER_LAYER
    parameters = layers + OUTSIDE
    measured = (later_sent - sent) / (later_step - step) / parameters
    half = 4 / 2  # (n - 1) / n of 4 bytes, which each of two processes sends when something is gathered
    times = 2 if engine == "fsdp" else 1  # that the weights of a layer are gathered
    gathered = micro_batches * half * (times * layers + OUTSIDE) / parameters
    theory = 4.0 if engine == "ddp" else gathered + 4.0  # gloo scatters a sum as it reduces one: twice the bytes
    print(f"{engine}, {micro_batches} micro-batches: {measured:.2f} bytes per parameter and step, theory {theory:.2f}")
    assert measured == pytest.approx(theory, rel=0.05)
