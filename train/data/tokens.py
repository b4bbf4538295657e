"""Encode documents as one stream of token ids."""

import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_scratch_gpt.tokenization_scratch_gpt import BATCH_LENGTH, ScratchGPTTokenizer
from hf_scratch_gpt.tokenizer_formats import changed_by, is_tokenizer, open_tokenizer

from .corpora import Document
from .words import WordEncoder, cutter_for


def load_data_tokenizer(place: str, path: Path, pattern: str | None = None) -> ScratchGPTTokenizer:
    """Load the tokenizer of a folder or of a file of another library, whatever its class.

    Args:
        place: the option and its value, for error messages, such as "--tokenizer runs/tokenizer".
        pattern: how a rank file of tiktoken splits text into words.

    Raises:
        ValueError: there is no tokenizer, it is damaged, or it has no end-of-text token.
    """
    if not is_tokenizer(path):
        raise ValueError(f"{place} has no tokenizer.json: write one with scratch-gpt train_tokenizer.")
    try:
        tokenizer = open_tokenizer(path, pattern=pattern)
    except (ValueError, ImportError) as error:  # an ImportError names the extra to install
        raise ValueError(f"{place}: {error}") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{place} has no eos_token, which marks the end of a document: use another one.")
    return tokenizer


def warn_of_changes(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say on stderr what a tokenizer changes in a text, so that a model trained with it never writes it."""
    if changed := changed_by(tokenizer):
        print(
            f"note: --tokenizer {name} does not restore every text. It changes {', '.join(changed)}.", file=sys.stderr
        )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """`save_pretrained`, with the errors of the system as such.

    Raises:
        OSError: the disk is full, or the place cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # tokenizers has no exception class for "No space left on device (os error 28)"
        if type(error) is Exception and (found := re.search(r"\(os error (\d+)\)", str(error))):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) from None
        raise


def tokenizer_sha256(tokenizer_json: str) -> str:
    """The hash of a tokenizer.json, independent of white space and the order of keys."""
    canonical = json.dumps(json.loads(tokenizer_json), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def token_stream(documents: Iterable[Document], tokenizer: ScratchGPTTokenizer) -> Iterator[np.ndarray]:
    """The ids of all documents, each followed by end-of-text, in chunks of about BATCH_LENGTH characters.

    Text that looks like a special token is encoded as text: only the end of a document gives an end-of-text id.
    """
    starts_of = cutter_for(tokenizer.backend_tokenizer)
    encode = WordEncoder(tokenizer, starts_of).encode if starts_of else functools.partial(_with_ends, tokenizer)
    texts: list[str] = []
    length = 0
    for document in documents:
        texts.append(document.text)
        length += len(document.text)
        if length >= BATCH_LENGTH:
            yield encode(texts)
            texts, length = [], 0
    if texts:
        yield encode(texts)


def _with_ends(tokenizer: ScratchGPTTokenizer, texts: list[str]) -> np.ndarray:
    end_of_text = np.array([tokenizer.eos_token_id], np.int32)
    return np.concatenate([part for ids in tokenizer.encode_texts(texts) for part in (ids, end_of_text)])
