"""Find out which format a tokenizer has, and open it."""

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from hf_scratch_gpt.tokenization_scratch_gpt import SETTINGS, ScratchGPTTokenizer

from .gpt2 import PAIRS, files_in, read_gpt2
from .rank_files import is_rank_file, pattern_of, read_rank_file
from .sentencepiece_models import read_sentencepiece
from .wrapped import ROLES, wrapped

FORMATS = (
    "tokenizer.json, vocab.json with merges.txt (or encoder.json with vocab.bpe), a rank file of tiktoken, or a .model "
    "of sentencepiece"
)
JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"


def is_tokenizer(place: str | Path) -> bool:
    """Whether there is a file, or a folder with the files, of a format that `open_tokenizer` reads."""
    path = Path(place)
    return path.is_file() or bool(path.is_dir() and _found_in(path))


def open_tokenizer(
    place: str | Path, *, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
) -> ScratchGPTTokenizer:
    """Open a tokenizer of any format as a fast tokenizer: `save_pretrained` writes its tokenizer.json.

    A folder with tokenizer_config.json is opened by the transformers class that the file names.

    Args:
        place: a file (`FORMATS`), or a folder with one.
        pattern: how a rank file splits text into words: gpt2, r50k_base, p50k_base, cl100k_base, o200k_base, llama3, or
            a regular expression. None: as the name of the file says. Also for vocab.json, instead of GPT-2's.
        special_tokens: the special tokens of a rank file and their ids; None: those of the original file.

    Raises:
        ValueError: no such tokenizer, a damaged one, or an argument that has no effect on its format.
        ImportError: a library for the format is not installed.
    """
    path = _file_of(Path(place))
    is_ranks = path.suffix in (".tiktoken", ".model") and is_rank_file(path)
    if special_tokens is not None and not is_ranks:
        raise ValueError(f"{place} is no rank file of tiktoken: special_tokens has no effect on it.")
    if is_ranks:
        return read_rank_file(path, pattern, special_tokens)
    if path.suffix == ".tiktoken":
        raise ValueError(f"{path} is not a rank file: its first line is not a token in base64 and its rank.")
    if pair := _pair_of(path):
        return read_gpt2(*pair, pattern and pattern_of(pattern))
    if pattern is not None:
        raise ValueError(f"{place} contains how it splits text: a pattern ({pattern}) has no effect on it.")
    if path.is_dir():
        return _by_transformers(path)
    return read_sentencepiece(path) if path.suffix == ".model" else _read_json(path)


def _file_of(path: Path) -> Path:
    """The file that determines the tokenizer; a folder that transformers opens itself stays one.

    Raises:
        ValueError: there is none, or more than one.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: give {FORMATS}.")
    if path.is_file():
        if path.suffix not in (".json", ".txt", ".bpe", ".tiktoken", ".model"):
            raise ValueError(f"{path} is not a tokenizer: give {FORMATS}.")
        return path
    found = _found_in(path)
    if not found:
        raise ValueError(f"{path} has no tokenizer: it must contain {FORMATS}.")
    if len(found) > 1:
        raise ValueError(f"{path} has several tokenizers ({', '.join(p.name for p in found)}): give one of the files.")
    return found[0]


def _found_in(folder: Path) -> list[Path]:
    has_json = (folder / JSON).exists()
    if (folder / CONFIG).exists() and (has_json or _class_of(folder)):
        return [folder]
    if has_json:
        return [folder / JSON]
    if pair := files_in(folder):
        return [pair[0]]
    return sorted([*folder.glob("*.tiktoken"), *folder.glob("*.model")])


def _class_of(folder: Path) -> str | None:
    """The class that tokenizer_config.json names, if transformers has the files for it."""
    try:
        name = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("tokenizer_class")
    except (ValueError, AttributeError):
        raise ValueError(f"{folder / CONFIG} is not valid JSON: copy or download it again.") from None
    return name if files_in(folder) or any(folder.glob("*.model")) else None


def _pair_of(path: Path) -> tuple[Path, Path] | None:
    """The vocabulary and merges of which `path` is one."""
    for vocabulary, merges in PAIRS:
        if path.name in (vocabulary, merges):
            return files_in(path.parent)
    return None


def _by_transformers(folder: Path) -> ScratchGPTTokenizer:
    if (folder / JSON).exists():
        tokenizer: ScratchGPTTokenizer = ScratchGPTTokenizer.from_pretrained(folder)
        return tokenizer
    opened = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(opened, TokenizersBackend):
        raise ValueError(f"{folder}: {type(opened).__name__} has no fast version, so it cannot be used for training.")
    roles = {role: getattr(opened, role) for role in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return ScratchGPTTokenizer(
        tokenizer_object=opened.backend_tokenizer,
        extra_special_tokens=[token for token in opened.all_special_tokens if token not in roles.values()],
        chat_template=opened.chat_template,
        model_max_length=opened.model_max_length,
        padding_side=SETTINGS["padding_side"],
        clean_up_tokenization_spaces=False,
        **roles,
    )


def _read_json(path: Path) -> ScratchGPTTokenizer:
    """A tokenizer.json alone: it says which tokens are special, but not what for."""
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a plain Exception
        raise ValueError(f"{path} is not a tokenizer.json, or damaged: {' '.join(str(error).split())}.") from None
    special = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items()) if token.special]
    if not {*special} & {*ROLES["eos_token"]}:
        shown = ", ".join(special[:8]) or "none"
        raise ValueError(
            f"{path} has no special token known to end a text ({', '.join(ROLES['eos_token'])}; it has {shown}). "
            f'Name it in a {CONFIG} beside it, as {{"eos_token": "..."}}.'
        )
    return wrapped(backend, special)
