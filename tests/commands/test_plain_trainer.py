"""The example with plain `Trainer`: the command of its README, with fewer steps."""

import math
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTTokenizer

ROOT = Path(__file__).parents[2]
README = ROOT / "examples" / "plain_trainer" / "README.md"
RESULT = re.compile(r"\nvalidation loss ([\d.]+), perplexity ([\d.]+); the model is in .*\nThe \"for\" statement")


# Trainer pins memory by default, which only helps a GPU
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_command_of_the_readme_trains_a_model(tmp_path, monkeypatch, capsys):
    readme = README.read_text(encoding="utf-8")
    command = re.search(r"```bash\n(.*)\n```", readme).group(1)
    _, script, *options = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *options, f"--output_dir={tmp_path}", "--max_steps=40"])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    shown, reached = (RESULT.search(text).groups() for text in (readme, capsys.readouterr().out))
    for loss, perplexity in (shown, reached):
        assert math.exp(float(loss)) == pytest.approx(float(perplexity), abs=0.1)
    assert float(shown[0]) < float(reached[0]) < 5.5  # guessing among 512 tokens: 6.24
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (type(model), type(tokenizer)) == (ScratchGPTForCausalLM, ScratchGPTTokenizer)
    assert len(tokenizer) == model.config.vocab_size == 512
    with torch.no_grad():
        ids = tokenizer('The "for" statement is used to iterate', return_tensors="pt").input_ids
        assert model(ids, labels=ids).loss < 6
