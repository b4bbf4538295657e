"""The content-addressed store of the Xet protocol, without its HTTP: https://huggingface.co/docs/xet.

A file is cut into chunks, chunks travel packed into xorbs, and a shard says which chunks of which xorbs make a file.
"""

import hashlib
import re
import struct
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from . import lz4

CHUNK_HEADER = 8  # bytes: version, 3 of packed length, compression, 3 of unpacked length

RECORD = 48  # bytes of an entry of a shard
SHARD_HEADER = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9") + struct.pack("<2Q", 2, 0)
BOOKEND = b"\xff" * 32 + bytes(16)  # the end of a section
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30  # flags of a file; the Hub wants both


class Xorb(NamedTuple):
    """Chunk i is at `packed[i]` to `packed[i + 1]` of the upload, and likewise in `unpacked` of its data."""

    packed: list[int]
    unpacked: list[int]


class Term(NamedTuple):
    """The chunks `start` to `end` (exclusive) of a xorb, and the size of their data in bytes."""

    xorb: str
    start: int
    end: int
    size: int


class File(NamedTuple):
    hash: str
    terms: list[Term]
    sha256: str

    @property
    def size(self) -> int:
        return sum(term.size for term in self.terms)


class Cas:
    """Stores xorbs in a folder, and their descriptions in memory. Safe for threads.

    Hashes are strings as the protocol writes them. KeyError means that a hash is unknown, ValueError that an
    upload is damaged, IndexError that a range begins after the end of the file.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.xorbs: dict[str, Xorb] = {}
        self.files: dict[str, File] = {}
        self.by_sha256: dict[str, File] = {}
        self.lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def put_xorb(self, hash: str, body: bytes) -> bool:
        """Stores a xorb; returns whether it is new. Its chunks are unpacked and checked, but not its hash, a BLAKE3."""
        if not re.fullmatch("[0-9a-f]{64}", hash):
            raise ValueError(f"A xorb is named by 64 hexadecimal digits, not {hash!r}.")
        xorb, data = unpack_xorb(body)
        with self.lock:
            if hash in self.xorbs:  # different bytes may encode the same chunks: keep those that clients know
                return False
            self._packed(hash).write_bytes(body)
            self._unpacked(hash).write_bytes(data)
            self.xorbs[hash] = xorb
        return True

    def put_shard(self, body: bytes) -> list[str]:
        """Stores the files of a shard and returns their hashes; if one of them is wrong, none is stored."""
        files, xorbs = parse_shard(body)
        for hash, unpacked in xorbs.items():
            if self._xorb(hash).unpacked != unpacked:
                raise ValueError(f"The shard cuts xorb {hash} into other chunks than the xorb itself.")
        for file in files:
            self._check(file)
        with self.lock:
            for file in files:
                self.files[file.hash] = self.by_sha256[file.sha256] = file
        return [file.hash for file in files]

    def reconstruction(
        self,
        file_hash: str,
        byte_range: tuple[int, int | None] | None = None,
        version: int = 2,
        url: Callable[[str], str] = str,
    ) -> dict:
        """The locations of the chunks of a file, or of the bytes from the first to the last of `byte_range`.

        `url` makes the address of a xorb from its hash.
        """
        file = self.files[file_hash]
        first, last = byte_range or (0, None)
        end = file.size if last is None else min(last + 1, file.size)
        if byte_range and not first < end:
            raise IndexError(f"Bytes {first} to {last} of a file of {file.size} bytes.")
        terms, offset = self._cut(file, first, end)
        found = [{"hash": t.xorb, "unpacked_length": t.size, "range": {"start": t.start, "end": t.end}} for t in terms]
        places = {xorb: [self._place(xorb, part) for part in parts] for xorb, parts in _ranges(terms).items()}
        if version == 1:
            fetch = {
                xorb: [{"url": url(xorb), "range": chunks, "url_range": sent} for chunks, sent in parts]
                for xorb, parts in places.items()
            }
            return {"offset_into_first_range": offset, "terms": found, "fetch_info": fetch}
        xorbs = {
            xorb: [{"url": url(xorb), "ranges": [{"chunks": chunks, "bytes": sent} for chunks, sent in parts]}]
            for xorb, parts in places.items()
        }
        return {"offset_into_first_range": offset, "terms": found, "xorbs": xorbs}

    def read_xorb(self, hash: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes of the xorb as uploaded; `end` is exclusive."""
        if hash not in self.xorbs:
            raise KeyError(hash)
        return _read(self._packed(hash), start, end)

    def read_file(self, file_hash: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes of the file; `end` is exclusive."""
        file = self.files[file_hash]
        end = file.size if end is None else end
        terms, offset = self._cut(file, start, end)
        return b"".join(self._data(term) for term in terms)[offset : offset + end - start]

    def file_of_sha256(self, sha256: str) -> str:
        """The hash of the file with this SHA-256."""
        return self.by_sha256[sha256].hash

    def size_of(self, file_hash: str) -> int:
        """The size of the file in bytes."""
        return self.files[file_hash].size

    def _check(self, file: File) -> None:
        digest = hashlib.sha256()
        for term in file.terms:
            unpacked = self._xorb(term.xorb).unpacked
            if not term.start < term.end < len(unpacked) or unpacked[term.end] - unpacked[term.start] != term.size:
                raise ValueError(f"File {file.hash} wants chunks that xorb {term.xorb} does not have: {term}.")
            digest.update(self._data(term))
        if digest.hexdigest() != file.sha256:
            raise ValueError(f"File {file.hash} has SHA-256 {digest.hexdigest()} instead of {file.sha256}.")

    def _xorb(self, hash: str) -> Xorb:
        if hash not in self.xorbs:
            raise ValueError(f"The shard names xorb {hash}, which was never sent.")
        return self.xorbs[hash]

    def _cut(self, file: File, start: int, end: int) -> tuple[list[Term], int]:
        """The terms, reduced to the chunks with these bytes, and the number of bytes before them in the first chunk."""
        terms, offset, at = [], 0, 0  # at: where the term begins in the file
        for term in file.terms:
            if start < at + term.size and at < end:
                unpacked = self.xorbs[term.xorb].unpacked
                shift = unpacked[term.start] - at  # from positions in the file to positions in the xorb
                first = max(term.start, bisect_right(unpacked, start + shift) - 1)
                last = min(term.end, bisect_left(unpacked, end + shift))
                offset = offset if terms else start + shift - unpacked[first]
                terms.append(Term(term.xorb, first, last, unpacked[last] - unpacked[first]))
            at += term.size
        return terms, offset

    def _data(self, term: Term) -> bytes:
        unpacked = self.xorbs[term.xorb].unpacked
        return _read(self._unpacked(term.xorb), unpacked[term.start], unpacked[term.end])

    def _place(self, xorb: str, chunks: range) -> tuple[dict[str, int], dict[str, int]]:
        """These chunks and their bytes in the xorb; the last byte is included, as in HTTP."""
        packed = self.xorbs[xorb].packed
        sent = {"start": packed[chunks.start], "end": packed[chunks.stop] - 1}
        return {"start": chunks.start, "end": chunks.stop}, sent

    def _packed(self, hash: str) -> Path:
        return self.folder / f"{hash}.xorb"

    def _unpacked(self, hash: str) -> Path:
        return self.folder / f"{hash}.data"


def unpack_xorb(body: bytes) -> tuple[Xorb, bytes]:
    """The positions of the chunks, and their unpacked data."""
    packed, unpacked, data = [0], [0], bytearray()
    while packed[-1] < len(body):
        start = packed[-1] + CHUNK_HEADER
        version, length, scheme, size = chunk_header(body[packed[-1] : start])
        end = start + length
        if version != 0 or scheme not in UNPACK or end > len(body):
            raise ValueError(f"Chunk {len(packed) - 1} of the xorb is damaged: {body[packed[-1] : start].hex()}.")
        data += UNPACK[scheme](body[start:end])
        if not size == len(data) - unpacked[-1] > 0:
            raise ValueError(f"Chunk {len(packed) - 1} has {len(data) - unpacked[-1]} bytes instead of {size}.")
        packed.append(end)
        unpacked.append(len(data))
    if not data:
        raise ValueError("The xorb has no chunks.")
    return Xorb(packed, unpacked), bytes(data)


def chunk_header(header: bytes) -> tuple[int, int, int, int]:
    """Version, packed length, compression scheme, unpacked length."""
    if len(header) != CHUNK_HEADER:
        raise ValueError(f"The xorb ends within the header of a chunk: {header.hex()}.")
    return header[0], int.from_bytes(header[1:4], "little"), header[4], int.from_bytes(header[5:], "little")


def ungroup(grouped: bytes) -> bytearray:
    """Undoes the grouping of bytes by their position modulo four, which makes floats easier to compress."""
    data = bytearray(len(grouped))
    start = 0
    for place in range(4):
        end = start + len(range(place, len(data), 4))
        data[place::4] = grouped[start:end]
        start = end
    return data


UNPACK = {0: bytes, 1: lz4.decompress, 2: lambda frame: ungroup(lz4.decompress(frame))}


def parse_shard(body: bytes) -> tuple[list[File], dict[str, list[int]]]:
    """The files of an uploaded shard, and the chunk boundaries of its new xorbs."""
    if len(body) % RECORD:
        raise ValueError(f"A shard consists of records of {RECORD} bytes, this one has {len(body)} bytes.")
    records = iter([body[at : at + RECORD] for at in range(0, len(body), RECORD)])
    try:
        if next(records) != SHARD_HEADER:
            raise ValueError(f"Not a shard of version 2 without a footer: {body[:RECORD].hex()}.")
        files, xorbs = _files(records), _xorbs(records)
    except StopIteration:
        raise ValueError("The shard ends too early.") from None
    if rest := len(list(records)):
        raise ValueError(f"{rest} records follow the end of the shard.")
    return files, xorbs


def _files(records: Iterator[bytes]) -> list[File]:
    files = []
    while (head := next(records)) != BOOKEND:
        flags, count = struct.unpack("<2I", head[32:40])
        if flags != WITH_VERIFICATION | WITH_METADATA:
            raise ValueError(f"File {text(head)} comes without its verification or its SHA-256.")
        entries = [next(records) for _ in range(count)]
        for _ in range(count):
            next(records)  # verification: a BLAKE3 of the hashes of chunks, which is not checked here
        files.append(File(text(head), [_term(entry) for entry in entries], text(next(records))))
    return files


def _term(entry: bytes) -> Term:
    _, size, start, end = struct.unpack("<4I", entry[32:])
    return Term(text(entry), start, end, size)


def _xorbs(records: Iterator[bytes]) -> dict[str, list[int]]:
    xorbs = {}
    while (head := next(records)) != BOOKEND:
        _, count, size, _ = struct.unpack("<4I", head[32:])
        starts = [struct.unpack("<I", next(records)[32:36])[0] for _ in range(count)]
        xorbs[text(head)] = [*starts, size]
    return xorbs


def text(record: bytes) -> str:
    """The hash at the start of a record, as four little-endian numbers."""
    return "".join(record[at : at + 8][::-1].hex() for at in range(0, 32, 8))


def _ranges(terms: list[Term]) -> dict[str, list[range]]:
    """The chunks of each xorb in these terms, as ranges that neither overlap nor touch."""
    ranges: dict[str, list[range]] = {}
    for xorb, start, end, _ in sorted(terms):
        known = ranges.setdefault(xorb, [])
        if known and start <= known[-1].stop:
            start, end = known[-1].start, max(end, known.pop().stop)
        known.append(range(start, end))
    return ranges


def _read(path: Path, start: int, end: int | None) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read() if end is None else file.read(max(0, end - start))
