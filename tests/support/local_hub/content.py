"""Content in memory, in a file or in the Xet storage, which can be sent in pieces."""

from dataclasses import dataclass
from pathlib import Path

PIECE = 1 << 16


@dataclass(frozen=True)
class InMemory:
    data: bytes

    @property
    def size(self):
        return len(self.data)

    def pieces(self, start=0, end=None):
        """The bytes from `start` to before `end`."""
        view = memoryview(self.data)[start:end]
        for position in range(0, len(view), PIECE):
            yield bytes(view[position : position + PIECE])


@dataclass(frozen=True)
class OnDisk:
    path: Path

    @property
    def size(self):
        return self.path.stat().st_size

    def pieces(self, start=0, end=None):
        left = (self.size if end is None else end) - start
        with self.path.open("rb") as file:
            file.seek(start)
            while left > 0 and (piece := file.read(min(left, PIECE))):
                left -= len(piece)
                yield piece


@dataclass(frozen=True)
class InXet:
    """A file assembled from the chunks of a `Cas`."""

    cas: object
    file: str

    @property
    def size(self):
        return self.cas.size_of(self.file)

    def pieces(self, start=0, end=None):
        yield self.cas.read_file(self.file, start, end)


def read(content):
    return b"".join(content.pieces())
