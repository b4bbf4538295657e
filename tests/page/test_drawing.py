"""What the page draws: escaped texts, pictures, curves, and runs that are being written."""

import base64
import io
import json

import pytest
import torch

from tests.support.tiny_logs import METRICS
from train.page.curves import curves_view
from train.page.markup import escaped, map_picture, percent, picks
from train.page.runs import fingerprint, read_run

Image = pytest.importorskip("PIL.Image")


def test_texts_are_escaped_also_for_templates_and_attributes():
    assert escaped('<img src="x"> & \'') == "&lt;img src=&quot;x&quot;&gt; &amp; &#x27;"
    for sign in "{}$`\\<>\"'":
        assert sign not in escaped(f"a{sign}b")
    assert '"' not in picks(text='"><script>')[len('data-pick="') : -1]


def test_small_probabilities_are_not_rounded_to_nothing():
    assert [percent(value) for value in (1, 0.123, 0.00123, 3e-6, 1e-9, 0)] == [
        "100.0 %", "12.3 %", "0.1 %", "0.0003 %", "< 0.0001 %", "0.0 %"
    ]  # fmt: skip


def picture(address):
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return torch.tensor(list(Image.open(io.BytesIO(data)).convert("RGBA").tobytes())).reshape(-1, 4)


def test_the_picture_of_a_map_has_its_weights_and_a_grey_future():
    weights = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0, 0.5, 0.5]])
    pixels = picture(map_picture(weights)).reshape(3, 3, 4)
    assert pixels[0, 0].tolist() == [0x1F, 0x6F, 0xEB, 255]
    assert pixels[1, 0].tolist() == [0x1F, 0x6F, 0xEB, 128]
    assert pixels[0, 1].tolist() == pixels[1, 2].tolist() == [0x8B, 0x94, 0x9E, 70]


def test_a_large_map_becomes_a_small_picture_of_its_highest_weights():
    weights = torch.zeros(50, 50)
    weights[37, 11] = 1
    pixels = picture(map_picture(weights, 24)).reshape(17, 17, 4)  # parts of three rows and columns
    assert (pixels[..., 3].tril() == 255).nonzero().tolist() == [[12, 3]]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in METRICS))
    (tmp_path / "samples.jsonl").write_text(
        '{"step": 4, "prompt": "a", "text": "late"}\n{"step": 2, "prompt": "a", "text": "early"}\n{"step": 4, "pro'
    )
    return tmp_path


def test_a_run_is_read_while_it_is_written(run):
    before = fingerprint(run)
    found = read_run(run)
    assert found.samples == {2: [("a", "early")], 4: [("a", "late")]}
    assert found.curves["loss"][0] == (1, 9.0 - 1 / 20)
    assert found.curves["eval_loss"] == [(20, 3.5), (40, 3.25), (60, 3.4)]
    assert (found.state, found.step) == ("", None)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "loss": NaN, "learning_rate": 1e-3}\n{"step": 62, "lo')
    assert fingerprint(run) != before
    assert len(read_run(run).curves["loss"]) == 60  # nan is no point


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl"):
        read_run(tmp_path)


def test_curves_share_the_panel_of_the_losses(run):
    drawn = curves_view(read_run(run), here=40)
    assert drawn.count("<svg") == 4
    assert "training loss 6, validation loss 3.4" in drawn
    assert drawn.count("sg-here") == 4
