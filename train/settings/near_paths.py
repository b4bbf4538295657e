"""Which existing path was probably meant by one that does not exist."""

import difflib
from pathlib import Path


def near_paths(path: Path, *, only_folders: bool = False) -> list[str]:
    """Existing paths that differ from `path` in the spelling of one part."""
    parent, rest = path.parent, [path.name]
    while not parent.is_dir() and parent != parent.parent:
        parent, rest = parent.parent, [parent.name, *rest]
    if not parent.is_dir():
        return []
    is_folder = only_folders or len(rest) > 1
    names = [entry.name for entry in parent.iterdir() if entry.is_dir() or not is_folder]
    near = [parent / name for name in difflib.get_close_matches(rest[0], names, n=3, cutoff=0.6)]
    whole = [str(folder.joinpath(*rest[1:])) for folder in near if folder.joinpath(*rest[1:]).exists()]
    return whole or [str(folder) for folder in near]


def check_exists(option: str, path: Path) -> None:
    """Refuse a file or folder that does not exist.

    Raises:
        FileNotFoundError: the option, the path, and those that were probably meant.
    """
    if not path.exists():
        near = near_paths(path)
        place = "." if path.is_absolute() else f" in {Path.cwd()}."
        hint = f": did you mean {' or '.join(near)}?" if near else place
        raise FileNotFoundError(f"{option} {path} does not exist{hint}")
