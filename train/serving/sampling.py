"""How the answer to a request is generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from ..settings.sampling import LOWEST_TEMPERATURE


@dataclass
class Settings:
    """How an answer is generated. transformers' server reads `max_new_tokens`.

    Attributes:
        max_new_tokens: None: as many as fit, and at the end of an answer: it ended before any maximum.
        temperature: 0: always the most probable token.
        top_k: 0: all tokens.
    """

    max_new_tokens: int | None
    stop: Sequence[str]
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None

    @classmethod
    def of(cls, body: dict[str, Any], defaults: GenerationConfig) -> "Settings":
        """Those of a request; the others are in the model's generation_config.json, or greedy."""
        given = {name: body.get(name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
        samples = defaults.do_sample or any(given[name] is not None for name in ("temperature", "top_k", "top_p"))
        usual = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
        for name in usual if defaults.do_sample else ("repetition_penalty",):
            usual[name] = usual[name] if getattr(defaults, name) is None else getattr(defaults, name)
        chosen: dict[str, Any] = {name: usual[name] if value is None else value for name, value in given.items()}
        if not samples or chosen["temperature"] < LOWEST_TEMPERATURE:
            chosen["temperature"] = 0.0
        return cls(body.get("max_tokens"), body.get("stop") or (), **chosen, seed=body.get("seed"))

    @property
    def generation(self) -> dict[str, Any]:
        """Arguments of `generate` of transformers."""
        values: dict[str, Any] = {"do_sample": self.temperature > 0, "repetition_penalty": self.repetition_penalty}
        if self.temperature > 0:
            values |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return values | {"max_new_tokens": self.max_new_tokens}
