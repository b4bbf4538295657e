"""`report`: the page for run folders written by hand, and the folders it refuses."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.support.tiny_logs import METRICS, evaluation, step_record
from train import report
from train.metrics import thinning
from train.metrics.run_comparison import comparison_page, results_of
from train.metrics.run_plots import COLOURS, draw_runs
from train.settings.command import run_command

RECIPE = {"config": "laptop", "output_dir": "somewhere", "learning_rate": 0.001, "compile": False, "max_steps": 60}


def write_run(folder, metrics=METRICS, samples=(), recipe=RECIPE, status=None):
    folder.mkdir(parents=True)
    for name, records in (("metrics.jsonl", metrics), ("samples.jsonl", samples)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    if status:
        (folder / "status.json").write_text(json.dumps(status))
    return folder


class Tables(HTMLParser):
    """The cells of all tables, by class of the table and first cell of the row; checks that all tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.open, self.addresses = {}, [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "table":
            self.rows = self.tables[attributes["class"]] = {}
        if tag == "tr":
            self.cells = []
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            self.rows[self.cells[0]] = self.cells[1:]

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def tables_of(*folders):
    """The tables of the page of some runs, without drawing the picture."""
    return Tables(comparison_page(report.open_runs(folders), b"")).tables


def refused(capsys, *argv):
    assert run_command(report.main, list(map(str, argv))) == 2
    return capsys.readouterr().err


def pixels(content):
    return imread(io.BytesIO(content), format="png")[..., :3]


def test_the_page_shows_the_final_results(tmp_path):
    skips = [{"step": 7, "tokens_seen": 7000, "skipped": "loss is inf", "loss": math.inf}]
    metrics = [*METRICS, *skips, step_record(61, mfu=0.25), step_record(62, mfu=0.35)]
    a = write_run(tmp_path / "a", metrics, status={"state": "stopped", "step": 60})
    rows = tables_of(a, write_run(tmp_path / "b"))["results"]
    assert rows[""] == ["a", "b"]
    assert rows["state"] == ["stopped", "-"]
    assert rows["steps"] == ["62", "60"]
    assert rows["tokens seen"] == ["62,000", "60,000"]
    assert rows["training loss (mean of the last 10 lines)"] == ["6.1250", "6.2250"]
    assert rows["best validation loss"] == ["3.2500 at step 40"] * 2
    assert rows["last validation loss"] == ["3.4000"] * 2
    assert rows["last perplexity (per token)"] == ["29.96"] * 2
    assert rows["last bits per byte"] == ["1.1333"] * 2
    assert rows["tokens per second (median)"] == ["5,032", "5,030"]
    assert rows["MFU (median)"] == ["30.0%", "-"]
    assert rows["skipped updates"] == ["1\nstep 7: loss is inf", "0"]


def test_a_long_list_of_skipped_updates_is_shortened(tmp_path):
    skips = [{"step": step, "tokens_seen": 0, "skipped": "spike"} for step in range(1, 9)]
    cell = tables_of(write_run(tmp_path / "a", METRICS + skips))["results"]["skipped updates"][0]
    assert cell.splitlines() == ["8", *(f"step {step}: spike" for step in range(1, 6)), "and 3 more"]


def test_only_settings_that_differ_are_shown(tmp_path):
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", recipe=RECIPE | {"output_dir": "elsewhere", "compile": True, "sample_prompts": ["x"]})
    c = write_run(tmp_path / "c", recipe=None)
    rows = tables_of(a, b, c)["settings"]
    assert rows == {"": ["a", "b", "c"], "compile": ["false", "true", "-"], "sample_prompts": ["-", '["x"]', "-"]}


def test_one_run_shows_all_its_settings(tmp_path):
    rows = tables_of(write_run(tmp_path / "a"))["settings"]
    assert rows == {
        "": ["a"],
        "config": ["laptop"],
        "learning_rate": ["0.001"],
        "compile": ["false"],
        "max_steps": ["60"],
    }


def test_the_last_samples_of_the_runs_are_side_by_side(tmp_path):
    samples = [{"step": step, "prompt": p, "text": f"{p}!{step}"} for step in (20, 40) for p in ("one", "two")]
    a, b = write_run(tmp_path / "a", samples=samples), write_run(tmp_path / "b", samples=samples[1:2])
    rows = tables_of(a, b)["samples"]
    assert rows == {"": ["a", "b"], "one": ["step 40\none!40", "-"], "two": ["step 40\ntwo!40", "step 20\ntwo!20"]}


def test_text_from_the_run_folder_is_escaped(tmp_path):
    evil = "<script>alert('x')</script> &"
    samples = [{"step": 1, "prompt": evil, "text": evil}]
    skips = [{"step": 2, "tokens_seen": 2, "skipped": evil}]
    folder = write_run(tmp_path / "<b>&", [*METRICS, *skips], samples, {evil: evil}, {"state": evil})
    text = comparison_page(report.open_runs([folder]), b"")
    assert "<script" not in text
    assert "<b>" not in text
    tables = Tables(text).tables
    assert tables["samples"] == {"": ["<b>&"], evil: ["step 1\n" + evil]}
    assert tables["settings"] == {"": ["<b>&"], evil: [evil]}
    assert tables["results"]["state"] == [evil]


def test_the_page_is_one_file_with_the_picture_in_it(tmp_path, capsys):
    folder = write_run(tmp_path / "a", samples=[{"step": 1, "prompt": "lone surrogate", "text": "\ud800"}])
    assert run_command(report.main, ["--output_dir", str(folder)]) == 0
    assert capsys.readouterr().out == f"written: {folder / 'report.html'}\n"
    text = (folder / "report.html").read_text(encoding="utf-8")
    (address,) = Tables(text).addresses
    kind, _, content = address.partition(";base64,")
    assert kind == "data:image/png"
    assert pixels(base64.b64decode(content)).std() > 0.05
    assert not re.search(r"https?:|@import|url\(", text)


def test_the_picture_shows_every_run_in_a_distinct_style(tmp_path):
    folders = [
        write_run(tmp_path / f"r{i}", [step_record(s, loss=9 - i - s / 20) for s in range(60)]) for i in range(9)
    ]
    output = tmp_path / "picture.PNG"
    assert run_command(report.main, ["--output_dir", *map(str, folders), "--report_file", str(output)]) == 0
    seen = pixels(output.read_bytes())
    for colour in COLOURS:
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(seen - rgb).max(-1) < 0.01).sum() > 500, colour
    assert len({tuple(run.style.items()) for run in report.open_runs(folders)}) == 9


def test_the_choice_of_the_x_axis_reaches_the_picture(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(report, "draw_runs", lambda runs, by: chosen.append(by) or Figure(figsize=(1, 1)))
    folder = write_run(tmp_path / "a")
    for options in ([], ["--by", "step"]):
        assert run_command(report.main, ["--output_dir", str(folder), *options]) == 0
    assert chosen == ["tokens", "step"]


def test_runs_with_short_logs_have_results(tmp_path):
    logs = (METRICS[:1], METRICS[:60], [{"step": 1, "loss": math.nan}])
    rows = tables_of(*(write_run(tmp_path / str(i), metrics) for i, metrics in enumerate(logs)))["results"]
    assert rows["best validation loss"] == rows["last validation loss"] == ["-", "-", "-"]
    assert rows["training loss (mean of the last 10 lines)"] == ["8.9500", "6.2250", "nan"]


def test_a_truncated_line_is_skipped(tmp_path):
    folder = write_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "tok')
    assert tables_of(folder)["results"]["steps"] == ["60"]


def test_a_long_log_is_shortened_and_its_results_stay_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(thinning.ShortenedLog.__init__, "__defaults__", (10, 20))
    steps = [step_record(step, loss=5 + (step % 2)) for step in range(1, 2001)]
    evaluations = [evaluation(step, 3 + abs(step - 777) / 1000) for step in range(7, 2001, 10)]
    skips = [{"step": step, "tokens_seen": 0, "skipped": f"spike {step}"} for step in range(1, 500)]
    (run,) = report.open_runs([write_run(tmp_path / "a", [*steps, *evaluations, *skips])])
    assert len(run.metrics) < 100
    assert len(run.skipped) < 50
    losses = run.values("loss")
    assert set(losses[:10]) == {5.5}  # means of neighbours
    assert losses[-4:] == [6, 5, 6, 5]  # the last ones as logged
    results = results_of(run)
    assert results["steps"] == "2,000"
    assert results["training loss (mean of the last 10 lines)"] == "5.5000"
    assert results["best validation loss"] == "3.0000 at step 777"
    assert results["last validation loss"] == "4.2200"
    assert results["skipped updates"].splitlines()[:2] == ["499", "step 1: spike 1"]
    assert results["skipped updates"].endswith("and 494 more")


def test_the_metrics_of_a_classifier_have_their_units(tmp_path):
    scores = {"eval_accuracy": 0.5, "eval_precision": 0.25, "eval_recall": 0.75, "eval_f1": 0.4}
    classifier = [*METRICS[:60], {"step": 60, "tokens_seen": 1, "eval_loss": 0.7} | scores]
    a, b = write_run(tmp_path / "a", classifier), write_run(tmp_path / "b")
    rows = tables_of(a)["results"]
    assert rows["last accuracy"] == ["50.00%"]
    assert rows["last mean recall of the labels"] == ["0.7500"]
    assert not [name for name in rows if "perplexity" in name or "bits" in name]
    assert tables_of(a, b)["results"]["last accuracy"] == ["50.00%", "-"]
    for folders, unit in (([a], "text"), ([b], "token"), ([a, b], "token or text")):
        figure = draw_runs(report.open_runs(folders), "step")
        assert figure.axes[0].get_title(loc="left") == f"loss (nats per {unit})"


def test_samples_of_another_shape_are_left_out(tmp_path):
    samples = [{"step": 1}, {"step": 1, "prompt": ["x"], "text": "t"}, {"step": 2, "prompt": "p", "text": "t"}]
    assert tables_of(write_run(tmp_path / "a", samples=samples))["samples"] == {"": ["a"], "p": ["step 2\nt"]}


def test_folders_of_the_same_name_are_shown_with_their_parents(tmp_path):
    paths = [tmp_path / name for name in ("one/x/run", "two/x/run", "two/y/run", "other")]
    assert report.distinct_names(paths) == ["one/x/run", "two/x/run", "y/run", "other"]


def test_without_runs_the_error_shows_how_to_give_them(capsys):
    message = refused(capsys)
    assert "required: --output_dir." in message
    assert "--output_dir runs/a runs/b" in message


def test_a_run_given_twice_is_refused(tmp_path, capsys):
    folder = write_run(tmp_path / "a")
    assert "more than once" in refused(capsys, "--output_dir", folder, tmp_path / "b/../a")


def test_a_folder_without_metrics_is_refused(tmp_path, capsys):
    assert f"--output_dir {tmp_path} is not a run folder: give" in refused(capsys, "--output_dir", tmp_path)
    assert f"{tmp_path / 'no'} does not exist: give" in refused(capsys, "--output_dir", tmp_path / "no")
    run = write_run(tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text("")  # as in a folder of quickstart
    assert f"did you mean {run}?" in refused(capsys, "--output_dir", tmp_path)
    (run / "model").mkdir()
    assert f"it is the model of the run {run}: give that folder" in refused(capsys, "--output_dir", run / "model")


@pytest.mark.parametrize("metrics", [[], METRICS[60:], [step_record(1, skipped="spike")]])
def test_a_run_without_a_step_is_refused(tmp_path, capsys, metrics):
    message = refused(capsys, "--output_dir", write_run(tmp_path / "a", metrics))
    assert "metrics.jsonl has no line with a loss yet" in message


@pytest.mark.parametrize("content", ["a: [", "just words", "- a list", b"\xff\xfe"])
def test_an_invalid_recipe_is_refused(tmp_path, capsys, content):
    folder = write_run(tmp_path / "a")
    (folder / "recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"recipe {folder / 'recipe.yaml'} " in refused(capsys, "--output_dir", folder)


@pytest.mark.parametrize("name", ["report.pdf", "report", "nowhere/report.html"])
def test_a_file_that_cannot_be_written_is_refused(tmp_path, capsys, name):
    message = refused(capsys, "--output_dir", write_run(tmp_path / "a"), "--report_file", tmp_path / name)
    assert f"--report_file {tmp_path / name}" in message
    assert (f"the folder {tmp_path / 'nowhere'} does not exist" if "nowhere" in name else ".html") in message


def test_an_unknown_x_axis_is_refused(tmp_path, capsys):
    assert "--by" in refused(capsys, "--output_dir", tmp_path, "--by", "time")
