"""The result of a run, `model/` and `adapter/`: whole or not at all, with a record of the training behind it.

The record is a file in `model/`, so that both come into being at once. It has the settings of the run, its last step,
and the size and hash of each file. So a finished run is recognized without its checkpoints, and a damaged model too.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint.find import remove, set_aside
from ..checkpoint.manifest import FILES, DamagedError, hashed_files, read_sealed, seal, verify_files, versions
from ..model.vocabulary import vocabulary_in
from ..settings.durable import flush
from ..settings.json_files import DamagedFileError, read_json
from ..settings.run_folder import ADAPTER_FOLDER, MODEL_FOLDER, TRAINING_FILE

SHAPE = {"step": int, "settings": dict, "versions": {str: str}, "num_processes": int, "adapter": FILES, "files": FILES}
WEIGHTS = ".safetensors"


def read_result(run: Path) -> dict[str, Any] | None:
    """The record of a finished model; None if there is no model, or one that an earlier version has written.

    Weights must be those that were written. Other files, such as a model card, may have been edited.

    Raises:
        DamagedError: the file that has changed or is missing.
    """
    model = run / MODEL_FOLDER
    if not (model / TRAINING_FILE).exists():
        return None
    record = read_sealed(model / TRAINING_FILE, SHAPE)
    _check(model, record["files"])
    _check(run / ADAPTER_FOLDER, record["adapter"])
    return record


def _check(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    verify_files(folder, {name: facts for name, facts in files.items() if name.endswith(WEIGHTS)})
    for path in (folder / name for name in files if name.endswith(".json")):
        try:
            read_json(path)
        except FileNotFoundError:
            raise DamagedError(f"{path.name} is missing") from None
        except DamagedFileError as error:
            raise DamagedError(str(error)) from None


@contextmanager
def new_result(run: Path, record: Mapping[str, Any]) -> Iterator[tuple[Path, Path]]:
    """Yield the paths of two new folders, which become `model/` and `adapter/` if the block ends without an error.

    The block must create the first one. A model that is already there is kept as `outdated-model`.

    Args:
        record: `step` and `settings` of the run.
    """
    model, adapter = run / MODEL_FOLDER, run / ADAPTER_FOLDER
    unfinished, unfinished_adapter = (path.with_name(f".tmp-{path.name}") for path in (model, adapter))
    for path in (unfinished, unfinished_adapter):
        remove(path)  # what a kill has left
    yield unfinished, unfinished_adapter
    facts = {**record, "versions": versions(), "adapter": {}, "tokenizer_sha256": vocabulary_in(unfinished)}
    if unfinished_adapter.exists():
        facts["adapter"] = hashed_files(unfinished_adapter)
    seal(unfinished, facts, TRAINING_FILE)
    for new, final in ((unfinished_adapter, adapter), (unfinished, model)):
        if os.path.lexists(final):
            set_aside(final, "outdated", "the run has written a new one")
        if new.exists():
            new.rename(final)
    flush(run)
