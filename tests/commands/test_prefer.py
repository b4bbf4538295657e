"""examples/python_assistant/prefer.py: preference pairs, DPO with an adapter, and the merged model."""

import json
import math
import re

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from examples.python_assistant import prefer
from tests.support.tiny_base import write_conversations
from train.settings.command import run_command

# TRL and PEFT use names that transformers 5.23 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_.*)?` is deprecated:FutureWarning")


def test_answers_of_the_data_are_preferred_to_those_of_the_model(base, tmp_path, capsys, monkeypatch):
    write_conversations(tmp_path / "train.jsonl")
    write_conversations(tmp_path / "validation.jsonl")
    pairs = {}
    real = prefer.preferences

    def preferences(arguments, model, tokenizer, split, count):
        pairs[split] = real(arguments, model, tokenizer, split, count)
        return pairs[split]

    monkeypatch.setattr(prefer, "preferences", preferences)
    line = [f"--model={base}", f"--data_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}", "--num_pairs=12"]
    prefer.main([*line, "--max_steps=6", "--max_new_tokens=6"])
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert pairs["train"][0]["prompt"] == rows[0]["messages"][:1]
    assert pairs["train"][0]["chosen"] == rows[0]["messages"][1:2]
    assert all(row["rejected"][0]["content"] != row["chosen"][0]["content"] for row in pairs["train"])
    shown = capsys.readouterr().out
    before, after = map(float, re.search(r"loss \(.*ln 2.*?\) +(\d\.\d+) +(\d\.\d+)", shown).groups())
    assert before == pytest.approx(math.log(2), abs=1e-4)
    assert after < before
    alone = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out" / "adapter").eval()
    merged, first = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "out" / "model", base))
    ids = torch.randint(6, 200, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-5)
        assert (merged(ids).logits - first(ids).logits).abs().max() > 1e-4


def test_missing_data_names_the_command_that_writes_it(base, tmp_path, capsys):
    assert run_command(prefer.main, [f"--model={base}", f"--data_dir={tmp_path}"]) == 2
    assert "write it with python -m examples.python_assistant.make_data" in capsys.readouterr().err
