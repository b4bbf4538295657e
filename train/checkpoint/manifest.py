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

from ..settings.run_folder import MANIFEST_FILE

FORMAT = 3


class DamagedError(ValueError):
    """A checkpoint has changed since it was written, or is incomplete; the message says why."""


def verified_manifest(path: Path) -> dict[str, Any]:
    """Read all files of a checkpoint, compare them with its manifest, and return the manifest.

    Raises:
        DamagedError: the file, and what is wrong with it.
        ValueError: it was written by another version of this package.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
        expected_seal, files = manifest.pop("seal"), manifest["files"]
    except FileNotFoundError:
        raise DamagedError(f"{MANIFEST_FILE} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST_FILE} is incomplete: {error!r}") from None
    if expected_seal != seal_of(manifest):
        raise DamagedError(f"{MANIFEST_FILE} has changed since it was written")
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {manifest['format']}, but this version reads format {FORMAT}: continue with the "
            "version that started the run, or start a new run with another --output_dir."
        )
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        for _ in pool.map(lambda item: _verify_file(path / item[0], item[1]), files.items()):
            pass
    return manifest


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    if not path.exists():
        raise DamagedError(f"{path.name} is missing")
    if (size := path.stat().st_size) != expected["size"]:
        raise DamagedError(f"{path.name} has {size} bytes instead of {expected['size']}")
    if sha256_of(path) != expected["sha256"]:
        raise DamagedError(f"the content of {path.name} has changed since it was written")


def versions() -> dict[str, str]:
    """Versions of the libraries that can change the result bit by bit."""
    return {module.__name__: module.__version__ for module in (torch, transformers, accelerate)}


def seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Flush all files to the disk, then write the manifest with their hashes."""
    manifest_path = folder / MANIFEST_FILE
    manifest_path.touch()
    usual_mode = manifest_path.stat().st_mode
    paths = sorted(path for path in folder.rglob("*") if path != manifest_path)
    for path in paths:
        if path.is_file():
            path.chmod(usual_mode)  # safetensors files are readable by their owner only
        flush(path)
    contents = [path for path in paths if path.is_file()]
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(sha256_of, contents))
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(contents, hashes, strict=True)
    }
    manifest = json.loads(json.dumps({**manifest, "files": files}))
    text = json.dumps({**manifest, "seal": seal_of(manifest)}, indent=2)
    manifest_path.write_text(text + "\n", encoding="utf-8")
    flush(manifest_path)
    flush(folder)


def seal_of(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest without its seal."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
