"""The text files of a folder, and what else is in it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..settings.reading import suffix_of
from ..settings.words import counted
from .text_files import check_name

NUM_SHOWN = 5  # suffixes in a note


@dataclass
class FolderFiles:
    """The files of a folder that are read, and the number of those that are not, by reason."""

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    other_suffixes: Counter[str] = field(default_factory=Counter)

    @property
    def reasons(self) -> str:
        """The numbers of files that are left out, by reason; empty if there are none."""
        reasons = [counted(count, reason) for reason, count in self.left_out.items()]
        if self.other_suffixes:
            common = self.other_suffixes.most_common(NUM_SHOWN)
            shown = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in common)
            more = ", ..." if len(self.other_suffixes) > NUM_SHOWN else ""
            total = counted(sum(self.other_suffixes.values()), "file")
            reasons.append(f"{total} with other suffixes ({shown}{more})")
        return ", ".join(reasons)

    @property
    def note(self) -> str:
        """What is left out, as a sentence, and how to choose other files; empty if everything is read."""
        remedy = ": --suffixes chooses what is read" if self.other_suffixes else ""
        return f"left out {self.reasons}{remedy}." if self.reasons else ""


def files_of(folder: Path, suffixes: Sequence[str]) -> FolderFiles:
    """All visible files of a folder with the `suffixes`, in upper or lower case, also compressed with .gz.

    Linked folders are followed, each folder once, so a link to a parent ends nowhere. A file is under its own name
    rather than that of a link.

    Raises:
        ValueError: the name of a file that would be read is not UTF-8.
        OSError: a folder cannot be read.
    """
    found = FolderFiles()
    seen: set[Path] = set()
    for path in _walk(folder, found):
        reason = _reason_to_leave_out(path)
        if reason is None and suffix_of(path) not in suffixes:
            found.other_suffixes[suffix_of(path)] += 1
        elif reason is None and path.resolve() in seen:
            found.left_out["duplicate link"] += 1
        elif reason is None:
            check_name(path)
            seen.add(path.resolve())
            found.files.append(path)
        else:
            found.left_out[reason] += 1
    return found


def _walk(folder: Path, found: FolderFiles) -> Iterator[Path]:
    """The files of a folder and its folders, links last."""
    folders, seen = [folder], set[Path]()
    linked_folders: list[Path] = []
    linked_files: list[Path] = []
    while folders or linked_folders:
        place = folders.pop() if folders else linked_folders.pop()
        if place.resolve() in seen:
            found.left_out["duplicate link"] += 1
            continue
        seen.add(place.resolve())
        for path in sorted(place.iterdir()):
            if path.name.startswith("."):
                found.left_out["hidden " + ("folder" if path.is_dir() else "file")] += 1
            elif path.is_dir():
                (linked_folders if path.is_symlink() else folders).append(path)
            elif path.is_symlink():
                linked_files.append(path)
            else:
                yield path
    yield from linked_files


def _reason_to_leave_out(path: Path) -> str | None:
    if path.is_symlink() and not path.exists():
        return "broken link"
    if not path.is_file():
        return "special file"
    return "empty file" if path.stat().st_size == 0 else None
