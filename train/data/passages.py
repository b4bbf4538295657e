"""Passages of one long text that are held out: spread over all of it, because its end often differs from the rest."""

NUM_PASSAGES = 10
SHORTEST_PASSAGE = 2000  # characters; a shorter text has fewer passages
BREAKS = ("\n\n", "\n", " ")  # where a text is cut, the first choice first
LARGEST_SHIFT = 1000  # characters to the nearest of them


def held_out_passages(text: str, fraction: float) -> list[tuple[int, int]]:
    """The beginning and end of each passage, in characters.

    The text is divided into equal sections. In the middle of each, `fraction` of it is held out, from one paragraph
    (or line, or word) to another.
    """
    count = max(1, min(NUM_PASSAGES, int(len(text) * fraction / SHORTEST_PASSAGE)))
    section = len(text) / count
    edges = [
        round((number + side) * section) for number in range(count) for side in ((1 - fraction) / 2, (1 + fraction) / 2)
    ]
    limits = [*edges[1:], len(text)]
    edges = [_break_after(text, edge, (limit - edge) // 2) for edge, limit in zip(edges, limits, strict=True)]
    return [(first, last) for first, last in zip(edges[::2], edges[1::2], strict=True) if first < last]


def _break_after(text: str, place: int, largest_shift: int) -> int:
    limit = place + min(LARGEST_SHIFT, largest_shift)
    for mark in BREAKS:
        found = text.find(mark, place, limit)
        if found >= 0:
            return found + len(mark)
    return place
