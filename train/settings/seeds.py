"""Random seeds: every random choice of a run derives from its one seed."""

import hashlib


def seed_at(seed: int, *place: int | str) -> int:
    """The random seed for a place such as (step, micro-batch), independent of those for other places."""
    text = "/".join(str(part) for part in (seed, *place))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1  # torch takes 63 bits
