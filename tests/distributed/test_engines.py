"""DDP, FSDP2, HSDP and tensor parallelism on real processes: all of them train as one process does."""

import json

import pytest
from safetensors import safe_open

from tests.support.compare import assert_same_metrics, assert_same_weights
from tests.support.tiny_run import records, weights
from train.checkpoint.manifest import verified_manifest

ENGINES = {
    "ddp": (2, []),
    "fsdp": (2, ["--dp_shard_size=2"]),
    "fsdp with checkpointing": (2, ["--dp_shard_size=2", "--gradient_checkpointing=true"]),
    "fsdp with selective checkpointing": (2, ["--dp_shard_size=2", "--gradient_checkpointing=selective"]),
    "fsdp that keeps weights": (2, ["--dp_shard_size=2", "--reshard_after_forward=false"]),
    "hsdp": (4, ["--dp_shard_size=2"]),
    "tp": (2, ["--tp_size=2"]),
    "tp with selective checkpointing": (2, ["--tp_size=2", "--gradient_checkpointing=selective"]),
    "tp with replicas": (4, ["--tp_size=2"]),
    "fsdp x tp": (4, ["--dp_shard_size=2", "--tp_size=2"]),
}
SETTINGS = {
    "global_batch_size": 8, "micro_batch_size": 1,
    "config_overrides": "residual_dropout=0.0,attention_bias=true,mlp_bias=true",  # biases are split in their own way
}  # fmt: skip


@pytest.fixture
def alone(recipe, launcher, tmp_path, tmp_path_factory):
    """The run of one process, made once for each optimizer."""

    def alone(optimizer):
        run = tmp_path_factory.getbasetemp() / f"alone-{optimizer}"
        if not run.exists():
            launcher.run([recipe(**SETTINGS, optimizer=optimizer), f"--output_dir={run}"], 1, tmp_path / "alone.log")
        return run

    return alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "optimizer"), [*((engine, "muon") for engine in ENGINES), ("fsdp", "adamw"), ("fsdp x tp", "adamw")]
)
def test_every_engine_trains_as_one_process_does(recipe, tmp_path, launcher, alone, engine, optimizer):
    processes, options = ENGINES[engine]
    one, many = alone(optimizer), tmp_path / "many"
    launcher.run(
        [recipe(**SETTINGS, optimizer=optimizer), f"--output_dir={many}", *options], processes, tmp_path / "log"
    )
    assert_same_metrics(records(one), records(many))
    assert_same_weights(weights(one / "model"), weights(many / "model"), tolerance=1e-5)
    assert_safe_files(many / "checkpoint-00000006", is_split=engine != "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "tp"])
def test_engines_that_read_outcomes_late_train_as_one_process_does(recipe, tmp_path, launcher, alone, engine):
    processes, options = ENGINES[engine]
    one, many = alone("muon"), tmp_path / "many"
    # queries as wide as the model: q_proj and o_proj have one shape, but are split in different ways
    launcher.run(
        [recipe(**SETTINGS, optimizer="muon"), f"--output_dir={many}", *options],
        processes,
        tmp_path / "log",
        "read_late",
    )
    assert_same_metrics(records(one), records(many))
    assert_same_weights(weights(one / "model"), weights(many / "model"), tolerance=1e-5)


def assert_safe_files(checkpoint, is_split):
    """Only safetensors and JSON, of all processes."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    sealed = verified_manifest(checkpoint)["files"]
    assert set(sealed) == {path.relative_to(checkpoint).as_posix() for path in files} - {"manifest.json"}
    shards = [path for path in files if path.name.startswith("shard-")]
    assert bool(shards) == is_split
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                assert len(tensors.keys()) > 0
        elif path.suffix != ".py":  # the code of the model, for trust_remote_code
            json.loads(path.read_text(encoding="utf-8"))
