"""The manifest of a checkpoint: its content, and the proof that no file has changed since it was written."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers

from ..settings.durable import files_and_folders, flush
from ..settings.json_files import DamagedFileError, Shape, mismatch, read_json
from ..settings.run_folder import MANIFEST_FILE

FORMAT = 3
FILES = {str: {"size": int, "sha256": str}}
STATE = {
    "step": int, "tokens_seen?": int, "eval_loss?": float | None, "eval_step?": int, "skipped_in_a_row?": int,
    "recent?": [[float]],
}  # fmt: skip
SHAPE = {
    "step": int, "versions": {str: str}, "num_processes": int, "state": STATE, "scaler?": dict | None,
    "settings": dict, "files": FILES,
}  # fmt: skip


class DamagedError(ValueError):
    """A sealed folder has changed since it was written, or is incomplete; the message says why."""


def verified_manifest(path: Path) -> dict[str, Any]:
    """Read all files of a checkpoint, compare them with its manifest, and return the manifest.

    Raises:
        DamagedError: the file, and what is wrong with it.
        ValueError: it was written by another version of this package.
    """
    manifest = read_sealed(path / MANIFEST_FILE, {"format": int})
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {manifest['format']}, but this version reads format {FORMAT}: continue with the "
            "version that started the run, or start a new run with another --output_dir."
        )
    if found := mismatch(manifest, SHAPE):
        raise DamagedError(f"{MANIFEST_FILE} is damaged: {found}")
    verify_files(path, manifest["files"])
    return manifest


def read_sealed(path: Path, shape: Shape) -> dict[str, Any]:
    """The values that `seal` has written, without the seal.

    Raises:
        DamagedError: they have changed.
    """
    try:
        manifest: dict[str, Any] = read_json(path, shape | {"seal": str})
    except FileNotFoundError:
        raise DamagedError(f"{path.name} is missing") from None
    except DamagedFileError as error:
        raise DamagedError(str(error).removeprefix(f"{path.parent}{os.sep}").removesuffix(".")) from None
    expected = manifest.pop("seal")
    if expected != seal_of(manifest):
        raise DamagedError(f"{path.name} has changed since it was written")
    return manifest


def verify_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare files with their sizes and hashes.

    Raises:
        DamagedError: the file, and what is wrong with it.
    """
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        for _ in pool.map(lambda item: _verify_file(folder / item[0], item[1]), files.items()):
            pass


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise DamagedError(f"{path.name} is missing")
    if (size := path.stat().st_size) != expected["size"]:
        raise DamagedError(f"{path.name} has {size} bytes instead of {expected['size']}")
    if sha256_of(path) != expected["sha256"]:
        raise DamagedError(f"the content of {path.name} has changed since it was written")


def versions() -> dict[str, str]:
    """Versions of the libraries that can change the result bit by bit."""
    return {module.__name__: module.__version__ for module in (torch, transformers, accelerate)}


def seal(folder: Path, manifest: Mapping[str, Any], name: str = MANIFEST_FILE) -> None:
    """Flush all files to the disk, then write the manifest with their hashes under that name."""
    manifest = json.loads(json.dumps({**manifest, "files": hashed_files(folder)}))
    text = json.dumps({**manifest, "seal": seal_of(manifest)}, indent=2)
    (folder / name).write_text(text + "\n", encoding="utf-8")
    flush(folder / name)
    flush(folder)


def hashed_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Flush all files of a folder to the disk, and return the size and hash of each.

    They get the usual mode of new files: those of safetensors are readable by their owner only.
    """
    usual_mode = _usual_mode(folder)
    paths = files_and_folders(folder)
    for path in paths:
        if path.is_file():
            path.chmod(usual_mode)
        flush(path)
    flush(folder)
    contents = [path for path in paths if path.is_file()]
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(sha256_of, contents))
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(contents, hashes, strict=True)
    }


def _usual_mode(folder: Path) -> int:
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    return mode


def seal_of(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest without its seal."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
