"""Prompts for samples, taken from held-out text by a rule: beginnings of paragraphs, spread over the split."""

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from .blocks import TokenBlocks

PLACES = 64  # where paragraphs are looked for
LINES = 3
MIN_LENGTH, MAX_LENGTH = 40, 200  # characters
MAX_TOKENS = 64


def held_out_prompts(blocks: TokenBlocks, tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    """At most `count` prompts: the first lines of paragraphs that begin with a letter, as far apart as possible.

    Of text without paragraphs, the beginning of the split.
    """
    found = list(dict.fromkeys(_paragraphs(blocks, tokenizer)))
    if not found:
        return [str(tokenizer.decode(blocks.rows([0])[0, :16].tolist(), skip_special_tokens=True))]
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _paragraphs(blocks: TokenBlocks, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The beginning of the first suitable paragraph at each place."""
    places = min(PLACES, len(blocks))
    for place in range(places):
        ids = blocks.rows([place * len(blocks) // places])[0].tolist()
        document = ids[ids.index(tokenizer.eos_token_id) + 1 :] if tokenizer.eos_token_id in ids else ids
        for paragraph in str(tokenizer.decode(document)).split("\n\n")[1:-1]:
            prompt = "".join(paragraph.strip("\n").splitlines(keepends=True)[:LINES])
            if len(prompt) > MAX_LENGTH:  # prose without line breaks
                prompt = prompt[:MAX_LENGTH].rpartition(" ")[0]
            fits = len(prompt) >= MIN_LENGTH and len(tokenizer(prompt)["input_ids"]) <= MAX_TOKENS
            if fits and prompt[0].isalpha():
                yield prompt
                break
