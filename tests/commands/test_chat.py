"""`chat`: a conversation with a model, what it remembers, and the settings it refuses."""

import io
import re

import pytest

from hf_scratch_gpt import ScratchGPTTokenizer
from tests.support.tiny_base import chat as turns_of
from tests.support.tiny_base import options, save_base, write_conversations
from train import chat, finetune
from train.settings.command import run_command


def talk(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))


@pytest.fixture
def asked(monkeypatch):
    """The messages of each question to the model; it always answers "Yes."."""
    seen = []
    monkeypatch.setattr(chat, "answer_to", lambda model, tokenizer, messages, _: seen.append(messages) or "Yes.")
    return seen


def test_the_model_remembers_the_conversation_until_an_empty_line(base, monkeypatch, asked):
    talk(monkeypatch, "One?", "Two?", "", "Three?")
    chat.main(["--model", str(base), "--max_new_tokens", "8", "--system", "Be brief."])
    system = {"role": "system", "content": "Be brief."}
    assert asked == [
        [system, *turns_of("One?")],
        [system, *turns_of("One?", "Yes.", "Two?")],
        [system, *turns_of("Three?")],
    ]


def test_the_oldest_questions_and_answers_are_dropped_when_the_rest_does_not_fit(base):
    tokenizer = ScratchGPTTokenizer.from_pretrained(base)
    turns = turns_of("first " * 3, "x", "second " * 3, "y", "third")
    assert chat.shortened(tokenizer, [], turns, 1000) == turns
    assert chat.shortened(tokenizer, [], turns, 50) == turns[2:]
    with pytest.raises(ValueError, match="the question is longer than the 3 tokens"):
        chat.shortened(tokenizer, [], turns, 3)


def test_answers_are_streamed_and_reproducible(base, monkeypatch, capsys):
    shown = []
    for _ in range(2):
        talk(monkeypatch, "What is 1?")
        assert run_command(chat.main, ["--model", str(base), "--max_new_tokens", "8"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "<|" not in shown[0]


def test_an_adapter_answers_like_the_model_it_was_merged_into(base, tmp_path, monkeypatch, capsys):
    rows = str(write_conversations(tmp_path / "rows.jsonl"))
    line = options(model=base, train_file=rows, validation_file=rows, output_dir=tmp_path / "run", trainable="lora",
                   learning_rate=0.05)  # fmt: skip
    assert finetune.main(line) == 0
    capsys.readouterr()
    shown = []
    for folder in ("adapter", "model"):
        talk(monkeypatch, "What is 1?")
        chat.main(["--model", str(tmp_path / "run" / folder), "--max_new_tokens", "8"])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--max_new_tokens", "64"], r"--max_new_tokens \(64\) leaves no room for a question"),
        (["--max_new_tokens", "0"], "--max_new_tokens is 0: it must be a number of at least 1"),
        (["--temperature", "-1"], "--temperature is -1.0: it must be a number of at least 0"),
    ],
)
def test_refuses(base, capsys, line, message):
    assert run_command(chat.main, ["--model", str(base), *line]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_model_without_chat_template_is_refused(tmp_path, capsys):
    (save_base(tmp_path) / "chat_template.jinja").unlink()
    assert run_command(chat.main, ["--model", str(tmp_path)]) == 2
    assert "has no chat template: fine-tune it with scratch-gpt finetune" in capsys.readouterr().err
