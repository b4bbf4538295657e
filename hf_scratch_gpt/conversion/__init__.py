"""Weights of GPT-2, Llama, Qwen2 and Qwen3 become ours; ours become GPT-2, Llama, Qwen3, GGUF or ONNX."""

from .families import Family, Rule, UnsupportedModelError
from .folders import EXPORTS, FAMILIES, export_model, import_model, load_imported, our_config
from .openai import is_openai_folder

__all__ = [
    "EXPORTS",
    "FAMILIES",
    "Family",
    "Rule",
    "UnsupportedModelError",
    "export_model",
    "import_model",
    "is_openai_folder",
    "load_imported",
    "our_config",
]
