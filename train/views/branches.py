"""Continuations of one text side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Branches:
    """Texts with a common beginning, and the place in one of them where the next token is chosen.

    Attributes:
        prompt_length: the number of tokens that all begin with.
        texts: the tokens of each, the beginning included.
        current: the text that is being written.
        at: the number of its tokens before the next choice.
    """

    prompt_length: int
    texts: tuple[tuple[int, ...], ...]
    current: int
    at: int

    @classmethod
    def of(cls, ids: Sequence[int]) -> "Branches":
        """One text that has only its beginning."""
        return cls(len(ids), (tuple(ids),), 0, len(ids))

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens before the next choice."""
        return self.texts[self.current][: self.at]

    def go(self, text: int, at: int) -> "Branches":
        """Choose again after the first `at` tokens of a text; not within the beginning.

        Raises:
            ValueError: there is no such place.
        """
        if not 0 <= text < len(self.texts) or not self.prompt_length <= at <= len(self.texts[text]):
            raise ValueError(f"there is no place {at} in text {text}.")
        return replace(self, current=text, at=at)

    def take(self, token: int) -> "Branches":
        """Go on with a token: at the end of a text, or else in a new text beside it."""
        if self.at == len(self.texts[self.current]):
            return self._with(self.current, (*self.ids, token))
        if self.texts[self.current][self.at] == token:
            return replace(self, at=self.at + 1)
        grown = (*self.ids, token)
        same = [number for number, text in enumerate(self.texts) if text[: len(grown)] == grown]
        if same:
            return replace(self, current=same[0], at=len(grown))
        return replace(self, texts=(*self.texts, grown), current=len(self.texts), at=len(grown))

    def cut(self) -> "Branches":
        """Delete what follows the place; a text that becomes the beginning of another one goes."""
        return self._with(self.current, self.ids)

    def _with(self, number: int, text: tuple[int, ...]) -> "Branches":
        others = [other for i, other in enumerate(self.texts) if i != number]
        same = [other for other in others if other[: len(text)] == text]
        if same:  # it has become a part of another
            texts = tuple(others)
            return replace(self, texts=texts, current=texts.index(same[0]), at=len(text))
        texts = (*self.texts[:number], text, *self.texts[number + 1 :])
        return replace(self, texts=texts, current=number, at=len(text))
