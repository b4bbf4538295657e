"""What a family of models is: its names of tensors, and its config, next to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..configuration_scratch_gpt import ScratchGPTConfig

# Our classes, and the tensors of their heads.
BASE = "ScratchGPTModel"
LANGUAGE_MODEL = "ScratchGPTForCausalLM"
SEQUENCE_CLASSIFIER = "ScratchGPTForSequenceClassification"
TOKEN_CLASSIFIER = "ScratchGPTForTokenClassification"
QUESTION_ANSWERING = "ScratchGPTForQuestionAnswering"

HEADS = {
    BASE: (),
    LANGUAGE_MODEL: ("lm_head.weight",),
    SEQUENCE_CLASSIFIER: ("score.weight",),
    TOKEN_CLASSIFIER: ("score.weight", "score.bias"),
    QUESTION_ANSWERING: ("qa_outputs.weight", "qa_outputs.bias"),
}

# Entries that mean the same in every config of transformers.
SHARED = (
    *("vocab_size", "initializer_range", "use_cache", "tie_word_embeddings", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "id2label", "label2id", "problem_type", "dtype"),
)


class UnsupportedModelError(ValueError):
    """One architecture cannot express the other; the message names the fields."""


@dataclass(frozen=True)
class Rule:
    """A tensor of another family, and our tensors with the same numbers.

    Args:
        theirs: its name; `{i}` is the number of a layer.
        ours: names of our tensors, whose rows are stacked in it in this order.
        transposed: it is stored as (input, output), ours as (output, input).
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """The models of one `model_type` of transformers.

    Args:
        model_type: as in config.json.
        architectures: our class and theirs, for each head.
        rules: the tensors of the base model, without `prefix`.
        head_rules: the tensors of each head.
        prefix: before the names of the base model's tensors, in a model with a head.
        question_answering_prefix: the same, in a model for question answering.
        ignored: a pattern of tensors without information, such as causal masks.
        zero_biases: their biases that we may lack are written as zeros.
        zeros: a pattern of our tensors that they lack, and that are then zero.
        import_requires: for each entry of their config, the values that we can express.
        export_requires: for each field of our config, the value that they can express.
        import_config: their config as values of ours.
        export_config: our config as values of theirs; None: only import.
        export_loses: fields of ours that only matter in training, and that they lack.
        export_limits: further reasons why a config cannot be exported.
    """

    model_type: str
    architectures: Mapping[str, str]
    rules: tuple[Rule, ...]
    import_config: Callable[[Any], dict[str, Any]]
    head_rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=lambda: same_heads())
    prefix: str = "model."
    question_answering_prefix: str = "transformer."
    export_config: Callable[[ScratchGPTConfig], dict[str, Any]] | None = None
    export_loses: tuple[str, ...] = ()
    export_limits: Callable[[ScratchGPTConfig], list[str]] = lambda config: []
    import_requires: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    export_requires: Mapping[str, Any] = field(default_factory=dict)
    ignored: str = r"(?!)"
    zero_biases: bool = False
    zeros: str = r"(?!)"

    def prefix_of(self, our_class: str) -> str:
        """What comes before the names of the base model's tensors."""
        if our_class == BASE:
            return ""
        return self.question_answering_prefix if our_class == QUESTION_ANSWERING else self.prefix


def same_heads() -> dict[str, tuple[Rule, ...]]:
    """Heads whose tensors have the names of ours."""
    return {our_class: tuple(Rule(name, (name,)) for name in names) for our_class, names in HEADS.items()}


def shared_values(config: Any) -> dict[str, Any]:
    """The entries of a config that have the same meaning in every family."""
    values = {name: getattr(config, name, None) for name in SHARED}
    return {name: value for name, value in values.items() if value is not None or name.endswith("_token_id")}
