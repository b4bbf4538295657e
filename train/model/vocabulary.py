"""The identity of a tokenizer: the ids of its tokens. A model with another one reads and writes nonsense."""

import hashlib
import json
from pathlib import Path

from ..settings.json_files import read_json
from ..settings.run_folder import TOKENIZER_FILE, TRAINING_FILE


def vocabulary_sha256(folder: Path) -> str | None:
    """The hash of all tokens and ids in a tokenizer.json; None if the folder has none.

    Raises:
        DamagedFileError: the file is not a tokenizer.
    """
    path = folder / TOKENIZER_FILE
    if not path.exists():
        return None
    tokenizer = read_json(path, {"model": dict, "added_tokens?": [{"id": int, "content": str}]})
    vocabulary = tokenizer["model"].get("vocab")
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    if isinstance(vocabulary, dict):  # BPE, WordPiece, word level: added tokens may be part of it
        vocabulary, added = vocabulary | added, {}
    return hashlib.sha256(json.dumps([vocabulary, added], sort_keys=True).encode()).hexdigest()


def check_tokenizer(place: str, folder: Path) -> None:
    """Refuse a model folder whose tokenizer is not the one that the model was trained with, as its record says.

    Args:
        place: the option and its value, for the error message.

    Raises:
        ValueError: the file.
    """
    record = folder / TRAINING_FILE
    if not record.exists():
        return
    expected = read_json(record, {"tokenizer_sha256?": str | None}).get("tokenizer_sha256")
    if expected and vocabulary_sha256(folder) not in (expected, None):
        raise ValueError(
            f"{place}: {TOKENIZER_FILE} has other tokens or ids than the tokenizer that the model was trained with: it "
            "is another model's tokenizer. Copy the right one back into the folder."
        )
