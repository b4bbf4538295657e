"""Curves as SVG."""

import math

from .markup import escaped
from .runs import CURVES, Points, RunView

WIDTH, HEIGHT = 320.0, 150.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 8.0, 18.0
STEEP_START = 0.05  # fraction of a run that does not set the range of the losses


def curves_view(run: RunView, here: int | None) -> str:
    """The curves of a run in panels; training and validation loss share one.

    Args:
        here: the step that is marked.
    """
    panels = [panel({name: run.curves[name] for name in ("loss", "eval_loss") if name in run.curves}, here)]
    panels += [panel({name: run.curves[name]}, here) for name in CURVES if name in run.curves and "loss" not in name]
    return f'<div class="sg-curves">{"".join(panels)}</div>'


def panel(curves: dict[str, Points], here: int | None) -> str:
    """Curves in one coordinate system, with their last values as the title."""
    if not curves:
        return ""
    points = [point for curve in curves.values() for point in curve]
    last_step = max(step for step, _ in points) or 1.0
    settled = [value for step, value in points if step >= STEEP_START * last_step] or [value for _, value in points]
    low, high = min(settled), max(settled)
    low, high = (low - 0.5 * abs(low) - 1e-9, high + 0.5 * abs(high) + 1e-9) if low == high else (low, high)

    def place(step: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last_step
        share = (min(max(value, low), high) - low) / (high - low)
        return f"{x:.1f},{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share:.1f}"

    lines = []
    for name, curve in curves.items():
        kind = "sg-line sg-second" if name == "eval_loss" else "sg-line"
        lines.append(f'<polyline class="{kind}" points="{" ".join(place(*one) for one in curve)}"/>')
    if here is not None:
        x = place(min(here, last_step), low).partition(",")[0]
        lines.append(f'<line class="sg-here" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    title = ", ".join(f"{CURVES[name]} {short(curve[-1][1])}" for name, curve in curves.items())
    ticks = (
        f'<text x="{LEFT - 4}" y="{TOP + 8}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 4}" y="{HEIGHT - BOTTOM}" text-anchor="end">{low:.2g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">0</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">step {last_step:,.0f}</text>'
    )
    return (
        f'<figure><figcaption>{escaped(title)}</figcaption><svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" '
        f'aria-label="{escaped(title)}">{ticks}{"".join(lines)}</svg></figure>'
    )


def short(value: float) -> str:
    """A number with three digits."""
    if value == 0 or not math.isfinite(value):
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
