"""The models of the page: which there are, and those that are open."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase
from transformers.models.auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from ..checkpoint.find import checkpoint_paths
from ..data.plain_text import plain_ids
from ..model.adapters import is_classifier as is_classifier_adapter
from ..model.find import find_model
from ..model.generation import check_outputs, encode_prompt, max_positions
from ..model.hints import is_run
from ..model.inference import load_found
from ..model.load import CLASSIFIER_SUFFIX, load_config
from ..settings.run_folder import ADAPTER_CONFIG_FILE, CONFIG_FILE
from ..views.heads import HeadWord, head_words
from ..views.inside import Inside, look_inside
from ..views.tokens import Piece, pieces

INSIDE_TOKENS = 256  # of a text that is looked into
OPEN_MODELS = 2  # at the same time
REMEMBERED = 8  # texts of a model
BYTES_PER_TOKEN = 64  # a longer text is refused before it is encoded


@dataclass
class OpenModel:
    """A model that is loaded, with the texts that were looked into last."""

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    is_classifier: bool
    max_prompt_tokens: int
    seen: "OrderedDict[tuple[int, ...], Inside]" = field(default_factory=OrderedDict)
    words: list[HeadWord] | None = None

    @property
    def positions(self) -> int:
        """The number of tokens that the model reads."""
        return max_positions(self.model)

    def pieces(self, ids: Sequence[int]) -> list[Piece]:
        """The tokens with these ids."""
        return pieces(self.tokenizer, ids)

    def ids(self, text: str, limit: int | None = None) -> list[int]:
        """The tokens of a text; an empty one begins a text.

        Args:
            limit: of tokens (default: that of prompts).

        Raises:
            ValueError: the text is too long, or cannot be encoded.
        """
        limit = limit or self.max_prompt_tokens
        if len(text) > limit * BYTES_PER_TOKEN:
            raise ValueError(f"This text has {len(text):,} characters; the limit is {limit:,} tokens: shorten it.")
        ids = encode_prompt(self.tokenizer, text)
        if len(ids) > limit:
            raise ValueError(f"This text has {len(ids):,} tokens; the limit is {limit:,}: shorten it.")
        return ids

    def inside(self, text: str) -> Inside:
        """The inside of the model for a text.

        Raises:
            ValueError: the text is empty or too long, or the model is a classifier.
        """
        self.refuse_classifier()
        if not plain_ids(self.tokenizer, text[: BYTES_PER_TOKEN * INSIDE_TOKENS]):
            raise ValueError("There is no text yet: type a sentence.")
        return self.inside_of(self.ids(text, min(INSIDE_TOKENS, self.positions)))

    def inside_of(self, ids: Sequence[int]) -> Inside:
        """The inside of the model for tokens, from memory if they were looked into before."""
        key = tuple(ids)
        if key not in self.seen:
            self.seen[key] = look_inside(self.model, ids)
            while len(self.seen) > REMEMBERED:
                self.seen.popitem(last=False)
        self.seen.move_to_end(key)
        return self.seen[key]

    def head_words(self) -> list[HeadWord]:
        """What each head does; empty for a model without attention."""
        if self.words is None:
            special = set(self.tokenizer.all_special_ids)
            ordinary = [number for number in range(len(self.tokenizer)) if number not in special]
            self.words = head_words(self.model, ordinary, self.positions)
        return self.words

    def refuse_classifier(self) -> None:
        """Refuse to write with a classifier.

        Raises:
            ValueError: it is one.
        """
        if self.is_classifier:
            raise ValueError(f"{self.name} is a classifier, which labels texts and writes none: use the tab Labels.")


class Library:
    """The models that the page offers. Whoever uses one holds the lock: the random numbers are shared, too.

    Args:
        names: folders, or names on the Hub; the first one is open at the beginning.
        is_private: whether only this machine can reach the page. Otherwise it opens no other models than these.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        is_private: bool = True,
        device: str | None = None,
        dtype: str | None = None,
        max_prompt_tokens: int = 1024,
    ) -> None:
        self.names = [other for name in names for other in (name, *steps_of_run(name))]
        self.is_private, self.device, self.dtype, self.max_prompt_tokens = is_private, device, dtype, max_prompt_tokens
        self.lock = threading.RLock()
        self._open: OrderedDict[str, OpenModel] = OrderedDict()

    def open(self, name: str, option: str = "The model") -> OpenModel:
        """A model by its name.

        Args:
            option: how error messages begin.

        Raises:
            ValueError: no such model, one that cannot be used, or one that the page does not offer.
            OSError: the Hub cannot be reached.
        """
        name = (name or "").strip()
        if not name:
            raise ValueError("Choose a model.")
        if not self.is_private and name not in self.names:
            raise ValueError("This page opens only the models of its list.")
        with self.lock:
            if name not in self._open:
                self._open[name] = self._load(option, name)
                while len(self._open) > OPEN_MODELS:
                    self._open.popitem(last=False)
            self._open.move_to_end(name)
            return self._open[name]

    def _load(self, option: str, name: str) -> OpenModel:
        place = f"{option} {name}"
        folder = find_model(option, name)
        is_classifier = is_classifier_folder(place, folder)
        auto_class = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
        model: Any
        model, tokenizer = load_found(place, folder, auto_class, device=self.device, dtype=self.dtype)
        if not is_classifier:
            check_outputs(place, model, encode_prompt(tokenizer, "?"))
        return OpenModel(name, model, tokenizer, is_classifier, self.max_prompt_tokens)


def is_classifier_folder(place: str, folder: Path) -> bool:
    """Whether a folder contains a classifier or its adapter."""
    if (folder / ADAPTER_CONFIG_FILE).exists():
        return is_classifier_adapter(folder)
    config = load_config(place, folder)
    name = str((config.architectures or [""])[0])
    return name.endswith(CLASSIFIER_SUFFIX) and type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def run_of(name: str) -> Path | None:
    """The folder of the run that a model comes from; None if it is not in one."""
    folder = Path(name)
    if is_run(folder):
        return folder
    return folder.parent if folder.is_dir() and is_run(folder.parent) else None


def steps_of_run(name: str) -> list[str]:
    """The checkpoints of the run that a model comes from, without the model itself."""
    run = run_of(name)
    if run is None:
        return []
    return [str(path) for path in checkpoint_paths(run) if (path / CONFIG_FILE).exists() and path != Path(name)]
