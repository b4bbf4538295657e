"""The model card and the picture: facts of the run in, readable files out."""

import struct

import yaml
from huggingface_hub import ModelCard

from train.model_card import draw_loss_curve, model_card, smoothed

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


def test_the_card_holds_the_figures_and_valid_metadata():
    facts = {"name": "tiny", "corpus": "a book", "recipe": "max_steps: 3\n"}
    card = model_card(facts, {"validation loss (nats per token)": "6.1"}, [{"prompt": "def ", "text": "f():"}])
    parsed = ModelCard(card)
    assert parsed.data.library_name == "transformers"
    assert parsed.data.pipeline_tag == "text-generation"
    assert "| validation loss (nats per token) | 6.1 |" in card
    assert "def f():" in card
    recipe = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe) == {"max_steps": 3}


def test_smoothing_keeps_a_straight_line_and_its_ends():
    line = [(float(x), 3.0 - 2 * x) for x in range(12)]
    assert smoothed(line) == line
    assert smoothed([(0.0, 0.0), (1.0, 3.0), (2.0, 0.0)]) == [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]
