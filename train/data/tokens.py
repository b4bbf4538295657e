"""TODO."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from hf_scratch_gpt.tokenization_scratch_gpt import BATCH_LENGTH, ScratchGPTTokenizer

from .corpora import Document


def load_data_tokenizer(name: str) -> ScratchGPTTokenizer:
    """The tokenizer of a folder or of the Hub, whatever class saved it.

    Raises:
        ValueError: the folder holds none, or it has no end-of-text token.
    """
    folder = Path(name)
    if (folder.exists() or name.startswith((".", "/"))) and not (folder / "tokenizer.json").exists():
        raise ValueError(f"--tokenizer {name} holds no tokenizer.json: write one with scratch-gpt train_tokenizer.")
    tokenizer = ScratchGPTTokenizer.from_pretrained(name)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"--tokenizer {name} has no eos_token: nothing could mark the end of a document.")
    return tokenizer


def token_stream(documents: Iterable[Document], tokenizer: ScratchGPTTokenizer) -> Iterator[np.ndarray]:
    """The ids of all documents, end-of-text behind each, in chunks of about BATCH_LENGTH characters.

    Text that looks like a special token stays text: only the end of a document makes an end-of-text id.
    """
    texts: list[str] = []
    for document in documents:
        texts.append(document.text)
        if sum(map(len, texts)) >= BATCH_LENGTH:
            yield _encode(tokenizer, texts)
            texts = []
    if texts:
        yield _encode(tokenizer, texts)


def _encode(tokenizer: ScratchGPTTokenizer, texts: list[str]) -> np.ndarray:
    end_of_text = np.array([tokenizer.eos_token_id], np.int32)
    return np.concatenate([part for ids in tokenizer.encode_texts(texts) for part in (ids, end_of_text)])
