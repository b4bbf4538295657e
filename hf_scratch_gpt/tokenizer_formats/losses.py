"""Which texts a tokenizer does not restore."""

from transformers import PreTrainedTokenizerBase

# what a text may contain, and a text with it
PROBES = {
    "spaces at the beginning": "  a b",
    "spaces at the end": "a b  ",
    "several spaces in a row": "a  b   c",
    "line breaks and tabs": "a\n\n\tb\n",
    "capital letters": "A bCd",
    "accents": "na\u00efve caf\u00e9",
    "compatibility characters such as \u210c, \ufb01 and \uff11": "\u210c \ufb01 \uff11",
    "combining marks": "e\u0301 n\u0303",
    "control characters": "a\x00b\x1bc",
    "rare characters": "\U00013080 \ua66e \U0001f9ff",
    "the sign \u2581": "a\u2581b",
    "spaces before punctuation": "a , b . c ! n't",
}


def changed_by(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the tokenizer changes in a text or loses, in words; empty if it restores any text, as far as known."""
    changed = []
    for name, text in PROBES.items():
        try:
            ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        except Exception:  # a character without a token: refused, and so not lost silently
            continue
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
            changed.append(name)
    return changed
