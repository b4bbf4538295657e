"""Encode texts word by word: each distinct word once.

A tokenizer cuts a text into words and encodes each word on its own, and a text repeats its words. Here numpy cuts a
million characters at once by the rules of SPLIT_PATTERN, Arrow finds the distinct words, and the tokenizer encodes
those that it has not encoded before. The ids are those of the tokenizer.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow
from tokenizers import Encoding, Regex, Tokenizer, normalizers
from tokenizers.models import BPE

from hf_scratch_gpt.tokenization_scratch_gpt import BATCH_LENGTH, ScratchGPTTokenizer, has_our_words, text_pieces
from hf_scratch_gpt.tokenizer_types import has_characters

CACHE_SIZE = 1 << 26  # bytes of words and their ids, about
GROUP_SIZE = 256  # words
MAX_NEW = 0.5  # of a text: if more than this consists of new words, few will occur again
ENTRY_SIZE = 200  # bytes that a dictionary needs for a word, besides its characters and ids

# Texts become an array of code points, in which two other numbers mark ends.
END_OF_PIECE, END_OF_TEXT = 0x110000, 0x110001
PIECE_MARK, TEXT_MARK = (end.to_bytes(4, "little") for end in (END_OF_PIECE, END_OF_TEXT))

Piece = tuple[str, bytes]  # with the mark of its end

# The kinds of characters in SPLIT_PATTERN.
LETTER, NUMBER, LINE_END, BLANK, OTHER, END = range(1, 7)
CLASSES = {  # a character of each kind -> its class
    "a": r"\p{L}",
    "1": r"\p{N}",
    "\n": r"[\r\n]",
    " ": r"[^\S\r\n]",
    ".": r"[^\s\p{L}\p{N}]",
}
SPACE, APOSTROPHE = ord(" "), ord("'")
CONTRACTIONS = ("s", "t", "re", "ve", "m", "ll", "d")  # after an apostrophe, also in capitals


Cutter = Callable[[np.ndarray], np.ndarray]  # from code points to the places where words and marks begin


class WordEncoder:
    """Encodes texts as one stream of ids, with end-of-text after each text.

    Apart from the ids, memory grows neither with the length of a text nor with the number of calls.
    """

    def __init__(self, tokenizer: ScratchGPTTokenizer, starts_of: Cutter) -> None:
        self.tokenizer, self.starts_of = tokenizer, starts_of
        self._ends = {PIECE_MARK: b"", TEXT_MARK: np.array([tokenizer.eos_token_id], np.int32).tobytes()}
        self._ids, self._size = dict(self._ends), 0  # of words in UTF-32

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The ids of all texts.

        Raises:
            ValueError: a text contains a lone surrogate, or a character without a token.
        """
        try:
            return np.concatenate([self._encode(batch) for batch in _batches(texts)])
        except Exception:
            self.tokenizer.encode_texts(texts)  # says which character is the reason
            raise

    def _encode(self, pieces: Sequence[Piece]) -> np.ndarray:
        if self._size > CACHE_SIZE:
            self._ids, self._size = dict(self._ends), 0
        text = b"".join(part for piece, mark in pieces for part in (piece.encode("utf-32-le"), mark))
        words = _slices(text, self.starts_of(np.frombuffer(text, "<u4"))).dictionary_encode()
        distinct = words.dictionary.to_pylist()
        new = [word for word in distinct if word not in self._ids]
        if sum(map(len, new)) > MAX_NEW * len(text):
            return self._encode_whole(pieces)
        self._learn(new)
        ids = pyarrow.array([self._ids[word] for word in distinct], pyarrow.binary())
        return np.frombuffer(ids.take(words.indices).buffers()[2], np.int32)

    def _encode_whole(self, pieces: Sequence[Piece]) -> np.ndarray:
        backend = self.tokenizer.plain_backend()
        encodings = backend.encode_batch_fast([piece for piece, _ in pieces], add_special_tokens=False)
        parts = zip((encoding.ids for encoding in encodings), (self._ends[mark] for _, mark in pieces), strict=True)
        return np.frombuffer(b"".join(np.array(ids, np.int32).tobytes() + end for ids, end in parts), np.int32)

    def _learn(self, words: Sequence[bytes]) -> None:
        """Encode words, in groups: the library takes much longer for a text than for a word in it."""
        texts = [word.decode("utf-32-le") for word in words]
        groups = [texts[first : first + GROUP_SIZE] for first in range(0, len(texts), GROUP_SIZE)]
        backend = self.tokenizer.plain_backend()
        encodings = backend.encode_batch(groups, is_pretokenized=True, add_special_tokens=False)
        ids_of_groups = map(_ids_of_words, encodings, map(len, groups))
        for word, ids in zip(words, itertools.chain.from_iterable(ids_of_groups), strict=True):
            self._ids[word] = ids
            self._size += len(word) + len(ids) + ENTRY_SIZE


def _ids_of_words(encoding: Encoding, count: int) -> Iterator[bytes]:
    """The ids of each of the `count` words of an encoding."""
    lengths = np.bincount(np.array(encoding.word_ids, np.int64), minlength=count)
    ids = np.array(encoding.ids, np.int32).tobytes()
    for first, last in itertools.pairwise([0, *(4 * np.cumsum(lengths)).tolist()]):
        yield ids[first:last]


def _batches(texts: Iterable[str]) -> Iterator[list[Piece]]:
    """The pieces of the texts, in lists of about BATCH_LENGTH characters."""
    batch: list[Piece] = []
    length = 0
    for text in texts:
        pieces = ((piece, PIECE_MARK) for piece in text_pieces(text))
        for piece, mark in itertools.chain(pieces, [("", TEXT_MARK)]):
            batch.append((piece, mark))
            length += len(piece)
            if length >= BATCH_LENGTH:
                yield batch
                batch, length = [], 0
    if batch:
        yield batch


def _slices(text: bytes, starts: np.ndarray) -> pyarrow.BinaryArray:
    """The text, cut into slices that begin at these code points of UTF-32."""
    offsets = np.append(4 * starts, len(text)).astype(np.int32)
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(text)]
    return pyarrow.Array.from_buffers(pyarrow.binary(), len(starts), buffers)


# Cutting
def cutter_for(backend: Tokenizer) -> Cutter | None:
    """The function that cuts text into the words of a tokenizer, if there is one."""
    is_random = isinstance(backend.model, BPE) and backend.model.dropout
    has_other_words = any(not token.special for token in backend.get_added_tokens_decoder().values())
    if is_random or has_other_words:
        return None
    if has_our_words(backend):
        return word_starts
    return _all_places if has_characters(backend) else None


def _all_places(codes: np.ndarray) -> np.ndarray:
    return np.arange(len(codes))


def word_starts(codes: np.ndarray) -> np.ndarray:
    """Where the words of SPLIT_PATTERN and the marks of ends begin in an array of code points that ends with a mark."""
    kinds = _kinds_of(codes)
    is_start = (kinds == NUMBER) | (kinds == END)
    # runs of characters of the same kind
    first = np.append(0, np.flatnonzero(kinds[1:] != kinds[:-1]) + 1)
    last = np.append(first[1:], len(codes)) - 1
    kind = kinds[first]
    before, after = _shifted(kind, 1), _shifted(kind, -1)
    # `\s*[\r\n]+`, but line ends after punctuation belong to it
    continues = (kind == LINE_END) & ((before == BLANK) | (before == OTHER))
    continues |= (kind == BLANK) & (before == LINE_END) & (after == LINE_END) & (_shifted(before, 1) != OTHER)
    # ` ?[^\s\p{L}\p{N}]+`
    continues |= (kind == OTHER) & (before == BLANK) & (codes[first - 1] == SPACE)
    # `[^\r\n\p{L}\p{N}]?\p{L}+`
    is_single = (kind == OTHER) & (first == last) & ~continues
    continues |= (kind == LETTER) & ((before == BLANK) | _shifted(is_single, 1))
    is_start[first[~continues]] = True
    # `\s+(?!\S)` leaves the last blank to the word after it
    is_start[last[(kind == BLANK) & (after != LINE_END) & (after != END)]] = True
    apostrophes = first[is_single & (after == LETTER) & (codes[first] == APOSTROPHE)]
    is_start[_ends_of_contractions(codes, apostrophes)] = True
    return np.flatnonzero(is_start)


def _ends_of_contractions(codes: np.ndarray, apostrophes: np.ndarray) -> np.ndarray:
    ends = []
    for letters in CONTRACTIONS:
        places = apostrophes
        for number, letter in enumerate(letters, start=1):
            code = codes[places + number]
            places = places[(code == ord(letter)) | (code == ord(letter.upper()))]
        ends.append(places + len(letters) + 1)
    return np.concatenate(ends)


def _shifted(values: np.ndarray, distance: int) -> np.ndarray:
    """The values `distance` places before, and 0 where there is none."""
    result = np.zeros_like(values)
    if distance > 0:
        result[distance:] = values[:-distance]
    else:
        result[:distance] = values[-distance:]
    return result


def _kinds_of(codes: np.ndarray) -> np.ndarray:
    """The kind of each character, from the library that cuts otherwise: so both have the same version of Unicode."""
    is_new = _KINDS[codes] == 0
    if is_new.any():
        new = np.unique(codes[is_new])
        signs = _TO_SIGNS.normalize_str(new.tobytes().decode("utf-32-le"))
        _KINDS[new] = [_KIND_OF_SIGN[sign] for sign in signs]
    kinds: np.ndarray = _KINDS[codes]
    return kinds


_KINDS = np.zeros(END_OF_TEXT + 1, np.uint8)  # of each code point; 0 if it has not occurred yet
_KINDS[[END_OF_PIECE, END_OF_TEXT]] = END
_TO_SIGNS = normalizers.Sequence([normalizers.Replace(Regex(found), sign) for sign, found in CLASSES.items()])
_KIND_OF_SIGN = dict(zip(CLASSES, (LETTER, NUMBER, LINE_END, BLANK, OTHER), strict=True))
