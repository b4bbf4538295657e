"""The Modelfile for Ollama."""

import pytest

from hf_scratch_gpt.conversion.ollama import modelfile
from tests.support.tiny_gguf import save_model


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path)
    return tmp_path


def test_the_modelfile_states_our_chat_template(folder):
    assert modelfile(folder, "mine-q8_0.gguf").splitlines() == [
        "FROM ./mine-q8_0.gguf",
        'TEMPLATE """{{- range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"""',
        'PARAMETER stop "<|end|>"',
    ]


def test_the_modelfile_leaves_other_chat_templates_to_the_file(folder):
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert modelfile(folder, "mine.gguf") == "FROM ./mine.gguf\n"
