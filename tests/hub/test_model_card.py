"""The model card and the picture: facts of the run in, readable files out."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.support.tiny_base import options, write_conversations, write_labels
from train import finetune, finetune_classifier, pretrain
from train.hub.cards.finetuned import BASE_PLACE
from train.hub.cards.metadata import PLACE, Recipe, Source, card_data
from train.hub.cards.pretrained import model_card
from train.metrics.plots import draw_loss_curve, smoothed

RECORDS = [{"step": s, "tokens_seen": 1000 * s, "loss": 8.0 - s / 10} for s in range(1, 21)] + [
    {"step": s, "tokens_seen": 1000 * s, "eval_loss": 8.1 - s / 10, "bits_per_byte": 3.0} for s in (10, 20)
]


def test_the_picture_is_a_png_of_the_announced_size(tmp_path):
    draw_loss_curve(RECORDS, tmp_path / "curve.png", title="tiny", num_choices=512)
    content = (tmp_path / "curve.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (1200, 675)


def test_a_run_without_evaluation_can_be_drawn(tmp_path):
    draw_loss_curve(RECORDS[:20], tmp_path / "curve.png", title="tiny", num_choices=512)
    assert (tmp_path / "curve.png").stat().st_size > 5000


def pretrained_card(samples, recipe="max_steps: 3\n", tags=("scratch_gpt", "custom_code")):
    source = Source("a book")
    data = card_data("tiny", "text-generation", tags, source, source, {"loss": 6.1})
    facts = {"name": "tiny", "corpus": "a book", "recipe": Recipe(recipe, "scratch-gpt pretrain recipe.yaml ...")}
    facts |= {"train_file": "- train: a book", "measured": "2 of 3 blocks"}
    return model_card(data, facts, {"validation loss (nats per token)": "6.1"}, samples)


def programs(card):
    return [block for _, block in re.findall(r"^(`{3,})python\n(.*?)\n\1$", card, flags=re.DOTALL | re.MULTILINE)]


def test_the_card_holds_the_figures_and_valid_metadata():
    card = pretrained_card([{"prompt": "def ", "text": "f():"}])
    parsed = ModelCard(card)
    assert parsed.data.library_name == "transformers"
    assert parsed.data.pipeline_tag == "text-generation"
    assert [result.metric_value for result in parsed.data.eval_results] == [6.1]
    assert "| validation loss (nats per token) | 6.1 |" in card
    assert "computed by `scratch-gpt pretrain recipe.yaml ...` after its last step, on 2 of 3 blocks" in card
    assert "def f():" in card
    recipe = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe) == {"max_steps": 3}


def test_prompts_of_any_kind_leave_the_card_whole():
    prompt = "{x} ```python\n\"'"
    card = pretrained_card([{"prompt": prompt, "text": "\n```\n# no heading"}], f"sample_prompts: {[prompt]!r}\n")
    assert len(programs(card)) == 2
    for program in programs(card):
        assert f"tokenizer({prompt!r}, return_tensors" in program
        compile(program, "card", "exec")
    headings = re.findall("^## .*", re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", card), flags=re.MULTILINE)
    assert headings == [
        "## Use it", "## What it writes", "## What it was trained on", "## How it was trained", "## Limits",
    ]  # fmt: skip


def test_a_model_without_code_needs_neither_package_nor_trust():
    (program,) = programs(pretrained_card([], tags=("gpt2",)))
    assert "hf_scratch_gpt" not in program
    assert "trust_remote_code" not in program


@pytest.mark.slow
def test_the_programs_of_all_cards_run_in_new_processes(base, data_dir, recipe, tmp_path):
    """Those without the package where it cannot be imported; a revision has no effect on a folder."""
    pretrain.main([recipe()])
    written = {"pretrained": tmp_path / "run"}
    for name, script, rows in (
        ("assistant", finetune, write_conversations(tmp_path / "rows.jsonl")),
        ("classifier", finetune_classifier, write_labels(tmp_path / "rows.csv")),
    ):
        written[name] = tmp_path / name
        assert script.main(options(model=base, train_file=rows, output_dir=written[name], trainable="lora")) == 0
    folders = [run / kind for run in written.values() for kind in ("model", "adapter") if (run / kind).exists()]
    assert len(folders) == 5
    cases = []
    for folder in folders:
        for program in programs((folder / "README.md").read_text()):
            program = program.replace(PLACE, str(folder)).replace(BASE_PLACE, str(base))
            cases.append(re.sub(r"max_new_tokens=\d+", "max_new_tokens=5", program))
    assert ["import hf_scratch_gpt" in case for case in cases] == [True, False] * 5
    environment = {
        "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-I", "-c", RUN_ALL, str(Path(__file__).parents[2]), json.dumps(cases)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# forks for each program, so that none finds classes that another has registered
RUN_ALL = """
import json, os, sys
import peft, torch, transformers

repository, cases = sys.argv[1], json.loads(sys.argv[2])
for case in cases:
    process = os.fork()
    if process == 0:
        if "import hf_scratch_gpt" in case:
            sys.path.insert(0, repository)
        else:
            sys.modules["hf_scratch_gpt"] = None  # makes `import hf_scratch_gpt` fail even where it is installed
        try:
            exec(case, {})
        except BaseException as error:
            print(case, repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(process, 0)[1]:
        sys.exit(1)
"""


def test_smoothing_keeps_a_straight_line_and_its_ends():
    line = [(float(x), 3.0 - 2 * x) for x in range(12)]
    assert smoothed(line) == line
    assert smoothed([(0.0, 0.0), (1.0, 3.0), (2.0, 0.0)]) == [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]
