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

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from .manifest import FORMAT, MANIFEST_FILE, DamagedError, flush, seal, verified_manifest, versions
from .parallel import is_split
from .run import WRITE_ERRORS, nothing, together

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
MODEL_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"  # instead, where only an adapter is trained
OPTIMIZER_FILE = "optimizer.safetensors"
OPTIMIZER_SHARDS = "optimizer"
LOCK_FILE = ".lock"
ONE_FILE = 1 << 60  # bytes; save_pretrained splits a model into files of at most this size


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
            if is_adapter(model):
                load_adapter(model, self.path)
            elif self.has_shards or is_split(model):
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
        OSError: it could not be written; the newest checkpoint before is untouched.
    """
    facts = manifest_of(step, manifest, accelerator.num_processes)
    if is_split(model):
        write = partial(_write_split, run, model, optimizer_tensors, facts, accelerator)
        _try_twice(run, step, write, accelerator.is_main_process)
        together(accelerator, partial(prune, run, keep) if accelerator.is_main_process else nothing)
    else:
        alone = partial(save_alone, run, model, named_weights(model), optimizer_tensors, facts, keep)
        together(accelerator, alone if accelerator.is_main_process else nothing)
    return run / f"{PREFIX}{step:08d}"


def manifest_of(step: int, facts: Mapping[str, Any], num_processes: int) -> dict[str, Any]:
    """What a manifest says beside its files."""
    return {"format": FORMAT, "step": step, "versions": versions(), "num_processes": num_processes, **facts}


def save_alone(
    run: Path,
    model: transformers.PreTrainedModel,
    weights: Mapping[str, Tensor],
    optimizer_tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    keep: int,
) -> None:
    """What `save` does in the one process that writes; `weights` may be a copy, so that training can go on."""

    def write() -> None:
        unfinished = _begin(run, facts["step"])
        model.save_pretrained(unfinished, state_dict=dict(weights), max_shard_size=ONE_FILE)
        tensors = {name: tensor.contiguous() for name, tensor in optimizer_tensors.items()}
        safetensors.torch.save_file(tensors, unfinished / OPTIMIZER_FILE)
        _finish(unfinished, facts)

    _try_twice(run, facts["step"], write)
    prune(run, keep)


def _write_split(
    run: Path,
    model: transformers.PreTrainedModel,
    optimizer_tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    accelerator: Accelerator,
) -> None:
    is_main, unfinished = accelerator.is_main_process, _unfinished(run, facts["step"])

    def write() -> None:
        if is_main:
            model.config.save_pretrained(unfinished)
        _write_parts(unfinished, named_weights(model))
        _write_parts(unfinished / OPTIMIZER_SHARDS, optimizer_tensors)

    together(accelerator, partial(_begin, run, facts["step"]) if is_main else nothing)
    together(accelerator, write)
    together(accelerator, partial(_finish, unfinished, facts) if is_main else nothing)


def _try_twice(run: Path, step: int, write: Callable[[], None], is_main: bool = True) -> None:
    """Writes; where that fails, older checkpoints make room and it is tried once more."""
    try:
        write()
        return
    except WRITE_ERRORS as error:
        if is_main:
            _remove_leftovers(run)
            removed = prune(run, keep=1)
            logger.warning("step %d could not be saved (%s): removed %s to make room", step, error, removed)
    try:
        write()
    except WRITE_ERRORS as error:
        if is_main:
            _remove_leftovers(run)
        raise OSError(
            f"the checkpoint of step {step} could not be written to {run}: {error}. "
            "The checkpoint before it is untouched; the same command continues from there."
        ) from error


def _unfinished(run: Path, step: int) -> Path:
    return run / f".tmp-{PREFIX}{step:08d}"


def _begin(run: Path, step: int) -> Path:
    _remove_leftovers(run)
    folder = _unfinished(run, step)
    folder.mkdir(parents=True)
    return folder


def _finish(unfinished: Path, facts: Mapping[str, Any]) -> None:
    seal(unfinished, dict(facts))
    unfinished.rename(unfinished.with_name(unfinished.name.removeprefix(".tmp-")))
    flush(unfinished.parent)


def _write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save({name: tensor.detach() for name, tensor in tensors.items()}, storage_writer=writer)


def _read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills `tensors` in place; each process reads what it holds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process may read it all
        reader = HuggingFaceStorageReader(str(folder))
        dcp.load({name: tensor.detach() for name, tensor in tensors.items()}, storage_reader=reader)


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, each once: of tied weights the first name."""
    weights = dict(model.named_parameters())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    return {name: tensor.detach() for name, tensor in (weights | buffers).items()}


def is_adapter(model: nn.Module) -> bool:
    """Whether the model is a `peft` adapter around another one: then only the adapter is saved."""
    return hasattr(model, "peft_config")


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Copies the weights of a saved adapter into `model`, in place.

    Raises:
        RuntimeError: names or shapes differ.
    """
    from peft import set_peft_model_state_dict  # takes a second

    outcome: Any = set_peft_model_state_dict(model, safetensors.torch.load_file(folder / ADAPTER_FILE))
    if outcome.unexpected_keys:
        raise RuntimeError(f"unknown weights {', '.join(outcome.unexpected_keys[:3])}")


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
    losses = {
        path: float(progress["eval_loss"])
        for path, progress in _progress(run).items()
        if progress.get("eval_loss") is not None and progress.get("eval_step") == progress.get("step")
    }
    return min(losses, key=losses.__getitem__, default=None)


def last_good_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint right before which an update was made, and not left out."""
    good = [path for path, progress in _progress(run).items() if not progress.get("skipped_in_a_row")]
    return good[-1] if good else None


def _progress(run: Path) -> dict[Path, dict[str, Any]]:
    """What the checkpoints say of the run, oldest first, without looking at their other files."""
    progress = {}
    for path in checkpoint_paths(run):
        with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one says nothing
            progress[path] = dict(json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))["progress"])
    return progress


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
