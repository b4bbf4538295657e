"""The content-addressed store without a client: handmade xorbs and shards, and the LZ4 decoder."""

import hashlib
import random
import struct
from concurrent.futures import ThreadPoolExecutor

import pyarrow
import pytest

from tests.support.local_hub import lz4
from tests.support.local_hub.xet import BOOKEND, SHARD_HEADER, Cas, text

RAW, LZ4, GROUPED_LZ4 = range(3)  # compression schemes
# a xorb of three chunks, and files made of them
PIECES = [b"zero.", b"one", b"two!!!!!"]
XORB, FILE, OTHER = "0a" * 32, "0b" * 32, "0c" * 32


def chunk(data, scheme=RAW, size=None, version=0):
    length, size = len(data), len(data) if size is None else size
    return bytes([version, *length.to_bytes(3, "little"), scheme, *size.to_bytes(3, "little")]) + data


def swapped(name):
    """The inverse of `text`."""
    return b"".join(bytes.fromhex(name[at : at + 16])[::-1] for at in range(0, 64, 16))


def file_records(name, terms, sha256, flags=3 << 30):
    entries = b"".join(swapped(xorb) + struct.pack("<4I", 0, size, start, end) for xorb, start, end, size in terms)
    return (
        swapped(name)
        + struct.pack("<2I8x", flags, len(terms))
        + entries
        + bytes(48 * len(terms))
        + swapped(sha256)
        + bytes(16)
    )


def xorb_records(name, pieces):
    sizes = [len(piece) for piece in pieces]
    entries = [bytes(32) + struct.pack("<2I8x", sum(sizes[:i]), size) for i, size in enumerate(sizes)]
    return swapped(name) + struct.pack("<4I", 0, len(pieces), sum(sizes), 0) + b"".join(entries)


def shard(*files, xorbs=b"", header=SHARD_HEADER):
    return header + b"".join(files) + BOOKEND + xorbs + BOOKEND


def sha256_of(*pieces):
    return hashlib.sha256(b"".join(pieces)).hexdigest()


@pytest.fixture
def cas(tmp_path):
    return Cas(tmp_path / "cas")


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


TERMS = [(XORB, 2, 3, 8), (XORB, 0, 2, 8), (XORB, 0, 1, 5)]  # two!!!!!zero.onezero.
SHA256 = sha256_of(PIECES[2], *PIECES[:2], PIECES[0])


@pytest.fixture
def small(cas):
    assert cas.put_xorb(XORB, b"".join(chunk(piece) for piece in PIECES))
    cas.put_shard(shard(file_records(FILE, TERMS, SHA256), xorbs=xorb_records(XORB, PIECES)))
    return cas


def test_hashes_as_in_the_documentation():
    # The example of huggingface.co/docs/xet/api.
    assert text(bytes(range(32))) == "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"


def test_response_of_version_2(small):
    assert small.reconstruction(FILE, url="http://store/{}".format) == {
        "offset_into_first_range": 0,
        "terms": [
            {"hash": XORB, "unpacked_length": 8, "range": {"start": 2, "end": 3}},
            {"hash": XORB, "unpacked_length": 8, "range": {"start": 0, "end": 2}},
            {"hash": XORB, "unpacked_length": 5, "range": {"start": 0, "end": 1}},
        ],
        "xorbs": {
            XORB: [
                {
                    "url": f"http://store/{XORB}",
                    "ranges": [{"chunks": {"start": 0, "end": 3}, "bytes": {"start": 0, "end": 39}}],
                }
            ]
        },
    }


def test_response_of_version_1_for_a_range(small):
    assert small.reconstruction(FILE, (6, 9), 1, "http://store/{}".format) == {  # !!ze
        "offset_into_first_range": 6,
        "terms": [
            {"hash": XORB, "unpacked_length": 8, "range": {"start": 2, "end": 3}},
            {"hash": XORB, "unpacked_length": 5, "range": {"start": 0, "end": 1}},
        ],
        "fetch_info": {
            XORB: [
                {"url": f"http://store/{XORB}", "range": {"start": 0, "end": 1}, "url_range": {"start": 0, "end": 12}},
                {"url": f"http://store/{XORB}", "range": {"start": 2, "end": 3}, "url_range": {"start": 24, "end": 39}},
            ]
        },
    }


def test_ranges_at_the_edges_of_chunks_and_of_the_file(small):
    whole = b"two!!!!!zero.onezero."
    for start in range(len(whole) + 2):
        assert small.read_file(FILE, start) == whole[start:]
        for end in range(len(whole) + 2):
            assert small.read_file(FILE, start, end) == whole[start:end]
    for first, last, chunk in ((8, 12, 0), (13, 15, 1), (0, 7, 2)):  # neither the chunk before nor the one after
        answer = small.reconstruction(FILE, (first, last))
        span = {"start": chunk, "end": chunk + 1}
        assert answer["terms"] == [{"hash": XORB, "unpacked_length": last + 1 - first, "range": span}]
        assert answer["offset_into_first_range"] == 0
    assert small.reconstruction(FILE, (20, 999)) == small.reconstruction(FILE, (20, None))
    with pytest.raises(IndexError, match="Bytes 21 to 30 of a file of 21 bytes"):
        small.reconstruction(FILE, (21, 30))


def test_unknown_names(small):
    for ask in (small.reconstruction, small.read_xorb, small.read_file, small.file_of_sha256, small.size_of):
        for name in (OTHER, "../../etc/passwd"):
            with pytest.raises(KeyError):
                ask(name)


PACKED = pyarrow.compress(b"abc" * 100, codec="lz4", asbytes=True)
DAMAGED_XORBS = {
    "without chunks": (b"", "no chunks"),
    "with half a header": (chunk(b"abc") + b"\0\0\0", "header of a chunk"),
    "that ends too early": (chunk(b"abc")[:-1], "Chunk 0"),
    "of another version": (chunk(b"abc") + chunk(b"abc", version=1), "Chunk 1"),
    "of an unknown compression": (chunk(b"abc", scheme=3), "Chunk 0"),
    "of another length than it says": (chunk(b"abc", size=4), "3 bytes instead of 4"),
    "with an empty chunk": (chunk(b""), "0 bytes instead of 0"),
    "that is not compressed after all": (chunk(b"abc", scheme=LZ4), "LZ4 frame"),
    "compressed to another length": (chunk(PACKED, scheme=GROUPED_LZ4, size=299), "300 bytes instead of 299"),
}


@pytest.mark.parametrize(("body", "message"), DAMAGED_XORBS.values(), ids=DAMAGED_XORBS)
def test_damaged_xorb(cas, body, message):
    with pytest.raises(ValueError, match=message):
        cas.put_xorb(XORB, body)
    with pytest.raises(KeyError):
        cas.read_xorb(XORB)


@pytest.mark.parametrize("name", ["", "0A" * 32, "0a" * 31, "../" + "a" * 61, "0a" * 32 + "\n"])
def test_invalid_hash(cas, name):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        cas.put_xorb(name, chunk(b"abc"))


GOOD = file_records(FILE, TERMS, SHA256)
DAMAGED_SHARDS = {
    "nothing": (b"", "too early"),
    "another tag": (shard(GOOD, header=SHARD_HEADER.replace(b"Repo", b"repo")), "Not a shard"),
    "another version": (shard(GOOD, header=SHARD_HEADER[:32] + struct.pack("<2Q", 3, 0)), "Not a shard"),
    "a footer": (shard(GOOD, header=SHARD_HEADER[:40] + struct.pack("<Q", 200)), "Not a shard"),
    "more than a shard": (shard(GOOD) + bytes(48), "1 records follow"),
    "more terms than there are": (shard(GOOD[:36] + b"\xff" * 4 + GOOD[40:]), "too early"),
    "no verification": (shard(file_records(FILE, TERMS, SHA256, flags=1 << 30)), "verification"),
    "no SHA-256": (shard(file_records(FILE, TERMS, SHA256, flags=1 << 31)), "verification"),
    "wrong SHA-256": (shard(file_records(FILE, TERMS, "0d" * 32)), f"SHA-256 {SHA256} instead of {'0d' * 32}"),
    "a xorb that was never sent": (shard(file_records(FILE, [(OTHER, 0, 1, 5)], SHA256)), f"{OTHER}, which was never"),
    "a new xorb that was never sent": (shard(xorbs=xorb_records(OTHER, PIECES)), f"{OTHER}, which was never"),
    "another cut of the xorb": (shard(GOOD, xorbs=xorb_records(XORB, PIECES[::-1])), "other chunks"),
    "a chunk too many": (shard(file_records(FILE, [(XORB, 2, 4, 8)], SHA256)), "does not have"),
    "no chunk": (shard(file_records(FILE, [(XORB, 2, 2, 0)], sha256_of(b""))), "does not have"),
    "another size": (shard(file_records(FILE, [(XORB, 2, 3, 7)], sha256_of(PIECES[2]))), "does not have"),
    "one good file and one bad": (shard(GOOD, file_records(OTHER, TERMS, "0d" * 32)), f"File {OTHER}"),
}


@pytest.mark.parametrize(("body", "message"), DAMAGED_SHARDS.values(), ids=DAMAGED_SHARDS)
def test_damaged_shard(cas, body, message):
    cas.put_xorb(XORB, b"".join(chunk(piece) for piece in PIECES))
    with pytest.raises(ValueError, match=message):
        cas.put_shard(body)
    for ask in (cas.reconstruction, cas.size_of, cas.read_file):
        with pytest.raises(KeyError):
            ask(FILE)
    with pytest.raises(KeyError):
        cas.file_of_sha256(SHA256)


def test_uploading_twice(small):
    sent = small.read_xorb(XORB)
    again = b"".join(chunk(PACKED, LZ4, 300) for _ in range(3))
    assert not small.put_xorb(XORB, again)
    assert small.read_xorb(XORB) == sent == b"".join(chunk(piece) for piece in PIECES)
    assert small.read_xorb(XORB, 8, 13) == PIECES[0]
    assert small.read_xorb(XORB, 13, 8) == b""
    assert small.put_shard(shard(GOOD)) == [FILE]


def test_threads_share_a_store(cas):
    bodies = [chunk(noise(50_000, seed)) for seed in range(8)]
    names = [f"{seed:064x}" for seed in range(8)]

    def work(seed):
        new = cas.put_xorb(names[seed], bodies[seed])
        files = file_records(f"{seed + 100:064x}", [(names[seed], 0, 1, 50_000)], sha256_of(bodies[seed][8:]))
        cas.put_shard(shard(files))
        assert cas.read_xorb(names[seed]) == bodies[seed]
        assert cas.read_file(cas.file_of_sha256(sha256_of(bodies[seed][8:]))) == bodies[seed][8:]
        return new

    with ThreadPoolExecutor(16) as pool:
        new = list(pool.map(work, [seed for seed in range(8) for _ in range(8)]))
    assert sum(new) == 8


SAMPLES = {
    "nothing": b"",
    "noise": noise(100_000),
    "one byte over and over": b"a" * 100_000,
    "short period": b"abcdefg" * 10_000,
    "long literals, then a copy": noise(1000) + noise(1000),
    "text": " ".join(str(i) for i in range(30_000)).encode(),
    "several blocks": noise(3_000_000) + bytes(3_000_000),
}


@pytest.mark.parametrize("data", SAMPLES.values(), ids=SAMPLES)
def test_lz4_decodes_frames_of_another_program(data):
    assert lz4.decompress(pyarrow.compress(data, codec="lz4", asbytes=True)) == data


def test_lz4_refuses_damaged_frames():
    data = " ".join(str(i) for i in range(300)).encode()
    frame = pyarrow.compress(data, codec="lz4", asbytes=True)
    for end in range(len(frame)):
        with pytest.raises(ValueError, match="LZ4"):
            lz4.decompress(frame[:end])
    with pytest.raises(ValueError, match="instead of"):
        lz4.decompress(frame + b"\0")
    refused = []
    for flags in (b"\x64", b"\x68", b"\x70", b"\x61", b"\xa0"):
        with pytest.raises(ValueError, match="optional parts"):
            lz4.decompress(frame[:4] + flags + frame[5:])
    with pytest.raises(ValueError, match="optional parts"):
        lz4.decompress(b"\x05" + frame[1:])
    block = b"\x10a\x02\0\x10b"  # a, then four bytes from two back, then b
    with pytest.raises(ValueError, match="2 bytes back, where there are 1"):
        lz4.decompress(frame[:7] + bytes([len(block), 0, 0, 0]) + block + bytes(4))
    for at in range(7, len(frame)):
        try:
            assert lz4.decompress(frame[:at] + bytes([frame[at] ^ 0xFF]) + frame[at + 1 :]) != data
        except ValueError:  # the rest are other literals, and copies from elsewhere
            refused.append(at)
    assert refused
