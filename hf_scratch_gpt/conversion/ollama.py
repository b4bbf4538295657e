"""The Modelfile that tells Ollama how to chat with a GGUF file (https://docs.ollama.com/modelfile)."""

from pathlib import Path

from ..tokenization_scratch_gpt import CHAT_TEMPLATE, END_OF_TURN
from .gguf_tokenizer import load_tokenizer

# CHAT_TEMPLATE as a Go template. Ollama joins neighboring messages of the same role itself.
GO_TEMPLATE = f"{{{{- range .Messages }}}}<|{{{{ .Role }}}}|>{{{{ .Content }}}}{END_OF_TURN}{{{{ end }}}}<|assistant|>"


def modelfile(model_folder: Path, gguf_name: str) -> str:
    """The Modelfile for a GGUF file that lies beside it.

    With our chat template, it states the same one in Ollama's language. Another one is left out: Ollama 0.33 reads it
    from the GGUF file.

    Args:
        model_folder: from which the GGUF file was made.

    Raises:
        ValueError: the tokenizer is missing or damaged.
    """
    tokenizer = load_tokenizer(model_folder)
    lines = [f"FROM ./{gguf_name}"]
    if getattr(tokenizer, "chat_template", None) == CHAT_TEMPLATE:
        lines += [f'TEMPLATE """{GO_TEMPLATE}"""', f'PARAMETER stop "{END_OF_TURN}"']
    return "\n".join(lines) + "\n"
