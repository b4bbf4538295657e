"""Shorten the log of a long run to as many records as a picture can show, in one pass and little memory."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

LIMIT = 4000  # shortened records of a kind, at most twice as many
TAIL = 1000  # last records of a kind, which are kept as they are

Record = Mapping[str, Any]
Merge = Callable[[Sequence[Record]], Record]


class Shortened:
    """The records of one kind: each group of old ones is merged into one record, and the last ones are kept.

    The size of the groups doubles whenever there are too many of them.

    Args:
        merge: makes one record out of several.
    """

    def __init__(self, merge: Merge, limit: int = LIMIT, tail: int = TAIL) -> None:
        self.merge, self.limit, self.num_tail = merge, limit, tail
        self.size, self.count = 1, 0  # of a group; of all records
        self.old: list[Record] = []
        self.group: list[Record] = []
        self.tail: deque[Record] = deque()

    def add(self, record: Record) -> None:
        """Add the next record."""
        self.count += 1
        self.tail.append(record)
        if len(self.tail) <= self.num_tail:
            return
        self.group.append(self.tail.popleft())
        if len(self.group) < self.size:
            return
        self.old.append(self.merge(self.group))
        self.group = []
        if len(self.old) == 2 * self.limit:
            self.old = [self.merge(self.old[i : i + 2]) for i in range(0, len(self.old), 2)]
            self.size *= 2

    def records(self) -> list[Record]:
        """Old records, merged, and the last ones."""
        return [*self.old, *([self.merge(self.group)] if self.group else []), *self.tail]


def mean_record(records: Sequence[Record]) -> Record:
    """The mean of each number over the records in which it is finite; other values as in the last record."""
    if len(records) == 1:
        return records[0]
    merged = dict(records[-1])
    for name in {name for record in records for name in record}:
        values = [value for record in records if not math.isnan(value := finite_or_nan(record.get(name)))]
        if values:
            merged[name] = sum(values) / len(values)
    return merged


def best_record(records: Sequence[Record]) -> Record:
    """The record with the lowest validation loss."""

    def rank(record: Record) -> tuple[bool, float]:
        loss = finite_or_nan(record.get("eval_loss"))
        return math.isnan(loss), loss

    return min(records, key=rank)


def first_record(records: Sequence[Record]) -> Record:
    """The first record."""
    return records[0]


def finite_or_nan(value: Any) -> float:
    """The value if it is a finite number, else nan, which leaves a gap in a curve."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


class ShortenedLog:
    """The steps, evaluations and skipped updates of metrics.jsonl."""

    def __init__(self, records: Iterable[Record], limit: int = LIMIT, tail: int = TAIL) -> None:
        self.steps = Shortened(mean_record, limit, tail)
        self.evaluations = Shortened(best_record, limit, tail)
        self.skipped = Shortened(first_record, limit, tail)
        for record in records:
            kind = self.skipped if record.get("skipped") else self.evaluations if "eval_loss" in record else self.steps
            kind.add(record)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Steps, then evaluations."""
        return [dict(record) for record in (*self.steps.records(), *self.evaluations.records())]
