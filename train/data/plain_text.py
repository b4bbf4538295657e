"""Encode text from people: what looks like a control token stays text.

A tokenizer turns "<|end|>" in a prompt into the id that ends a turn, so whoever writes it could speak for others.
"""

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

PRIVATE_USE = range(0xE000, 0xF8FF)  # characters without meaning
Message = dict[str, Any]  # role and content; "weight": 0 if the answer is not to be learned


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text, without control tokens.

    Raises:
        ValueError: the vocabulary lacks a part of the text, or the text is not valid Unicode.
    """
    return encode_texts(tokenizer, [text], add_special_tokens=False)[0]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool = True
) -> list[list[int]]:
    """The ids of each text; control tokens are only those that the tokenizer adds itself.

    Raises:
        ValueError: the vocabulary lacks a part of a text, or a text is not valid Unicode.
    """
    try:
        output: Any = tokenizer(
            list(texts), add_special_tokens=add_special_tokens, split_special_tokens=True, verbose=False
        )
    except ValueError:
        raise
    except Exception as error:  # tokenizers has no exception class for a character that the vocabulary lacks
        shown = f" {texts[0]!r:.40}" if len(texts) == 1 else ""
        raise ValueError(f"the tokenizer cannot encode the text{shown} ({error}).") from None
    ids: list[list[int]] = output["input_ids"]
    return ids


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """The ids of a conversation up to where the assistant answers.

    Only the chat template writes control tokens: those in a message stay text.

    Raises:
        ValueError: the template refuses the conversation, or the vocabulary lacks a part of it.
    """
    pattern = re.compile("|".join(map(re.escape, control_tokens(tokenizer))) or "(?!)")
    contents = [message["content"] for message in messages]
    written = {token for content in contents for token in pattern.findall(content)}
    if not written:
        return list(_apply_template(tokenizer, messages, tokenize=True))
    unused = (sign for sign in map(chr, PRIVATE_USE) if not any(sign in content for content in contents))
    signs = dict(zip(sorted(written), unused, strict=False))
    tokens = str.maketrans({sign: token for token, sign in signs.items()})
    hidden = [message | {"content": pattern.sub(lambda m: signs[m[0]], message["content"])} for message in messages]
    text = _apply_template(tokenizer, hidden, tokenize=False)
    ids: list[int] = []
    for part in re.split(f"({pattern.pattern})", text):
        if pattern.fullmatch(part):
            number: Any = tokenizer.convert_tokens_to_ids(part)
            ids.append(int(number))
        elif part:
            ids += plain_ids(tokenizer, part.translate(tokens))
    return ids


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of all special tokens, longest first."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({token for token in (*tokenizer.all_special_tokens, *added) if token}, key=lambda t: (-len(t), t))


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tokenize: bool) -> Any:
    try:
        output: Any = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=tokenize,
            return_dict=tokenize,
            tokenizer_kwargs={"verbose": False},
        )
    except ValueError:
        raise
    except Exception as error:  # from the template, or from tokenizers, which has no exception class for this
        raise ValueError(f"the chat template cannot encode the conversation ({error}).") from None
    return list(output["input_ids"]) if tokenize else output
