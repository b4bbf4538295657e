"""Decoder of LZ4 frames as hf_xet writes them: https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md."""

MAGIC = bytes.fromhex("04224d18")
HEADER = 7  # bytes: magic, flags, size of a block, checksum of the header


def decompress(frame: bytes) -> bytearray:
    """The content of a frame.

    Raises:
        ValueError: the frame is damaged, or has an optional checksum or size.
    """
    if frame[:4] != MAGIC or frame[4:5] not in (b"\x40", b"\x60"):  # with dependent or independent blocks
        raise ValueError(f"An LZ4 frame without optional parts does not begin with {frame[:HEADER].hex()}.")
    out = bytearray()
    at = HEADER
    while size := int.from_bytes(frame[at : at + 4], "little"):
        block = frame[at + 4 : (at := at + 4 + (size & 0x7FFFFFFF))]
        if size >> 31:  # a block that is not compressed
            out += block
        else:
            _append(block, out)
    if at + 4 != len(frame):  # the zero that ended the loop
        raise ValueError(f"The LZ4 frame has {len(frame)} bytes instead of {at + 4}.")
    return out


def _append(block: bytes, out: bytearray) -> None:
    """Unpacks sequences of literals and of copies from `out`; the last one has literals only."""
    at = 0
    try:
        while True:
            token = block[at]
            length, at = _length(block, at + 1, token >> 4)
            out += block[at : (at := at + length)]
            if at == len(block):
                return
            offset = block[at] | block[at + 1] << 8
            length, at = _length(block, at + 2, token & 15)
            length += 4  # no copy is shorter
            if not 0 < offset <= len(out):
                raise ValueError(f"An LZ4 block copies from {offset} bytes back, where there are {len(out)}.")
            repeated = out[-offset:][:length]
            out += repeated if offset >= length else (repeated * (length // offset + 1))[:length]
    except IndexError:
        raise ValueError("An LZ4 block ends too early.") from None


def _length(block: bytes, at: int, length: int) -> tuple[int, int]:
    """A length of four bits, and the next position: after 15 and after each 255, a further byte is added."""
    more = 255 if length == 15 else 0
    while more == 255:
        more = block[at]
        length += more
        at += 1
    return length, at
