"""A look at the first loss: a model should not start worse than guessing."""

import logging
import math

from .language_modeling import LanguageModeling
from .run import Run

MARGIN = 0.3  # nats

logger = logging.getLogger(__name__)


def warn_if_worse_than_guessing(run: Run, loss: float) -> None:
    """Warn if the first loss, in nats per token, is above that of guessing, the logarithm of the vocabulary size.

    New weights start higher by half the variance of their logits, initializer_range**2 x hidden_size.
    """
    config = run.bare_model.config.get_text_config()
    guessing = math.log(config.vocab_size)
    excess = getattr(config, "initializer_range", 0.02) ** 2 * config.hidden_size / 2
    is_language_model = isinstance(run.objective, LanguageModeling)
    if run.accelerator.is_main_process and is_language_model and loss > guessing + excess + MARGIN:
        logger.warning(
            "WARNING: the first loss is %.2f, worse than guessing among %s tokens (%.2f). Probably the tokenizer is "
            "not the one that the model was trained with, or the weights are damaged: check --model and --tokenizer.",
            loss, f"{config.vocab_size:,}", guessing,
        )  # fmt: skip
