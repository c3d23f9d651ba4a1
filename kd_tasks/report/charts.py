"""Charts of the report card: inline SVG that follows the page's text colour, in light and in dark."""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_tasks.evaluation.comparison import ALONE, DISTILLED, EXPORTED, TEACHER, Comparison, Row

COLOURS = {TEACHER: "#8b5cf6", ALONE: "#c9730f", DISTILLED: "#2f81f7", EXPORTED: "#2a9d5c"}
CYCLE = ("#2f81f7", "#c9730f", "#2a9d5c", "#8b5cf6", "#d1477a", "#0e9aa7", "#8a7a1f", "#7a869a")
Points = Sequence[tuple[float, float]]

# Stand-ins that matplotlib accepts as colours; the page's own take their place in the SVG.
_INK, _FAINT = "#010203", "#040506"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def positions(comparison: Comparison) -> str:
    """Where each part stands on the scale of the main metric; a dot a seed, a bar at the mean."""
    rows = [row for row in comparison.rows if comparison.score(row).finite]
    stated = ", ".join(f"{row.label} {comparison.score(row).shown()}" for row in rows)

    def draw(axes: Axes) -> None:
        for place, row in enumerate(reversed(rows)):
            values, colour = comparison.score(row), COLOURS[row.role]
            axes.scatter(values.finite, [place] * len(values.finite), s=42, color=colour, alpha=0.6, linewidths=0)
            axes.plot([values.mean] * 2, [place - 0.28, place + 0.28], color=colour, linewidth=2.5)
            right = (max(values.finite), place)
            axes.annotate(values.shown(), right, (8, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.3)
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(comparison.main_metric)

    return _svg("positions", f"{comparison.main_metric} of each part: {stated}", (7.2, 0.55 * len(rows) + 0.7), draw)


def losses_by_term(terms: Mapping[str, Points]) -> str:
    """Training losses over the iterations, one line a term, on a logarithmic scale where all are positive."""

    def draw(axes: Axes) -> None:
        for colour, (name, points) in zip(_cycle(len(terms)), terms.items(), strict=True):
            iterations, values = zip(*points, strict=True)
            axes.plot(iterations, values, color=colour, linewidth=0.8, alpha=0.25)
            axes.plot(iterations, smoothed(values), color=colour, linewidth=1.6, label=name)
        if all(value > 0 for points in terms.values() for _, value in points):
            axes.set_yscale("log")
        axes.set_xlabel("iteration")
        axes.set_ylabel("loss, weighted")
        axes.legend(fontsize=8)

    return _svg("losses", f"Training losses over the iterations: {', '.join(terms)}", (7.2, 3.1), draw)


def validation(lines: Sequence[tuple[str, str, Points]], metric: str) -> str:
    """The validation metric over the iterations; `lines` holds `(label, role, points)`, one a run."""

    def draw(axes: Axes) -> None:
        named: set[str] = set()
        for label, role, points in lines:
            iterations, values = zip(*points, strict=True)
            legend = label if label not in named else None
            named.add(label)
            axes.plot(iterations, values, color=COLOURS[role], linewidth=1.5, marker="o", markersize=2.8, label=legend)
        axes.set_xlabel("iteration")
        axes.set_ylabel(metric)
        axes.legend(fontsize=8)

    ends = ", ".join(f"{label} ends at {points[-1][1]:.2f}" for label, _, points in lines)
    return _svg("validation", f"{metric} on the validation data over the iterations: {ends}", (7.2, 3.1), draw)


def class_bars(rows: Sequence[Row], metric: str) -> str:
    """`metric` of each class, one bar a part, with the deviation over the seeds."""
    classes = list(dict.fromkeys(name for row in rows for name in row.per_class(metric)))
    thickness = 0.8 / max(len(rows), 1)

    def draw(axes: Axes) -> None:
        for number, row in enumerate(rows):
            spreads = row.per_class(metric)
            shown = [(place, spreads[name]) for place, name in enumerate(classes) if name in spreads]
            finite = [(place, spread) for place, spread in shown if spread.finite]
            axes.barh(
                [place + (number - (len(rows) - 1) / 2) * thickness for place, _ in finite],
                [spread.mean for _, spread in finite],
                height=thickness * 0.92,
                xerr=[spread.std or 0.0 for _, spread in finite] if any(s.std for _, s in finite) else None,
                error_kw={"ecolor": _INK, "elinewidth": 0.8},
                color=COLOURS[row.role],
                label=row.label,
            )
        axes.set_yticks(range(len(classes)), classes)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        axes.set_xlabel(metric)
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(rows))

    height = max(1.6, 0.16 * len(classes) * (len(rows) + 0.6) + 0.9)
    return _svg("classes", f"{metric} of each class for {', '.join(row.label for row in rows)}", (7.2, height), draw)


def smoothed(values: Sequence[float], share: float = 0.08) -> list[float]:
    """A centred moving average over `share` of the values."""
    reach = int(len(values) * share / 2)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _cycle(count: int) -> list[str]:
    return [CYCLE[i % len(CYCLE)] for i in range(count)]


def _svg(name: str, description: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(cast(Any, {**_STYLE, "svg.hashsalt": name})):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, description)


def _inline(svg: str, name: str, description: str) -> str:
    """The SVG as a part of a page: no prologue, no metadata, ids of its own, the page's colours, a description."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = svg.replace(_INK, "currentColor").replace(_FAINT, "var(--line)")
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1)
    label = html.escape(description)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" class="chart" ', 1)
    return svg.replace(">", f"><title>{label}</title>", 1)
