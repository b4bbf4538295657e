"""Tokenizers of other libraries, as fast tokenizers with the same ids."""

from .files import FORMATS, is_tokenizer, open_tokenizer
from .losses import changed_by

__all__ = ["FORMATS", "changed_by", "is_tokenizer", "open_tokenizer"]
