"""Save and restore a run: its model, optimizers and progress."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from ..distributed.errors import run_on_main
from ..distributed.parallel import is_split
from .find import newest_checkpoint
from .manifest import FORMAT, versions
from .optimizer_state import load_optimizers, optimizer_tensors
from .read import Checkpoint
from .settings_check import check_settings
from .state import TrainState
from .weights import named_weights
from .write import Contents, write_checkpoint, write_sharded_checkpoint


class Background(threading.Thread):
    """Calls a function in its own thread; `finish` raises its error."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Called by the thread."""
        try:
            self.function()
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        """Wait until the function has returned.

        Raises:
            BaseException: the error of the function.
        """
        self.join()
        if self.error is not None:
            raise self.error


@dataclass
class Checkpointer:
    """Saves a run into checkpoints, and restores it from the newest intact one.

    Args:
        folder: the run folder.
        model: without the wrapper that synchronizes processes.
        optimizers: without Accelerate's wrapper.
        settings: JSON values that must not change when the run continues.
        save_total_limit: newest checkpoints to keep, in addition to the best.
        async_save: write in the background, from a copy in memory.
    """

    folder: Path
    accelerator: Accelerator
    model: Any
    optimizers: list[Optimizer]
    settings: dict[str, Any]
    save_total_limit: int = 2
    async_save: bool = False
    _background: Background | None = field(default=None, init=False)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint. Returns when it is complete, or with `async_save` when it is copied; all processes call.

        Raises:
            OSError: it, or the previous one that was written in the background, could not be written.
        """
        self.finish()
        contents = self._contents(state)
        if is_split(self.model):
            write_sharded_checkpoint(self.folder, contents, self.save_total_limit, self.accelerator)
        elif not self.async_save:
            run_on_main(self.accelerator, lambda: write_checkpoint(self.folder, contents, self.save_total_limit))
        elif self.accelerator.is_main_process:
            copy = Contents(self.model, _copied(contents.weights), _copied(contents.optimizer), contents.manifest)
            self._background = Background(lambda: write_checkpoint(self.folder, copy, self.save_total_limit))

    def finish(self) -> None:
        """Wait for a checkpoint that is being written in the background; all processes must call.

        Raises:
            OSError: it could not be written.
        """
        if not self.async_save:
            return
        background, self._background = self._background, None
        run_on_main(self.accelerator, background.finish if background is not None else lambda: None)

    def restore(self, allow_change: Sequence[str] = ()) -> TrainState:
        """Load the newest intact checkpoint; a new `TrainState` if there is none.

        Raises:
            ValueError: settings have changed that are not in `allow_change`; all of them are listed.
        """
        found = self.newest()
        if found is None:
            return TrainState()
        for line in check_settings(
            self.folder, found.manifest, self.settings, allow_change, self.accelerator.num_processes
        ):
            self.accelerator.print(line)
        found.load_model(self.model)
        if anew := load_optimizers(self.model, self.optimizers, found):
            self.accelerator.print(
                f"optimizer: the state of {len(anew)} parameters was made by another optimizer, so it starts anew: "
                + ", ".join(anew[:3])
            )
        scaler = found.manifest.get("scaler")
        if scaler and self.accelerator.scaler is not None:  # both precisions are fp16
            self.accelerator.scaler.load_state_dict(scaler)
        return TrainState.from_json(found.manifest["state"])

    def newest(self) -> Checkpoint | None:
        """The newest intact checkpoint; the main process reads all files and moves damaged checkpoints away."""

        def find() -> list[Any] | None:
            found = newest_checkpoint(self.folder)
            return None if found is None else [str(found.path), found.manifest]

        answer = run_on_main(self.accelerator, find)
        return None if answer is None else Checkpoint(Path(answer[0]), answer[1])

    def _contents(self, state: TrainState) -> Contents:
        scaler = self.accelerator.scaler  # only fp16 has one
        manifest = {
            "format": FORMAT,
            "step": state.step,
            "versions": versions(),
            "num_processes": self.accelerator.num_processes,
            "state": asdict(state),
            "scaler": scaler and scaler.state_dict(),
            "settings": self.settings,
        }
        return Contents(self.model, named_weights(self.model), optimizer_tensors(self.model, self.optimizers), manifest)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
