"""Whether two tokenizers give each token the same id. A model with another tokenizer reads and writes nonsense.

Prepared data is compared more strictly, by its whole tokenizer.json (`tokenizer_sha256` in data/tokens.py): how text is
split matters there too.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ..settings.json_files import DamagedFileError, read_json
from ..settings.run_folder import TOKENIZER_FILE, TRAINING_FILE


def vocabulary_sha256(ids: Mapping[str, int]) -> str:
    """The hash of all tokens and their ids."""
    return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()


def vocabulary_in(folder: Path) -> str | None:
    """`vocabulary_sha256` of the tokenizer.json in a folder; None if there is none.

    Raises:
        DamagedFileError: the file is not a tokenizer.
    """
    path = folder / TOKENIZER_FILE
    if not path.exists():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a plain Exception
        raise DamagedFileError(f"{path} is damaged: {' '.join(str(error).split())}.") from None
    return vocabulary_sha256(tokenizer.get_vocab())


def num_different_ids(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> int:
    """The number of tokens of `other` that `tokenizer` lacks, or to which it gives another id."""
    ids = tokenizer.get_vocab()
    return sum(ids.get(token) != number for token, number in other.get_vocab().items())


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
    if expected and vocabulary_in(folder) not in (expected, None):
        raise ValueError(
            f"{place}: {TOKENIZER_FILE} has other tokens or ids than the tokenizer that the model was trained with: it "
            "is another model's tokenizer. Copy the right one back into the folder."
        )
