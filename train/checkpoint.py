"""Checkpoints: folders that are whole or not there, of safetensors and JSON only.

    run/checkpoint-00000250/    config.json, model.safetensors: loads with AutoModelForCausalLM
                                optimizer.safetensors: {parameter name}.{state name}
                                manifest.json: step, progress, settings, size and sha256 of each file

Written under another name, flushed to the disk, described by the manifest, then renamed; so a kill
at any moment leaves the checkpoint before. What can be derived from the step is not saved.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import accelerate
import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FORMAT = 1
PREFIX = "checkpoint-"
OPTIMIZER_FILE = "optimizer.safetensors"
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

    def load_model(self, model: nn.Module) -> None:
        """Copies the saved weights into `model`, in place: tied weights stay tied."""
        try:
            safetensors.torch.load_model(model, self.path / "model.safetensors")
        except RuntimeError as error:  # names or shapes differ
            raise ValueError(f"{self.path} does not fit the model: {error}") from None

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizers' state as `{parameter name}.{state name}` -> tensor."""
        return safetensors.torch.load_file(self.path / OPTIMIZER_FILE)


def save(
    run: Path,
    step: int,
    *,
    model: transformers.PreTrainedModel,
    optimizer_tensors: Mapping[str, Tensor],
    progress: Mapping[str, Any],
    frozen: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes the checkpoint of `step`, then removes all but the newest `keep`.

    Args:
        progress: JSON values of the training state.
        frozen: JSON values of the settings that must not change when the run continues.

    Raises:
        OSError: it could not be written; the checkpoints before are untouched.
    """
    final = run / f"{PREFIX}{step:08d}"
    partial = run / f".tmp-{final.name}"
    _remove_leftovers(run)
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial, max_shard_size=ONE_FILE)
        tensors = {name: tensor.contiguous() for name, tensor in optimizer_tensors.items()}
        safetensors.torch.save_file(tensors, partial / OPTIMIZER_FILE)
        manifest = {"format": FORMAT, "step": step, "progress": progress, "frozen": frozen}
        _seal(partial, manifest | {"versions": versions()})
        partial.rename(final)
        _flush(run)
    # safetensors reports a full disk as its own error
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {step} could not be written to {run}: {error}. "
            "The checkpoints before it are untouched; the same command continues from them."
        ) from error
    for path in checkpoint_paths(run)[:-keep]:
        _remove(path)
    return final


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were written.

    A damaged one is renamed to `damaged-...`, its reason is logged and written beside its files.
    """
    for path in reversed(checkpoint_paths(run)):
        try:
            return Checkpoint(path, verified_manifest(path))
        except DamagedError as error:
            aside = _free_name(run / f"damaged-{path.name}")
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


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One line "name: was old, now new" for each setting that differs."""
    saved, current = json.loads(json.dumps([saved, current]))
    lines = []
    for name in sorted({*saved, *current}):
        old, new = saved.get(name), current.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += [f"{name}.{line}" for line in changed_settings(old, new)]
        elif old != new:
            lines.append(f"{name}: was {old!r}, now {new!r}")
    return lines


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
    trash = _free_name(path.with_name(f".trash-{path.name}"))
    path.rename(trash)
    shutil.rmtree(trash)


def _remove_leftovers(run: Path) -> None:
    for path in [*run.glob(f".tmp-{PREFIX}*"), *run.glob(f".trash-{PREFIX}*")]:
        shutil.rmtree(path)


def _free_name(path: Path) -> Path:
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.partition('~')[0]}~{number}")
    return path
