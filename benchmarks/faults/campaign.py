"""Inject faults at every call of an operation, and judge what is left."""

import errno
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .disk import Disk, Outcome, Tree, change_points, read_tree, write_tree
from .operations import CHECKPOINT, LEFTOVER, Operation, differences, digests, fingerprint, finished, results_of
from .shim import Action, Call, Injection, Kind, read_log
from .trial import Ending, run

LASTING = (errno.ENOSPC, errno.EIO)  # a full disk stays full, a broken one broken
REAL_KILLS = 10  # of so many kills, one hits a real process; the others take the folder from the log of calls
ERRORS = {"no space": errno.ENOSPC, "I/O error": errno.EIO, "no permission": errno.EACCES}
NEEDS_ROOM = (Kind.WRITE, Kind.MKDIR, Kind.LINK, Kind.RENAME, Kind.TRUNCATE)
NEEDS_PERMISSION = (
    *(Kind.CREATE, Kind.OPEN, Kind.RENAME, Kind.LINK, Kind.UNLINK, Kind.RMDIR, Kind.MKDIR, Kind.MODE),
    *(Kind.STAT, Kind.LIST),
)
BEFORE, WITHIN = "kill: before the call", "kill: within the write"
CONTINUED, REFUSED, FAULT = "continued", "refused", "fault"


@dataclass(frozen=True)
class Point:
    """One fault at one call.

    Args:
        call: index into the calls of the run without faults.
        injection: None: the folder is rebuilt from the log of calls.
        outcome: of a power loss.
    """

    fault: str
    call: int
    injection: Injection | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of a point: continued with equal results, refused with a message, or a fault."""

    kind: str
    text: str = ""
    first_step: int | None = None  # of the second run


@dataclass
class Campaign:
    """All points of one operation.

    Args:
        folder: for the log of calls.
        faults: the kinds of faults to try.
        parts: only these parts of the operation; empty: all.
        every: try only every N-th of the calls.
    """

    operation: Operation
    folder: Path
    faults: Sequence[str]
    parts: Sequence[str] = ()
    every: int = 1
    calls: list[Call] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    table: dict[str, Counter[str]] = field(default_factory=dict)
    states: dict[str, Verdict] = field(default_factory=dict)  # folders from which the command was run again

    def record(self) -> None:
        """Run the operation without a fault, and check that the log explains every byte on the disk.

        Raises:
            ValueError: it does not, or two runs differ.
        """
        operation, log = self.operation, self.folder / "calls.bin"
        self.expected = finished(operation)
        write_tree(operation.folder, operation.before)
        run(operation.trial(watched=operation.folder, log=log))
        self.calls = list(read_log(log))
        self.disk = Disk.after(operation.folder, operation.before, self.calls)
        found = read_tree(operation.folder)
        if self.disk.tree(len(self.calls)) != found:
            raise ValueError(f"{operation.name}: the log of calls does not explain the folder")
        if problem := differences(self.expected, found):
            raise ValueError(f"{operation.name}: two runs without faults differ: {problem}")
        self.paths = list(_paths(self.calls, operation.folder))

    def points(self) -> Iterator[Point]:
        """Every fault at every call of the chosen parts."""
        counts, changes = [0, 0], set(change_points(self.calls))
        for index, call in enumerate(self.calls):
            if call.kind == Kind.CLOSE_READ:
                continue
            counts[call.is_change] += 1
            part = self.operation.part_of(self.paths[index])
            if (self.parts and part not in self.parts) or counts[call.is_change] % self.every:
                continue
            self.table.setdefault(part, Counter())["calls"] += 1
            for fault, action, error in _faults_of(call):
                is_real = action in (Action.FAIL, Action.FAIL_FROM_HERE) or counts[True] % REAL_KILLS == 0
                injection = Injection(action, call.is_change, counts[call.is_change], error)
                yield Point(fault, index, injection if is_real else None)
            if index + 1 in changes:
                for outcome in Outcome:
                    yield Point(f"power loss: {outcome.value}", index, None, outcome)

    def try_all(self) -> Iterator[tuple[Point, str, Verdict]]:
        """Try all points; yields each with its part of the operation and its verdict."""
        for point in self.points():
            if point.fault.partition(":")[0] not in self.faults:
                continue
            verdict = self.verdict(point)
            part = self.operation.part_of(self.paths[point.call])
            self.table[part].update({"points": 1, point.fault.partition(":")[0]: 1, verdict.kind: 1})
            yield point, part, verdict

    def verdict(self, point: Point) -> Verdict:
        """Try one point."""
        operation, ending = self.operation, None
        rebuilt = self._rebuilt(point)
        if point.injection is None:
            write_tree(operation.folder, rebuilt)
        else:
            write_tree(operation.folder, operation.before)
            ending = run(operation.trial(watched=operation.folder, injection=point.injection))
        left = read_tree(operation.folder)
        # half a line of a log has a time
        is_comparable = self.is_repeatable and not (point.fault == WITHIN and self.paths[point.call].endswith(".jsonl"))
        is_killed = ending is not None and ending.code == -signal.SIGKILL
        if is_killed and is_comparable and fingerprint(left) != fingerprint(rebuilt):
            return Verdict(FAULT, "the killed process leaves another folder than the log of calls says")
        problem = self._problem_of(point, ending, left)
        if problem:
            return Verdict(FAULT, problem)
        key = fingerprint(left)
        if key not in self.states:
            self.table[operation.part_of(self.paths[point.call])]["run again"] += 1
            self.states[key] = self._run_again(left)
        return self._check_progress(point, self.states[key])

    @property
    def is_repeatable(self) -> bool:
        """Whether all calls are made by one thread, in the same order each time."""
        return "async_save" not in self.operation.name

    def _rebuilt(self, point: Point) -> Tree:
        """The folder after the call, or before or within it."""
        if point.fault == BEFORE:
            return self.disk.tree(point.call)
        if point.fault == WITHIN:
            return self.disk.tree(point.call + 1, half_of=point.call)
        return self.disk.tree(point.call + 1, point.outcome)

    def _problem_of(self, point: Point, ending: Ending | None, left: Tree) -> str:
        """What is wrong before the command is run again."""
        if ending is not None and (problem := self._problem_of_ending(point, ending, left)):
            return problem
        shipped = digests(results_of(left))
        wanted = digests(results_of(self.expected))
        if self.operation.command in ("prepare_data", "train_tokenizer"):
            last = "out/data.json" if self.operation.command == "prepare_data" else "out/tokenizer.json"
            is_whole = wanted.items() <= shipped.items()
            return "" if last not in shipped or is_whole else "half a result in its final folder"
        for folder in ("out/model", "out/adapter"):
            found = _below(shipped, folder)
            older = _below(digests(self.operation.older), folder)
            if found and found not in (_below(wanted, folder), older):
                return f"half of {folder} in its place"
            if older and not found and not _has_weights_of(self.operation.older, left):
                return f"the older {folder} is lost"
        return ""

    def _problem_of_ending(self, point: Point, ending: Ending, left: Tree) -> str:
        if "\nhung: " in ending.text:
            return "hangs"
        if "Traceback (most recent call last)" in ending.text:
            return f"a traceback: {ending.text.strip().splitlines()[-1][:150]}"
        if ending.code < 0:
            return ""
        if ending.code == 0:
            problem = differences(self.expected, left)
            return f"exit code 0, but {problem}" if problem else ""
        if ending.code not in (2, 130) or "error: " not in ending.text:
            return f"exit code {ending.code} without a message: {ending.text[-150:]!r}"
        state = _state(left)
        is_hit = "status.json" in self.paths[point.call] or "from there" in point.fault
        if state in ("complete", "running") and self.operation.before.get("out/status.json") != left.get(
            "out/status.json"
        ):
            return "" if is_hit else f"exit code {ending.code}, but status.json says {state!r}"
        return ""

    def _run_again(self, left: Tree) -> Verdict:
        """Start the command again after a fault."""
        operation = self.operation
        ending = run(operation.trial())
        found = read_tree(operation.folder)
        if ending.code == 0:
            if problem := differences(self.expected, found):
                return Verdict(FAULT, f"run again: exit code 0, but {problem}")
            done = re.search(r"^steps\s+(\d+) of", ending.text, re.MULTILINE)
            return Verdict(CONTINUED, first_step=int(done[1]) if done else None)
        if ending.code != 2 or "error: " not in ending.text or "Traceback" in ending.text:
            return Verdict(FAULT, f"run again: exit code {ending.code}: {ending.text.strip()[-300:]}")
        before, after = digests(left), digests(found)
        if lost := [name for name in before if CHECKPOINT.search(name) and name not in after]:
            return Verdict(FAULT, f"run again: refused, and {lost[0]} is lost")
        if left_over := [name for name in after if LEFTOVER.search(name)]:
            return Verdict(FAULT, f"run again: refused, and {left_over[0]} is left over")
        return Verdict(REFUSED, ending.text.partition("error: ")[2].strip().replace("\n", " ")[:300])

    def _check_progress(self, point: Point, verdict: Verdict) -> Verdict:
        """A checkpoint that had been saved must not be lost."""
        if verdict.first_step is None or not self.is_repeatable:
            return verdict
        saved = _saved_steps(self.calls[: point.call + 1], self.paths)
        if verdict.first_step < saved:
            return Verdict(FAULT, f"run again: starts at step {verdict.first_step}, although step {saved} was saved")
        return verdict


def _below(found: dict[str, str], folder: str) -> dict[str, str]:
    return {name: digest for name, digest in found.items() if name == folder or name.startswith(folder + "/")}


def _has_weights_of(older: Tree, left: Tree) -> bool:
    """Whether the older model is still there, in its place or under another name."""
    weights = {content for name, content in older.items() if name.endswith("model.safetensors")}
    return weights <= {content for name, content in left.items() if "checkpoint-" not in name}


def _faults_of(call: Call) -> Iterator[tuple[str, Action, int]]:
    """The faults that this call can have."""
    for name, error in ERRORS.items():
        if _may_fail(call, error):
            yield f"error: {name}", Action.FAIL, error
            if call.is_change and error in LASTING:
                yield f"errors from there: {name}", Action.FAIL_FROM_HERE, error
    if call.is_change:
        yield BEFORE, Action.KILL_BEFORE, 0
        yield "kill: after the call", Action.KILL_AFTER, 0
        if call.kind == Kind.WRITE and len(call.data) > 1:
            yield WITHIN, Action.KILL_WITHIN, 0


def _may_fail(call: Call, error: int) -> bool:
    if error == errno.ENOSPC:
        return call.kind in NEEDS_ROOM or (call.kind == Kind.CREATE and bool(call.flags & os.O_CREAT))
    return error == errno.EIO or call.kind in NEEDS_PERMISSION


def _paths(calls: Sequence[Call], root: Path) -> Iterator[str]:
    """The path of each call, relative to the watched folder; that of the open file where a call has none."""
    open_files: dict[int, str] = {}
    for call in calls:
        if call.kind in (Kind.OPEN, Kind.CREATE) and not call.error:
            open_files[call.fd] = call.path
        path = call.path or open_files.get(call.fd, "")
        yield path.removeprefix(str(root)).lstrip("/")


def _state(tree: Tree) -> str:
    try:
        return str(json.loads(tree.get("out/status.json") or b"{}").get("state", ""))
    except ValueError:
        return "unreadable"


def _saved_steps(calls: Sequence[Call], paths: Sequence[str]) -> int:
    """The step of the newest checkpoint after whose save training went on."""
    saved = renamed = 0
    for call, path in zip(calls, paths, strict=False):
        if call.kind == Kind.RENAME and not call.error and (found := CHECKPOINT.search(call.other)):
            renamed = int(found[0].removeprefix("checkpoint-"))
        elif call.is_change and "checkpoint-" not in path and call.kind != Kind.FSYNC and call.kind != Kind.CLOSE:
            saved = renamed
    return saved
