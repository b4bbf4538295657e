"""Options for generating text, which `generate` and `chat` share."""

from dataclasses import dataclass
from typing import Any

from .checks import check_bounds, requires
from .options import LARGEST_INT
from .recipe import option

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0
DEFAULT_TOP_K = 50


@dataclass
class SamplingArguments:
    """How the next token is chosen."""

    temperature: float = option("Sampling temperature; 0: always the most probable token.", 0.8)
    top_k: int | None = option("Sample from the K most probable tokens; 0: all (default: 50).")
    top_p: float | None = option(
        "Sample from the most probable tokens that together have this probability (default: 1, all)."
    )
    min_p: float | None = option(
        "Sample from the tokens with at least this share of the highest probability (default: 0, all)."
    )
    repetition_penalty: float = option("Divide the scores of tokens that already occur by this; 1: no penalty.", 1.0)
    seed: int = option("Random seed of the samples.", 0)

    def __post_init__(self) -> None:
        is_sampling = self.temperature > 0
        check_bounds(
            self,
            {"temperature": LOWEST_TEMPERATURE if is_sampling else 0, "top_k": 0, "repetition_penalty": 0.1, "seed": 0},
            {"temperature": HIGHEST_TEMPERATURE, "top_k": 10**6, "repetition_penalty": 10, "seed": LARGEST_INT},
        )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p is {self.top_p}: it must be above 0 and at most 1.")
        if self.min_p is not None and not 0 <= self.min_p < 1:
            raise ValueError(f"--min_p is {self.min_p}: it must be at least 0 and below 1.")
        for name in ("top_k", "top_p", "min_p"):
            if getattr(self, name) is not None and not is_sampling:
                raise ValueError(requires(name, getattr(self, name), "--temperature above 0"))

    @property
    def generation(self) -> dict[str, Any]:
        """Arguments of `generate` of transformers."""
        values: dict[str, Any] = {"do_sample": self.temperature > 0, "repetition_penalty": self.repetition_penalty}
        if self.temperature > 0:
            top_k, top_p = self.top_k, self.top_p
            values["temperature"] = self.temperature
            values["top_k"] = DEFAULT_TOP_K if top_k is None else top_k
            values["top_p"] = 1.0 if top_p is None else top_p
            if self.min_p:
                values["min_p"] = self.min_p
        return values
