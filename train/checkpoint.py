"""Checkpoints: folders that are whole or not there, of safetensors and JSON only.

    run/checkpoint-00000250/    config.json, model.safetensors: loads with AutoModelForCausalLM
                                optimizer.safetensors: {parameter name}.{state name}
                                manifest.json: step, progress, settings, size and sha256 of each file

Where processes hold only parts of the model, each writes its own into shard-*.safetensors and
optimizer/shard-*.safetensors, and any number of processes can read them back
(https://docs.pytorch.org/docs/stable/distributed.checkpoint.html).

Written under another name, flushed to the disk, described by the manifest, then renamed; so a kill
at any moment leaves the checkpoint before. What can be derived from the step is not saved.
"""

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import accelerate
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from .parallel import in_blocks, is_split
from .run import together

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FORMAT = 2
PREFIX = "checkpoint-"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
OPTIMIZER_SHARDS = "optimizer"
MANIFEST_FILE = "manifest.json"
LOCK_FILE = ".lock"
ONE_FILE = 1 << 60  # bytes; save_pretrained splits a model into files of at most this size


class DamagedError(ValueError):
    """A checkpoint is not as it was written; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Finished steps."""
        return int(self.manifest["step"])

    @property
    def has_shards(self) -> bool:
        """Whether the processes that wrote it held only parts of the model."""
        return (self.path / OPTIMIZER_SHARDS).is_dir()

    def load_model(self, model: nn.Module) -> None:
        """Copies the saved weights into `model`, whole or split, in place: tied weights stay tied."""
        try:
            if self.has_shards or is_split(model):
                _read_parts(self.path, named_weights(model))
            else:
                safetensors.torch.load_model(model, self.path / MODEL_FILE)
        except (RuntimeError, dcp.api.CheckpointException) as error:  # names or shapes differ
            raise ValueError(f"{self.path} does not fit the model: {error}") from None

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies the optimizers' state into `tensors`, `{parameter name}.{state name}` -> tensor, in place."""
        _read_parts(self.path / OPTIMIZER_SHARDS if self.has_shards else self.path, tensors)

    def optimizer_shapes(self) -> dict[str, torch.Size]:
        """The names and shapes of the optimizers' state."""
        folder = self.path / OPTIMIZER_SHARDS if self.has_shards else self.path
        metadata: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        names = metadata if self.has_shards else safetensors_names(folder / OPTIMIZER_FILE)
        return {name: metadata[name].size for name in names}


def save(
    run: Path,
    step: int,
    *,
    model: transformers.PreTrainedModel,
    optimizer_tensors: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    accelerator: Accelerator,
    keep: int,
) -> Path:
    """Writes the checkpoint of `step`, then removes all but the newest `keep` and the best; all processes call.

    When the disk is full, older checkpoints make room and the write is tried once more.

    Args:
        manifest: JSON values: `progress`, what the run knows; `frozen`, the settings that must not change when it
            continues; and what else helps to understand it.

    Raises:
        OSError: it could not be written; the checkpoints before are untouched.
    """
    is_main = accelerator.is_main_process
    try:
        _write(run, step, model, optimizer_tensors, manifest, accelerator)
    except OSError as first_error:
        removed = prune(run, keep=1) if is_main else []
        if is_main:
            logger.warning("step %d could not be saved (%s); removed %s to make room", step, first_error, removed)
        try:
            _write(run, step, model, optimizer_tensors, manifest, accelerator)
        except OSError as error:
            raise OSError(
                f"the checkpoint of step {step} could not be written to {run}: {error}. "
                "The checkpoint before it is untouched; the same command continues from there."
            ) from error
    if is_main:
        prune(run, keep)
    accelerator.wait_for_everyone()
    return run / f"{PREFIX}{step:08d}"


def _write(
    run: Path,
    step: int,
    model: transformers.PreTrainedModel,
    optimizer_tensors: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    accelerator: Accelerator,
) -> None:
    final = run / f"{PREFIX}{step:08d}"
    partial = run / f".tmp-{final.name}"
    split = is_split(model)

    def only_main(action: Callable[[], None]) -> None:
        together(accelerator, action if accelerator.is_main_process else lambda: None)

    def begin() -> None:
        _remove_leftovers(run)
        partial.mkdir(parents=True)

    def write_whole() -> None:
        model.save_pretrained(partial, state_dict=named_weights(model), max_shard_size=ONE_FILE)
        tensors = {name: tensor.contiguous() for name, tensor in optimizer_tensors.items()}
        safetensors.torch.save_file(tensors, partial / OPTIMIZER_FILE)

    def write_parts() -> None:
        if accelerator.is_main_process:
            model.config.save_pretrained(partial)
        _write_parts(partial, named_weights(model))
        _write_parts(partial / OPTIMIZER_SHARDS, optimizer_tensors)

    def finish() -> None:
        facts = {"format": FORMAT, "step": step, "versions": versions(), "num_processes": accelerator.num_processes}
        _seal(partial, facts | dict(manifest))
        partial.rename(final)
        _flush(run)

    try:
        only_main(begin)
        if split:
            together(accelerator, write_parts)
        else:
            only_main(write_whole)
        only_main(finish)
    except OSError:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save({name: in_blocks(tensor.detach()) for name, tensor in tensors.items()}, storage_writer=writer)


def _read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills `tensors` with their values; each process reads what it holds."""
    targets = {name: in_blocks(tensor.detach()) for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process may read it all
        dcp.load(targets, storage_reader=HuggingFaceStorageReader(str(folder)))
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(targets[name])


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, each once: of tied weights the first name."""
    weights = dict(model.named_parameters())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    return {name: tensor.detach() for name, tensor in (weights | buffers).items()}


def safetensors_names(path: Path) -> list[str]:
    """The names of the tensors of a file."""
    with safetensors.safe_open(path, "pt") as file:
        return list(file.keys())


def prune(run: Path, keep: int) -> list[str]:
    """Removes all checkpoints but the newest `keep` and the one with the lowest validation loss."""
    paths = checkpoint_paths(run)
    best = best_checkpoint(run)
    old = [path for path in paths[:-keep] if path != best]
    for path in old:
        _remove(path)
    return [path.name for path in old]


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss among those saved right after an evaluation."""
    losses = {}
    for path in checkpoint_paths(run):
        with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one is nobody's best
            progress = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))["progress"]
            if progress["eval_step"] == progress["step"] > 0:
                losses[path] = float(progress["eval_loss"])
    return min(losses, key=losses.__getitem__, default=None)


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were written.

    A damaged one is renamed to `damaged-...`, its reason is logged and written beside its files.
    """
    for path in reversed(checkpoint_paths(run)):
        try:
            return Checkpoint(path, verified_manifest(path))
        except DamagedError as error:
            aside = free_name(run / f"damaged-{path.name}")
            logger.warning("%s is damaged (%s): set aside as %s", path, error, aside.name)
            path.rename(aside)
            (aside / "reason.txt").write_text(f"{error}\n", encoding="utf-8")
    return None


def checkpoint_paths(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    return sorted(path for path in run.glob(f"{PREFIX}*") if path.is_dir())


def verified_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, all of whose files were read and compared with it.

    Raises:
        DamagedError: what is wrong with which file.
        ValueError: it was written by another version of this package.
    """
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
        seal, files = manifest.pop("seal"), manifest["files"]
    except FileNotFoundError:
        raise DamagedError(f"{MANIFEST_FILE} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST_FILE} is not whole: {error!r}") from None
    if seal != _seal_of(manifest):
        raise DamagedError(f"{MANIFEST_FILE} has changed since it was written")
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {manifest['format']}, but this version reads format {FORMAT}: "
            "continue with the version that wrote it, or give another --output_dir."
        )
    for name, expected in files.items():
        _verify_file(path / name, expected)
    return manifest


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    if not path.exists():
        raise DamagedError(f"{path.name} is missing")
    if (size := path.stat().st_size) != expected["size"]:
        raise DamagedError(f"{path.name} has {size} bytes instead of {expected['size']}")
    if _sha256(path) != expected["sha256"]:
        raise DamagedError(f"the content of {path.name} has changed since it was written")


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """The dotted name of each setting that differs, and "name: was old, now new"."""
    saved, current = json.loads(json.dumps([saved, current]))
    changes: dict[str, str] = {}
    for name in sorted({*saved, *current}):
        old, new = saved.get(name), current.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes |= {f"{name}.{inner}": f"{name}.{line}" for inner, line in changed_settings(old, new).items()}
        elif old != new:
            changes[name] = f"{name}: was {old!r}, now {new!r}"
    return changes


def lock(run: Path) -> TextIO:
    """Claims the run folder for this process until the returned file is closed or the process ends.

    Raises:
        ValueError: another process trains in it.
    """
    handle = (run / LOCK_FILE).open("w")
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise ValueError(f"another process is training in {run}: wait for it, or give another --output_dir.") from None
    return handle


def versions() -> dict[str, str]:
    """The libraries whose version can change a bit of the result."""
    return {module.__name__: module.__version__ for module in (torch, transformers, accelerate)}


def _seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Flushes all files to the disk and writes the manifest that vouches for them, last."""
    manifest_path = folder / MANIFEST_FILE
    manifest_path.touch()
    usual_mode = manifest_path.stat().st_mode
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != manifest_path:
            path.chmod(usual_mode)  # safetensors files are readable by their owner only
            _flush(path)
            name = path.relative_to(folder).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest = json.loads(json.dumps(manifest | {"files": files}))
    text = json.dumps(manifest | {"seal": _seal_of(manifest)}, indent=2)
    manifest_path.write_text(text + "\n", encoding="utf-8")
    _flush(manifest_path)
    _flush(folder)


def _seal_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Deletes a folder so that a kill cannot leave half of it under its name."""
    trash = free_name(path.with_name(f".trash-{path.name}"))
    path.rename(trash)
    shutil.rmtree(trash)


def _remove_leftovers(run: Path) -> None:
    for path in [*run.glob(f".tmp-{PREFIX}*"), *run.glob(f".trash-{PREFIX}*")]:
        shutil.rmtree(path)


def free_name(path: Path) -> Path:
    """`path`, or with a number behind it the first that is free."""
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.partition('~')[0]}~{number}")
    return path
