"""Read a verified checkpoint into a model and its optimizers, whole or split."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from ..distributed.parallel import is_split
from ..settings.run_folder import MODEL_FILE, OPTIMIZER_FILE, OPTIMIZER_SHARDS_FOLDER
from .weights import is_adapter, load_adapter, named_weights, safetensors_names

# in torch's error for a file that it cannot read
READ_ERROR = "unable to open file"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return int(self.manifest["step"])

    @property
    def is_sharded(self) -> bool:
        """Whether each process wrote only its part of the model."""
        return (self.path / OPTIMIZER_SHARDS_FOLDER).is_dir()

    def load_model(self, model: nn.Module) -> None:
        """Copy the saved weights into `model`, whole or split, in place: tied weights stay tied.

        Raises:
            ValueError: the weights are not those of such a model.
            OSError: they cannot be read.
        """
        try:
            with _readable(self.path):
                if is_adapter(model):
                    load_adapter(model, self.path)
                elif self.is_sharded or is_split(model):
                    _read_parts(self.path, named_weights(model))
                else:
                    safetensors.torch.load_model(model, self.path / MODEL_FILE)
        except (RuntimeError, CheckpointException) as error:  # names or shapes differ
            raise ValueError(f"{self.path} does not fit the model: {error}") from None

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the optimizer state into `tensors`, `{parameter name}.{state name}` -> tensor, in place.

        Raises:
            OSError: it cannot be read.
        """
        with _readable(self.path):
            _read_parts(self._optimizer_folder, tensors)

    def optimizer_shapes(self) -> dict[str, torch.Size]:
        """The shape of each tensor of the optimizer state.

        Raises:
            OSError: they cannot be read.
        """
        folder = self._optimizer_folder
        with _readable(self.path):
            metadata: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
            names = metadata if self.is_sharded else safetensors_names(folder / OPTIMIZER_FILE)
        return {name: metadata[name].size for name in names}

    @property
    def _optimizer_folder(self) -> Path:
        return self.path / OPTIMIZER_SHARDS_FOLDER if self.is_sharded else self.path


def _read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place; each process reads the parts that it has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process may read it all
        reader = HuggingFaceStorageReader(str(folder))
        metadata = reader.read_metadata()  # here, because torch would log an error with its traceback
        reader.read_metadata = lambda: metadata  # type: ignore[method-assign]
        dcp.load({name: tensor.detach() for name, tensor in tensors.items()}, storage_reader=reader)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn the libraries' own errors for files that cannot be read into an OSError."""
    try:
        yield
    except CheckpointException as error:  # its own text is the tracebacks of all processes
        causes = [cause for cause, _ in error.failures.values()]
        if not all(map(_is_read_error, causes)):
            raise
        raise OSError(f"{folder} cannot be read: {causes[0]}") from error
    except (RuntimeError, SafetensorError) as error:
        if not _is_read_error(error):
            raise
        raise OSError(f"{folder} cannot be read: {error}") from error


def _is_read_error(error: BaseException) -> bool:
    return isinstance(error, OSError | SafetensorError) or READ_ERROR in str(error)
