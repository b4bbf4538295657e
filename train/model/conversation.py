"""A conversation with a model, kept within the tokens that it reads."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ..data.plain_text import Message, prompt_ids

DEFAULT_NEW_TOKENS = 128  # of an answer


@dataclass
class Conversation:
    """The messages so far, which are kept within the tokens that the model reads.

    Attributes:
        limit: of the tokens of an answer; None: what is left, up to DEFAULT_NEW_TOKENS.
    """

    tokenizer: PreTrainedTokenizerBase
    system: list[Message]
    positions: int
    limit: int | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """All messages that the model sees."""
        return [*self.system, *self.turns]

    def add_question(self, text: str) -> int:
        """Add a question, and drop the oldest questions and answers until it fits; returns their number.

        Raises:
            ValueError: the question alone is too long. Then nothing has changed.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        num_dropped = 0
        while self.count(turns) + (kept := self.limit_of_answer(is_last=len(turns) == 1)) > self.positions:
            if len(turns) == 1:
                raise ValueError(
                    f"this message is too long: it takes {self.count(turns):,} tokens, but the model reads "
                    f"{self.positions:,}, of which {kept} are kept for the answer. Shorten it."
                )
            turns = turns[2:]
            num_dropped += 1
        self.turns = turns
        return num_dropped

    def count(self, turns: list[Message]) -> int:
        """The number of tokens up to the next answer."""
        return len(prompt_ids(self.tokenizer, [*self.system, *turns]))

    def limit_of_answer(self, is_last: bool) -> int:
        """The tokens to keep free for an answer: less by default if only one question is left."""
        if self.limit is not None:
            return self.limit
        return min(DEFAULT_NEW_TOKENS, self.positions // (8 if is_last else 2))

    @property
    def room(self) -> int:
        """The maximum number of tokens of the next answer."""
        return min(self.limit or DEFAULT_NEW_TOKENS, self.positions - self.count(self.turns))
