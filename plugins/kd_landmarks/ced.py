"""Cumulative error distributions: the share of faces below each error, of several methods in one figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kd_landmarks.nme import Floats, area_under_curve, failure_rate, shares_below
from kd_tasks.engine.files import atomic_write
from kd_tasks.errors import UserError
from kd_tasks.vision.drawing import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#2f81f7", "#c9730f", "#2a9d5c", "#8b5cf6", "#d1477a", "#0e9aa7", "#8a7a1f", "#7a869a")
SIZE = (7.2, 4.2)
LIMIT, STEPS = 0.1, 1000


def ced_curve(errors: Floats, limit: float = LIMIT, steps: int = STEPS) -> tuple[Floats, Floats]:
    """The cumulative error distribution.

    Args:
        errors: of each face (N,), as fractions of the norm; those that are not a number are left out.
        limit: the largest threshold.
        steps: thresholds above 0.

    Returns:
        Thresholds (steps + 1,) from 0 to `limit`, and the shares (steps + 1,) of faces whose error is below them.

    Raises:
        UserError: if no error is a number, or `limit` is not above 0.
    """
    if not limit > 0:
        raise UserError(f"CED: the limit is {limit}; it must be above 0, such as 0.1.")
    thresholds = np.linspace(0, limit, steps + 1)
    return thresholds, shares_below(_known(errors), thresholds)


def ced_figure(
    methods: Mapping[str, Floats],
    norm: str = "the norm",
    threshold: float = 0.08,
    limit: float = LIMIT,
    auc: str = "grid",
) -> "Figure":
    """The curves of several methods, with NME, AUC and failure rate in the legend.

    Args:
        methods: errors of each face (N,) by the method's name, as fractions of the norm.
        norm: what the errors are divided by, in words, for the axis.
        threshold: of AUC and failure rate.
        limit: where the axis ends.
        auc: the rule, see `area_under_curve`.

    Raises:
        UserError: if there is no method, or no error of one is a number.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if not methods:
        raise UserError("CED: there is no method to draw.")
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        for place, (name, errors) in enumerate(methods.items()):
            thresholds, shares = ced_curve(errors, limit)
            label = legend_text(name, errors, threshold, auc)
            axes.plot(100 * thresholds, 100 * shares, color=COLOURS[place % len(COLOURS)], linewidth=1.8, label=label)
        axes.axvline(100 * threshold, color="#7a869a", linewidth=0.8, linestyle=":")
        axes.set(xlim=(0, 100 * limit), ylim=(0, 100))
        axes.set_xlabel(f"NME of a face, % of {norm}")
        axes.set_ylabel("share of faces with a smaller error, %")
        axes.grid(linewidth=0.5, alpha=0.5)
        axes.legend(frameon=False, fontsize=8, loc="upper left" if _late(methods, limit) else "lower right")
    return figure


def legend_text(name: str, errors: Floats, threshold: float = 0.08, auc: str = "grid") -> str:
    """Such as `student: NME 4.21 %, AUC@0.08 51.20 %, FR@0.08 3.10 %`; without a name, the numbers alone."""
    known = _known(errors)
    area, failures = area_under_curve(known, threshold, auc), failure_rate(known, threshold)
    numbers = (
        f"NME {100 * known.mean():.2f} %, AUC@{threshold:g} {100 * area:.2f} %, FR@{threshold:g} {100 * failures:.2f} %"
    )
    return f"{name}: {numbers}" if name else numbers


def write_ced(
    path: str | Path,
    methods: Mapping[str, Floats],
    norm: str = "the norm",
    threshold: float = 0.08,
    limit: float = LIMIT,
    auc: str = "grid",
) -> Path:
    """Write `ced_figure` as a file of the format that its ending names: `.png`, `.svg` or `.pdf`.

    Raises:
        UserError: if the ending is another, there is nothing to draw, or the file cannot be written.
    """
    file = check_format(path)
    figure = ced_figure(methods, norm, threshold, limit, auc)
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format=file.suffix[1:].lower(), dpi=150)
    return file


def check_format(path: str | Path) -> Path:
    """`path`, if a figure can be written with this ending.

    Raises:
        UserError: if not.
    """
    file = Path(path)
    if file.suffix.lower() not in FORMATS:
        raise UserError(f"{file}: a figure's file must end with one of {', '.join(FORMATS)}.")
    return file


def ced_picture(
    methods: Mapping[str, Floats],
    norm: str = "the norm",
    threshold: float = 0.08,
    limit: float = LIMIT,
    auc: str = "grid",
) -> Image:
    """`ced_figure` as uint8 RGB (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = ced_figure(methods, norm, threshold, limit, auc)
    figure.set_dpi(125)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _known(errors: Floats) -> Floats:
    values = np.asarray(errors, np.float64)
    known = values[~np.isnan(values)]
    if not len(known):
        raise UserError(f"CED: none of {len(values)} errors is a number.")
    return known


def _late(methods: Mapping[str, Floats], limit: float) -> bool:
    """Whether the curves leave the upper left free rather than the lower right."""
    return all(np.mean(_known(errors) < limit / 2) < 0.5 for errors in methods.values())
