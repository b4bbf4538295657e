"""The text of model cards and the loss curve: readable, whole whatever a prompt contains, with programs that run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import UndefinedError
from matplotlib.colors import to_rgb

from tests.support.tiny_base import options, write_conversations, write_labels
from train import finetune, finetune_classifier, pretrain
from train.data.blocks import PreparedData
from train.hub.cards.origin import Recipe
from train.hub.cards.pretrained import write_pretrained_card
from train.hub.cards.template import BASE_PLACEHOLDER, MODEL_PLACEHOLDER, render_card
from train.metrics.plots import draw_loss_curve, smoothed

EVALUATION = {"bits_per_byte": 3.0, "eval_perplexity": 445.9, "eval_bits_per_byte": 3.0}
RECORDS = [
    {"step": s, "tokens_seen": 1000 * s, "loss": 8.0 - s / 10, "tokens_per_second": 10.0} for s in range(1, 21)
] + [{"step": s, "tokens_seen": 1000 * s, "eval_loss": 8.1 - s / 10, **EVALUATION} for s in (10, 20)]
TRAINING, VALIDATION = "#9bb8d3", "#c4502c"  # colours of the lines

# The picture


def num_pixels(picture, colour):
    return int((np.abs(picture[..., :3] - to_rgb(colour)).max(axis=-1) < 0.01).sum())


@pytest.mark.parametrize("has_evaluations", [True, False])
def test_the_loss_curve_shows_a_line_per_kind_of_loss(tmp_path, has_evaluations):
    records = RECORDS if has_evaluations else RECORDS[:20]
    draw_loss_curve(records, tmp_path / "curve.png", title="tiny", num_choices=512)
    picture = matplotlib.image.imread(tmp_path / "curve.png")
    assert picture.shape[:2] == (675, 1200)
    assert num_pixels(picture, TRAINING) > 500  # of the line, more than its entry in the legend
    assert (num_pixels(picture, VALIDATION) > 500) == has_evaluations


@pytest.mark.parametrize(("records", "fewest"), [(RECORDS[:1], 20), (RECORDS[20:], 0)], ids=["one", "none"])
def test_one_loss_is_a_point_and_none_is_no_line(tmp_path, records, fewest):
    draw_loss_curve(records, tmp_path / "curve.png", title="tiny", num_choices=512)
    found = num_pixels(matplotlib.image.imread(tmp_path / "curve.png"), TRAINING)
    assert found >= fewest
    assert (found == 0) == (fewest == 0)


# The text


@pytest.fixture
def card_of(tmp_path):
    """Writes the card of a pretrained model and returns its content."""

    def card_of(samples=(), recipe="max_steps: 20\n", has_code=True, source="a book"):
        if has_code:
            (tmp_path / "modeling_scratch_gpt.py").touch()
        model = SimpleNamespace(num_parameters=lambda: 3_100_000, config=SimpleNamespace(model_type="scratch_gpt"))
        splits = {split: {"num_documents": 1, "num_bytes": 9, "num_tokens": 4} for split in ("train", "validation")}
        manifest = {"splits": splits, "corpus": {split: {"description": source} for split in splits}}
        data = PreparedData(train=None, validation=range(3), manifest=manifest)
        recipe = Recipe(recipe, "scratch-gpt pretrain recipe.yaml ...")
        samples = [{"step": 20, **sample} for sample in samples]
        write_pretrained_card(tmp_path, model, data, recipe, RECORDS, samples, max_eval_samples=2)
        return (tmp_path / "README.md").read_text()

    return card_of


def programs(card):
    return [block for _, block in re.findall(r"^(`{3,})python\n(.*?)\n\1$", card, flags=re.DOTALL | re.MULTILINE)]


def test_the_card_has_the_metrics_and_valid_metadata(card_of):
    old = {"step": 10, "prompt": "import ", "text": "early"}
    card = card_of([{"prompt": "def ", "text": "f():"}, old])
    parsed = ModelCard(card)
    assert parsed.data.library_name == "transformers"
    assert parsed.data.pipeline_tag == "text-generation"
    assert {result.metric_type: result.metric_value for result in parsed.data.eval_results} == {
        "loss": pytest.approx(6.1), "perplexity": 445.9, "bits_per_byte": 3.0,
    }  # fmt: skip
    assert "| validation loss (nats per token) | 6.1000 |" in card
    assert "| parameters | 3,100,000 |" in card
    assert "`scratch-gpt pretrain recipe.yaml ...` computed these metrics after step 20, on 2 of 3 blocks" in card
    assert f"`scratch-gpt evaluate --model {MODEL_PLACEHOLDER} --text your.txt`" in card
    assert "- train: a book: 1 document, 9 bytes, 4 tokens\n- validation: a book" in card
    assert "def f():" in card
    assert "early" not in card
    recipe = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe) == {"max_steps": 20}


@pytest.mark.parametrize("prompt", ["{x} ```python\n\"'", "{{ 6 * 7 }} {% if %}{# note #} {{ metadata }}"])
def test_prompts_of_any_kind_leave_the_card_whole(card_of, prompt):
    """Also those that look like template syntax."""
    card = card_of(
        [{"prompt": prompt, "text": "\n```\n# no heading"}], f"sample_prompts: {[prompt]!r}\n", source=prompt
    )
    assert len(programs(card)) == 2
    for program in programs(card):
        assert f"tokenizer({prompt!r}, return_tensors" in program
        compile(program, "card", "exec")
    assert f"{prompt}\n```\n# no heading\n````" in card
    headings = re.findall("^## .*", re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", card), flags=re.MULTILINE)
    assert headings == [
        "## Results", "## Usage", "## Samples", "## Training data", "## Training procedure", "## Limitations",
    ]  # fmt: skip


def test_two_ways_to_load_a_model_with_code(card_of):
    installed, remote = programs(card_of())
    assert installed.startswith("import hf_scratch_gpt")
    assert "trust_remote_code" not in installed
    assert "hf_scratch_gpt" not in remote
    assert remote.count(', trust_remote_code=True, revision="the-commit-you-reviewed")') == 2


def test_a_model_without_code_needs_neither_package_nor_trust(card_of):
    card = card_of(has_code=False)
    (program,) = programs(card)
    assert "hf_scratch_gpt" not in program
    assert "trust_remote_code" not in card


def test_a_missing_variable_of_a_template_is_an_error():
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render_card("pretrained.md.jinja", ModelCardData())


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
            program = program.replace(MODEL_PLACEHOLDER, str(folder)).replace(BASE_PLACEHOLDER, str(base))
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
