"""Checkpoints are complete or absent; a damaged one is moved away with its reason."""

import json
import logging
import math
import os
import re
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tests.support.tiny_checkpoint import SETTINGS, save, tiny_model
from train.checkpoint import manifest, read, write
from train.checkpoint.find import best_checkpoint, checkpoint_paths, newest_checkpoint
from train.checkpoint.state import TrainState
from train.hub.cards.metadata import model_tags
from train.loop.log import JsonLines
from train.settings import durable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two(tmp_path):
    """A run with checkpoints of steps 10 and 20."""
    save(tmp_path, 10)
    save(tmp_path, 20)
    return tmp_path


def test_what_is_saved_is_loaded(two):
    found = newest_checkpoint(two)
    assert found.step == 20
    assert found.manifest["state"]["step"] == 20
    assert found.manifest["num_processes"] == 1
    assert found.manifest["settings"] == SETTINGS
    assert found.manifest["versions"]["torch"] == torch.__version__
    assert found.optimizer_shapes() == {"model.norm.weight.exp_avg": (16,)}
    tensors = {"model.norm.weight.exp_avg": torch.zeros(16)}
    found.load_optimizer(tensors)
    assert torch.equal(tensors["model.norm.weight.exp_avg"], torch.full((16,), 20.0))
    model = tiny_model(99)
    found.load_model(model)
    for name, weight in tiny_model(20).state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_tied_weights_stay_tied(two):
    model = tiny_model(99)
    newest_checkpoint(two).load_model(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_checkpoint_loads_as_a_model(two):
    model = AutoModelForCausalLM.from_pretrained(two / "checkpoint-00000020")
    assert torch.equal(model.model.norm.weight, tiny_model(20).model.norm.weight)


def test_another_architecture_is_refused(two):
    config = tiny_model().config
    config.intermediate_size = 32
    with pytest.raises(ValueError, match=r"(?s)checkpoint-00000020 does not fit the model.*up_proj"):
        newest_checkpoint(two).load_model(LlamaForCausalLM(config))


def test_only_safetensors_and_json_are_written(two):
    files = [path for path in two.rglob("*") if path.is_file()]
    assert len(files) == 10
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                assert len(tensors.keys()) > 0
        else:
            json.loads(path.read_text(encoding="utf-8"))


def test_files_are_as_readable_as_any_other(two):
    usual = stat.S_IMODE((two / "checkpoint-00000020" / "manifest.json").stat().st_mode)
    for path in (two / "checkpoint-00000020").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == usual


def test_the_newest_are_kept(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoint_paths(tmp_path)] == [
        "checkpoint-00000010",
        "checkpoint-00000100",
    ]
    assert not list(tmp_path.glob(".*"))


def test_the_best_is_kept_too(tmp_path):
    for step, loss, eval_step in ((1, 3.0, 1), (2, 2.0, 2), (3, 1.0, 2), (4, 2.5, 4), (5, None, 0)):
        save(tmp_path, step, keep=1, eval_loss=loss, eval_step=eval_step)  # step 3 was not evaluated itself
    assert best_checkpoint(tmp_path).name == "checkpoint-00000002"
    assert [path.name[-1] for path in checkpoint_paths(tmp_path)] == ["2", "5"]
    (tmp_path / "checkpoint-00000002" / "manifest.json").write_text("{")
    assert best_checkpoint(tmp_path) is None  # a damaged one is never the best


def test_an_empty_run_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def truncate(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)


def flip_a_bit(folder):
    path = folder / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def remove_a_file(folder):
    (folder / "config.json").unlink()


def cut_manifest(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-30])


def change_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 20', '"step": 30'))


def remove_manifest(folder):
    (folder / "manifest.json").unlink()


def list_manifest(folder):
    (folder / "manifest.json").write_text("[]")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    truncate: "model.safetensors has 100 bytes instead of",
    flip_a_bit: "the content of optimizer.safetensors has changed",
    remove_a_file: "config.json is missing",
    cut_manifest: "manifest.json is damaged: not valid JSON",
    change_manifest: "manifest.json has changed",
    remove_manifest: "manifest.json is missing",
    list_manifest: "manifest.json is damaged: expected an object, not a list",
    empty: "manifest.json is missing",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(two, damage, caplog):
    damage(two / "checkpoint-00000020")
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(two).step == 10
    assert DAMAGE[damage] in caplog.text
    assert DAMAGE[damage] in (two / "damaged-checkpoint-00000020" / "reason.txt").read_text()
    assert [path.name for path in checkpoint_paths(two)] == ["checkpoint-00000010"]


def test_all_damaged_means_none_and_nothing_is_deleted(two):
    for path in checkpoint_paths(two):
        flip_a_bit(path)
    assert newest_checkpoint(two) is None
    for step in (10, 20):
        flip_a_bit(save(two, step))
    assert newest_checkpoint(two) is None
    assert len(list(two.glob("damaged-*"))) == 4


def test_another_format_is_refused_not_damaged(two, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 4)
    with pytest.raises(ValueError, match="has format 3, but this version reads format 4"):
        newest_checkpoint(two)
    assert len(checkpoint_paths(two)) == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_leaves_the_checkpoints_before(two, monkeypatch, error):
    def full(*args):
        raise error

    monkeypatch.setattr(write.safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"step 30 could not be written.*No space left.*run the same command again"):
        save(two, 30, keep=1)
    assert [path.name for path in sorted(two.iterdir())] == ["checkpoint-00000020"]


def test_older_checkpoints_make_room_on_a_full_disk(two, monkeypatch, caplog):
    real_write = write.safetensors.torch.save_file

    def full_while_the_oldest_is_there(*args):
        if (two / "checkpoint-00000010").exists():
            raise SafetensorError("No space left on device")
        real_write(*args)

    monkeypatch.setattr(write.safetensors.torch, "save_file", full_while_the_oldest_is_there)
    save(two, 30, keep=2)
    assert "removed ['checkpoint-00000010'] to make room" in caplog.text
    assert [path.name for path in sorted(two.iterdir())] == ["checkpoint-00000020", "checkpoint-00000030"]
    assert newest_checkpoint(two).step == 30


KILL_AT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from train.checkpoint import find, write
from tests.support.tiny_checkpoint import save
owner, name = {target}
original = getattr(owner, name)
def killed(*args, **kwargs):
    if {before}:
        os.kill(os.getpid(), 9)
    original(*args, **kwargs)
    os.kill(os.getpid(), 9)
setattr(owner, name, killed)
save(Path({run!r}), 30, keep=1)
"""
POINTS = {
    "mid-write": ("write.safetensors.torch, 'save_file'", True, 20),
    "after write": ("write.safetensors.torch, 'save_file'", False, 20),
    "before manifest": ("write, 'seal'", True, 20),
    "before rename": ("write, 'seal'", False, 20),
    "after rename": ("Path, 'rename'", False, 30),
    "mid-prune": ("find.shutil, 'rmtree'", True, 30),
    "after prune": ("find.shutil, 'rmtree'", False, 30),
}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_within_a_save_leaves_a_whole_checkpoint(two, point):
    target, before, step = POINTS[point]
    script = KILL_AT.format(root=str(ROOT), target=target, before=before, run=str(two))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert newest_checkpoint(two).step == step
    save(two, 40, keep=1)  # removes the leftovers of the kill
    assert [path.name for path in sorted(two.iterdir())] == ["checkpoint-00000040"]


def test_a_link_to_a_checkpoint_is_pruned_as_a_link(tmp_path):
    """People move checkpoints to other disks; the target is theirs."""
    run, other = tmp_path / "run", tmp_path / "other_disk"
    save(run, 1)
    (run / "checkpoint-00000001").rename(other)
    (run / "checkpoint-00000001").symlink_to(other)
    save(run, 2, keep=1)
    assert [path.name for path in sorted(run.iterdir())] == ["checkpoint-00000002"]
    assert (other / "manifest.json").exists()
    (run / ".trash-checkpoint-00000001").symlink_to(other)  # left by a kill
    save(run, 3, keep=1)
    assert [path.name for path in sorted(run.iterdir())] == ["checkpoint-00000003"]
    assert (other / "manifest.json").exists()


def test_copies_that_people_make_are_no_checkpoints(two):
    for name in ("checkpoint-best", "checkpoint-00000020-copy", "checkpoint-00000020~2"):
        shutil.copytree(two / "checkpoint-00000020", two / name)
    assert [path.name for path in checkpoint_paths(two)] == ["checkpoint-00000010", "checkpoint-00000020"]
    assert newest_checkpoint(two).path.name == "checkpoint-00000020"


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert newest_checkpoint(tmp_path).step == 100_000_000


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path, loss):
    save(tmp_path, 1, eval_loss=loss)
    assert best_checkpoint(tmp_path) is None
    save(tmp_path, 2, eval_loss=2.5)
    save(tmp_path, 3, eval_loss=loss)
    assert best_checkpoint(tmp_path).name == "checkpoint-00000002"


def reseal(folder, change):
    """Change a manifest, and seal it again."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    del value["seal"]
    change(value)
    path.write_text(json.dumps(value | {"seal": manifest.seal_of(value)}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.update(step="x"), r"step: expected a whole number, not text \('x'\)"),
        (lambda value: value.update(files=[]), "files: expected an object, not a list"),
        (lambda value: value["files"].update(a=1), r"files.a: expected an object, not a whole number \(1\)"),
        (lambda value: value.pop("settings"), "settings is missing"),
        (lambda value: value["state"].update(recent=[1]), r"state.recent\[0\]: expected a list"),
        (lambda value: value["state"].update(eval_loss="low"), r"state.eval_loss: expected a number or null"),
    ],
)
def test_a_manifest_of_another_shape_is_damaged(two, caplog, change, reason):
    reseal(two / "checkpoint-00000020", change)
    best_checkpoint(two)
    assert newest_checkpoint(two).step == 10
    assert re.search(rf"manifest.json is damaged: {reason}", caplog.text)


def test_what_only_earlier_versions_have_saved_is_ignored():
    assert TrainState.from_json({"step": 3, "skipped_steps": [1], "eval_loss": None}) == TrainState(step=3)


def test_logs_are_on_the_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    """Otherwise a power loss leaves a checkpoint whose log ends before it."""
    order = []
    real_flush, real_rename = write.flush, Path.rename
    monkeypatch.setattr(write, "flush", lambda path: (order.append(path.name), real_flush(path)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (order.append(to.name), real_rename(path, to))[1])
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).touch()
    save(tmp_path, 1)
    assert order == ["metrics.jsonl", "samples.jsonl", "checkpoint-00000001", tmp_path.name]


def test_a_file_is_replaced_when_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    path, order = tmp_path / "log.jsonl", []
    real_flush, real_replace = durable.flush, os.replace
    monkeypatch.setattr(durable, "flush", lambda path: (order.append(path.name), real_flush(path)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("replace"), real_replace(old, new)))
    durable.replace_text(path, "old")
    assert order == [".tmp-log.jsonl", "replace", tmp_path.name]
    with pytest.raises(OSError, match="full"), durable.replaced(path) as file:  # noqa: PT012
        file.write("new")
        raise OSError("full")
    assert path.read_text() == "old"


def test_a_log_is_cut_back_durably(tmp_path, monkeypatch):
    """Otherwise a power loss costs the log of all earlier steps."""
    flushed = []
    monkeypatch.setattr(durable, "flush", lambda path: flushed.append(path.name))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    JsonLines(tmp_path / "metrics.jsonl").cut_back(1)
    assert flushed == [".tmp-metrics.jsonl", tmp_path.name]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "read", [manifest.hashed_files, durable.flush_tree, checkpoint_paths, partial(model_tags, "llama")]
)
def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(two, monkeypatch, read):
    """As `glob` does: then files are not sealed, or a run starts over."""

    def refused(*args):
        raise PermissionError(13, "Permission denied")

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refused)
    with pytest.raises(PermissionError):
        read(two)


def unreadable(*args):
    raise OSError(5, "Input/output error")


def unreadable_for_torch(*args):
    raise RuntimeError("unable to open file <x> in read-only mode: Input/output error (5)")


@pytest.mark.parametrize(
    ("owner", "name", "function"),
    [
        (HuggingFaceStorageReader, "read_metadata", unreadable),  # torch would log it with a traceback
        (read, "safetensors_names", unreadable_for_torch),
        (read.safetensors.torch, "load_model", unreadable_for_torch),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_named(two, monkeypatch, owner, name, function):
    """Neither a traceback, nor an error that says that it does not fit the model."""
    checkpoint = newest_checkpoint(two)
    monkeypatch.setattr(owner, name, function)
    with pytest.raises(OSError, match="Input/output error"):  # noqa: PT012
        checkpoint.load_model(tiny_model())
        checkpoint.load_optimizer({"model.norm.weight.exp_avg": torch.zeros(16)})
        checkpoint.optimizer_shapes()
