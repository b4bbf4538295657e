"""The curves of several runs: axes, gaps, skipped updates, and names that need care."""

import io
import math

import pytest

from tests.support.tiny_logs import METRICS, evaluation, step_record
from train.metrics.plots import smoothed
from train.metrics.run_comparison import LoggedRun
from train.metrics.run_plots import COLOURS, draw_runs, line_style, points, smoothed_between_gaps


def logged(metrics, name="a", skipped=()):
    return LoggedRun(name, line_style(0), metrics, list(skipped), [], {}, "-")


def render(figure):
    """Draws everything, but coarsely and without the layout, which takes most of the time."""
    figure.set_layout_engine("none")
    figure.savefig(io.BytesIO(), dpi=40)


def test_runs_beyond_the_colours_get_another_line_style():
    styles = {tuple(line_style(number).items()) for number in range(2 * len(COLOURS))}
    assert len(styles) == 2 * len(COLOURS)


def test_the_x_axis_counts_tokens_or_steps():
    run = logged([step_record(3), evaluation(4, 2.0)])
    assert points(run, "loss", "step") == [(3.0, 8.85)]
    assert points(run, "eval_loss", "tokens") == [(0.004, 2.0)]
    assert {axes.get_xlabel() for axes in draw_runs([run], "step").axes} == {"step"}
    assert {axes.get_xlabel() for axes in draw_runs([run], "tokens").axes} == {"tokens seen (millions)"}


def test_the_loss_of_a_classifier_is_one_per_text():
    classifier = logged([step_record(1), evaluation(2, 2.0) | {"eval_accuracy": 0.5}])
    for runs, unit in (
        ([classifier], "text"),
        ([logged(METRICS)], "token"),
        ([classifier, logged(METRICS)], "token or text"),
    ):
        assert draw_runs(runs, "step").axes[0].get_title(loc="left") == f"loss (nats per {unit})"


def test_skipped_updates_are_crosses_and_not_losses():
    skip = {"step": 30, "tokens_seen": 30_000, "skipped": "spike", "loss": 1e9}
    figure = draw_runs([logged(METRICS, skipped=[skip])], "step")
    crosses, others = [], []
    for line in figure.axes[0].lines:
        (crosses if line.get_marker() == "x" else others).extend(line.get_xydata().tolist())
    assert crosses == [[30.0, 0.03]]
    assert max(y for _, y in others) < 10


def test_values_that_are_not_finite_numbers_leave_gaps():
    bad = {10: math.nan, 20: math.inf, 21: -math.inf, 30: None, 40: "nan"}
    run = logged([step_record(s, loss=bad.get(s, 5.0), grad_norm=bad.get(s, 1.0)) for s in range(1, 61)])
    curve = list(smoothed_between_gaps(points(run, "loss", "step")))
    assert {x for x, y in curve if math.isnan(y)} == set(bad)
    assert {y for _, y in curve if not math.isnan(y)} == {5.0}
    render(draw_runs([run], "tokens"))


def test_a_curve_does_not_end_in_a_single_batch():
    noisy = [(float(x), 5.0 + (x % 2)) for x in range(400)] + [(400.0, 1.0)]
    for reach in (4, 8):
        assert min(y for _, y in smoothed(noisy, reach)) > 4
        assert smoothed(noisy, reach)[-1][0] > 390
    short = [(0.0, 3.0), (1.0, 2.0)]
    assert smoothed(short) == short


def test_utilization_is_shown_for_the_runs_that_logged_it():
    runs = [logged([step_record(1, mfu=share)]) for share in (0.25, 0.25, None)] + [logged(METRICS)]
    legend = draw_runs(runs, "step").axes[3].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["MFU 25.0%", "MFU 25.0%"]
    assert draw_runs(runs[2:], "step").axes[3].get_legend() is None


def test_the_steep_start_does_not_stretch_the_loss_axis():
    metrics = [step_record(s, loss=3.0 if s > 5 else 100.0) for s in range(1, 1001)] + [evaluation(1000, 3.5)]
    low, high = draw_runs([logged(metrics)], "step").axes[0].get_ylim()
    assert low < 3.0
    assert 3.5 < high < 4


@pytest.mark.parametrize("number", [1, 3])
def test_short_logs_can_be_drawn(number):
    runs = [logged([{"step": 1, "loss": math.nan}]), logged(METRICS[:1]), logged(METRICS[:60])]
    render(draw_runs(runs[:number], "tokens"))


def test_any_folder_name_can_be_drawn():
    names = ["_hidden", "cost$x$", "$\\frac$", "n" * 200]
    figure = draw_runs([logged(METRICS, name) for name in names], "tokens")
    render(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{n} (validation 3.4000)" for n in names]
