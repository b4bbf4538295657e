"""Write a checkpoint: whole or not at all, of safetensors and JSON only.

A checkpoint is written under a temporary name, flushed to disk, sealed by its manifest and then renamed, so a kill at
any moment leaves the checkpoint before it intact. Where processes have parts of the model, each writes its own
shards, which any number of processes can read (https://docs.pytorch.org/docs/stable/distributed.checkpoint.html).
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from transformers import PreTrainedModel

from ..distributed.errors import WRITE_ERRORS, run_on_all, run_on_main
from ..settings.durable import flush, flush_tree
from ..settings.run_folder import (
    CONFUSION_MATRICES_FOLDER,
    METRICS_FILE,
    OPTIMIZER_FILE,
    OPTIMIZER_SHARDS_FOLDER,
    SAMPLES_FILE,
)
from .find import checkpoint_folder, prune, remove_leftovers
from .manifest import seal

logger = logging.getLogger(__name__)

ONE_FILE = 1 << 60  # bytes; save_pretrained splits a model into files of at most this size


@dataclass(frozen=True)
class Contents:
    """What goes into a checkpoint.

    Args:
        model: its config and the format of its files; weights come from `weights`.
        weights: by name; may be copies, so that training can continue while they are written.
        optimizer: `{parameter name}.{state name}` -> tensor.
        manifest: JSON values, `step` among them.
    """

    model: PreTrainedModel
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    manifest: Mapping[str, Any]


def write_checkpoint(run: Path, contents: Contents, save_total_limit: int) -> None:
    """Write a checkpoint from one process, then remove all but the newest `save_total_limit` and the best.

    When the disk is full, older checkpoints are removed and the write is tried once more.

    Raises:
        OSError: it could not be written; the checkpoint before it is intact.
    """

    def write() -> None:
        unfinished = _unfinished(run, contents)
        _new_folder(run, contents)
        contents.model.save_pretrained(unfinished, state_dict=dict(contents.weights), max_shard_size=ONE_FILE)
        tensors = {name: tensor.contiguous() for name, tensor in contents.optimizer.items()}
        safetensors.torch.save_file(tensors, unfinished / OPTIMIZER_FILE)
        _publish(run, contents)

    _try_twice(run, contents, write)
    prune(run, save_total_limit)


def write_sharded_checkpoint(run: Path, contents: Contents, save_total_limit: int, accelerator: Accelerator) -> None:
    """Write a checkpoint of which every process has a part; all processes must call. Otherwise as above."""
    is_main, unfinished = accelerator.is_main_process, _unfinished(run, contents)

    def write_parts() -> None:
        if is_main:
            contents.model.config.save_pretrained(unfinished)
        _write_parts(unfinished, contents.weights)
        _write_parts(unfinished / OPTIMIZER_SHARDS_FOLDER, contents.optimizer)

    def write() -> None:
        run_on_main(accelerator, lambda: _new_folder(run, contents))
        run_on_all(accelerator, write_parts)
        run_on_main(accelerator, lambda: _publish(run, contents))

    _try_twice(run, contents, write, is_main)
    run_on_main(accelerator, lambda: prune(run, save_total_limit))


def _try_twice(run: Path, contents: Contents, write: Callable[[], None], is_main: bool = True) -> None:
    step = contents.manifest["step"]
    try:
        write()
        return
    except WRITE_ERRORS as error:
        if is_main:
            remove_leftovers(run)
            removed = prune(run, save_total_limit=1)
            logger.warning("step %d could not be saved (%s): removed %s to make room", step, error, removed)
    try:
        write()
    except WRITE_ERRORS as error:
        if is_main:
            remove_leftovers(run)
        raise OSError(
            f"the checkpoint of step {step} could not be written to {run}: {error}. "
            "The previous checkpoint is intact; run the same command again to continue from it."
        ) from error


def _unfinished(run: Path, contents: Contents) -> Path:
    final = checkpoint_folder(run, contents.manifest["step"])
    return final.with_name(f".tmp-{final.name}")


def _new_folder(run: Path, contents: Contents) -> None:
    remove_leftovers(run)
    _unfinished(run, contents).mkdir(parents=True)


def _publish(run: Path, contents: Contents) -> None:
    unfinished = _unfinished(run, contents)
    # the continued run writes only what comes after this step
    for log in (run / METRICS_FILE, run / SAMPLES_FILE):
        if log.exists():
            flush(log)
    if (run / CONFUSION_MATRICES_FOLDER).exists():
        flush_tree(run / CONFUSION_MATRICES_FOLDER)
    seal(unfinished, contents.manifest)
    unfinished.rename(checkpoint_folder(run, contents.manifest["step"]))
    flush(run)


def _write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save({name: tensor.detach() for name, tensor in tensors.items()}, storage_writer=writer)
