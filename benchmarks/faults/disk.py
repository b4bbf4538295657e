"""Rebuild a folder as it was after any call, and as it may be after a power loss.

What is guaranteed to survive is what POSIX says: the content of a file after fsync of the file, and the names in a
folder after fsync of the folder. What was not flushed may survive or not, so a power loss has several outcomes.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from .shim import Call, Kind

NEVER = 1 << 60
Tree = dict[str, bytes | None]  # content of each file below a folder; None for a folder


class Outcome(Enum):
    """Which of the changes that were not flushed are on the disk after a power loss."""

    NOTHING = "nothing that was not flushed"
    NAMES = "names, but no content"
    ZEROS = "names and sizes, but zeros as content"
    HALF = "names, and half of the content"
    CONTENT = "content, but no names"
    REMOVALS = "content and removals, but no new names"


@dataclass
class Step:
    """A change of one inode: of the names in a folder, or of the content of a file."""

    call: int  # index of the call
    what: str  # create, remove, move, write, cut
    inode: int  # the folder, or the file
    name: str = ""
    child: int = 0
    target: int = 0  # of a move: the other folder
    target_name: str = ""
    offset: int = 0
    data: bytes = b""
    flushed_at: int = NEVER  # index of the call that flushed it

    @property
    def is_name(self) -> bool:
        """Whether it changes names, not content."""
        return self.what in ("create", "remove", "move")


@dataclass
class Disk:
    """The inodes below a folder, and every change that was made to them."""

    root: str
    names: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})  # folders: name -> inode
    contents: dict[int, bytes] = field(default_factory=dict)  # files, before the first call
    steps: list[Step] = field(default_factory=list)
    num_calls: int = 0

    @classmethod
    def after(cls, root: Path, before: Tree, calls: Sequence[Call]) -> "Disk":
        """Follow the calls from the folder as it was before.

        Raises:
            ValueError: a call that cannot be followed.
        """
        disk = cls(str(root))
        for path in sorted(before):
            disk._add(path, before[path])
        start = {inode: dict(children) for inode, children in disk.names.items()}
        recorder = Recorder(disk)
        for index, call in enumerate(calls):
            recorder.follow(index, call)
        disk.names, disk.num_calls = {inode: start.get(inode, {}) for inode in disk.names}, len(calls)
        return disk

    def _add(self, path: str, content: bytes | None) -> None:
        *parents, name = path.split("/")
        folder = 0
        for parent in parents:
            folder = self.names[folder][parent]
        inode = self.new_inode(content is None)
        self.names[folder][name] = inode
        if content is not None:
            self.contents[inode] = content

    def new_inode(self, is_folder: bool) -> int:
        """The number of a new, empty file or folder."""
        inode = len(self.names) + len(self.contents)
        if is_folder:
            self.names[inode] = {}
        else:
            self.contents[inode] = b""
        return inode

    def tree(self, num_calls: int, outcome: Outcome | None = None, half_of: int | None = None) -> Tree:
        """The folder after `num_calls` calls; with an outcome, after a power loss at that moment.

        Args:
            half_of: index of a write of which only the first half was made.
        """
        names = {inode: dict(children) for inode, children in self.names.items()}
        contents = {inode: bytearray(content) for inode, content in self.contents.items()}
        for step in self.steps:
            if step.call >= num_calls:
                break
            lost = Outcome.HALF if step.call == half_of else None if step.flushed_at < num_calls else outcome
            _apply(step, names, contents, lost)
        tree: Tree = {}
        _collect(0, "", names, contents, tree)
        return tree


def _apply(
    step: Step, names: dict[int, dict[str, int]], contents: dict[int, bytearray], outcome: Outcome | None
) -> None:
    if step.is_name:
        has_names = outcome in (None, Outcome.NAMES, Outcome.ZEROS, Outcome.HALF)
        if has_names or (outcome is Outcome.REMOVALS and step.what == "remove"):
            _rename(step, names)
        return
    if outcome is Outcome.NOTHING or (step.what == "write" and outcome is Outcome.NAMES):
        return
    content = contents[step.inode]
    if step.what == "cut":
        del content[step.offset :]
        content.extend(bytes(max(step.offset - len(content), 0)))
        return
    data = step.data
    if outcome is Outcome.ZEROS:
        data = bytes(len(data))
    if outcome is Outcome.HALF:
        data = data[: len(data) // 2]
    content.extend(bytes(max(step.offset - len(content), 0)))
    content[step.offset : step.offset + len(data)] = data


def _rename(step: Step, names: dict[int, dict[str, int]]) -> None:
    folder = names[step.inode]
    if step.what == "create":
        folder[step.name] = step.child
    elif folder.get(step.name) == step.child:  # otherwise its creation was lost
        del folder[step.name]
        if step.what == "move":
            names[step.target][step.target_name] = step.child


def _collect(
    folder: int, prefix: str, names: dict[int, dict[str, int]], contents: dict[int, bytearray], tree: Tree
) -> None:
    for name, inode in sorted(names[folder].items()):
        path = prefix + name
        tree[path] = None if inode in names else bytes(contents[inode])
        if inode in names:
            _collect(inode, path + "/", names, contents, tree)


class Recorder:
    """Turns calls into changes of inodes, and notes which changes a flush has made durable."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.inode_of: dict[int, int] = {}  # open files
        self.pending: dict[int, list[Step]] = {}  # changes of an inode since its last flush

    def follow(self, index: int, call: Call) -> None:
        """Apply one call."""
        if call.kind == Kind.MAP_SHARED_WRITE:
            raise ValueError("a file was written through a memory map, which the shim does not see")
        if call.error or call.kind in (Kind.READ, Kind.STAT, Kind.LIST, Kind.MODE):
            return
        if call.kind in (Kind.OPEN, Kind.CREATE):
            self._open(index, call)
        elif call.kind in (Kind.CLOSE, Kind.CLOSE_READ):
            self.inode_of.pop(call.fd, None)
        elif call.kind == Kind.FSYNC:
            for step in self.pending.pop(self.inode_of[call.fd], []):
                step.flushed_at = index
        elif call.kind in (Kind.WRITE, Kind.TRUNCATE):
            what = "write" if call.kind == Kind.WRITE else "cut"
            self._note(Step(index, what, self.inode_of[call.fd], offset=call.offset, data=call.data))
        else:
            self._change_names(index, call)

    def _open(self, index: int, call: Call) -> None:
        folder, name = self._place(call.path)
        inode = self._find(call.path)
        if inode is None:
            inode = self.disk.new_inode(is_folder=False)
            self.disk.names[folder][name] = inode
            self._note(Step(index, "create", folder, name, inode))
        elif call.flags & os.O_TRUNC:
            self._note(Step(index, "cut", inode))
        self.inode_of[call.fd] = inode

    def _change_names(self, index: int, call: Call) -> None:
        folder, name = self._place(call.path)
        entries = self.disk.names[folder]
        if call.kind == Kind.MKDIR:
            inode = self.disk.new_inode(is_folder=True)
            entries[name] = inode
            self._note(Step(index, "create", folder, name, inode))
        elif call.kind == Kind.RENAME:
            target, target_name = self._place(call.other)
            inode = entries.pop(name)
            self.disk.names[target][target_name] = inode
            self._note(Step(index, "move", folder, name, inode, target, target_name))
        elif call.kind == Kind.LINK:
            target, target_name = self._place(call.other)
            self.disk.names[target][target_name] = entries[name]
            self._note(Step(index, "create", target, target_name, entries[name]))
        else:
            self._note(Step(index, "remove", folder, name, entries.pop(name)))

    def _note(self, step: Step) -> None:
        self.disk.steps.append(step)
        self.pending.setdefault(step.target if step.what == "move" else step.inode, []).append(step)

    def _place(self, path: str) -> tuple[int, str]:
        """The inode of the folder that contains `path`, and its name there."""
        *parents, name = os.path.relpath(path, self.disk.root).split("/")
        folder = 0
        for parent in parents:
            folder = self.disk.names[folder][parent]
        return folder, name

    def _find(self, path: str) -> int | None:
        if path == self.disk.root:
            return 0
        folder, name = self._place(path)
        return self.disk.names[folder].get(name)


def read_tree(folder: Path) -> Tree:
    """The content of a folder on the disk."""
    tree: Tree = {}
    for path in sorted(folder.rglob("*")):
        tree[path.relative_to(folder).as_posix()] = None if path.is_dir() else path.read_bytes()
    return tree


def write_tree(folder: Path, tree: Tree) -> None:
    """Make a folder contain exactly this."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in tree.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def change_points(calls: Sequence[Call]) -> Iterator[int]:
    """The numbers of calls after which the folder differs from before: the moments at which a power loss matters."""
    for index, call in enumerate(calls):
        if call.is_change and not call.error:
            yield index + 1
