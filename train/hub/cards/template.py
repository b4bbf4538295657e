"""Render a model card from the Jinja templates in this folder."""

import platform
from pathlib import Path
from typing import Any

import jinja2
import torch
from huggingface_hub import ModelCardData

from .markdown import fenced, one_line, plain
from .metadata import CODE_TAG

# placeholders in the programs of a card; `publish` replaces the first one with the name of the repository
MODEL_PLACEHOLDER = "path/to/this/folder"
BASE_PLACEHOLDER = "path/to/the/base/model"
REVISION_PLACEHOLDER = "the-commit-you-reviewed"


def render_card(template: str, metadata: ModelCardData, **values: Any) -> str:
    """The content of a README.md: metadata and text.

    Prompts, labels and samples are passed as `values`, so template syntax in them has no effect.

    Args:
        template: a file in this folder, such as "pretrained.md.jinja".
        metadata: the YAML at the top of the card.
        values: variables of the template.
    """
    values = {"metadata": metadata, "has_code": CODE_TAG in (metadata.tags or [])} | values
    return _environment().get_template(template).render(values)


def _environment() -> jinja2.Environment:
    """`ModelCard.from_template` cannot include other templates and renders a misspelt variable as nothing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters |= {"fenced": fenced, "one_line": one_line, "plain": plain, "repr": repr}
    environment.globals |= {
        "model": MODEL_PLACEHOLDER,
        "base": BASE_PLACEHOLDER,
        "revision": REVISION_PLACEHOLDER,
        "hardware": hardware,
    }
    return environment


def hardware() -> str:
    """The GPU, or the type of CPU, of this process, and the version of torch."""
    processor = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return f"{processor}, torch {torch.__version__}"
