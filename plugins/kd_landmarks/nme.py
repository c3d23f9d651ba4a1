"""The arithmetic of landmark errors: distances, norms, rules for missing points, failure rates, areas under curves.

Errors are float64 fractions of the norm; NumPy arrays over all faces at once. Point indices are 0-based.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kd_tasks.errors import UserError, nearest

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

MISSING = {
    "per_face": "of each face over its annotated points, then over the faces",
    "all": "of each face over all of its points, annotated or not, then over the faces",
    "pooled": "over all annotated points of all faces together",
}
AUC_RULES = {"grid": "2000 thresholds, trapezoids", "area": "exact area"}
ZERO_NORMS = ("left_out", "inf")
BOX_NORMS = {
    "box": "the size of the box (square root of its area)",
    "face_size": "the face size (longer side of the box)",
}
KNOWN_WORDS = {"inter_ocular": "inter-ocular", "inter_pupil": "inter-pupil"}
GRID = 2000


# --- Norms -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm:
    """The length that errors are divided by.

    Attributes:
        name: `box`, `face_size`, or one that the data set names.
        ends: points whose two means are its ends; None for a norm of the box.
    """

    name: str
    ends: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def words(self) -> str:
        """Such as `the inter-ocular distance (points 36 and 45)`."""
        if self.ends is None:
            return BOX_NORMS[self.name]
        single = all(len(end) == 1 for end in self.ends)
        spans = " and ".join(_span(end) for end in self.ends)
        return f"the {self.short} ({'points' if single else 'means of points'} {spans})"

    @property
    def short(self) -> str:
        """Such as `inter-ocular distance`."""
        if self.ends is None:
            return {"box": "box size"}.get(self.name, "face size")
        return f"{KNOWN_WORDS.get(self.name, self.name.replace('_', ' '))} distance"

    def segment(self, points: Floats) -> Floats:
        """The two ends (..., 2, 2) of the norm in faces (..., K, 2)."""
        assert self.ends is not None
        return np.stack([points[..., list(end), :].mean(-2) for end in self.ends], axis=-2)

    def lengths(self, points: Floats, boxes: Floats | None) -> Floats:
        """The norm (N,) of each face, in pixels.

        Args:
            points: annotated points (N, K, 2).
            boxes: x, y, width, height (N, 4); needed by a norm of the box.
        """
        if self.ends is not None:
            ends = self.segment(points)
            return np.linalg.norm(ends[:, 0] - ends[:, 1], axis=-1)
        assert boxes is not None
        sides = np.clip(boxes[:, 2:], 0, None)
        return np.sqrt(sides.prod(-1)) if self.name == "box" else sides.max(-1)

    def annotated(self, visible: Mask) -> Mask:
        """Whether all points that the norm is measured at are annotated, (N,) of (N, K)."""
        if self.ends is None:
            return np.ones(len(visible), bool)
        needed = visible[:, [point for end in self.ends for point in end]]
        return np.asarray(needed.all(-1))


def norm_of(name: str | None, metainfo: Mapping[str, Any]) -> Norm:
    """The norm called `name`, or the data set's own.

    Args:
        name: `box`, `face_size`, one of `metainfo['norms']`, or None for `metainfo['default_norm']`.
        metainfo: of the data set.

    Raises:
        UserError: if there is none of that name.
    """
    norms = metainfo.get("norms") or {}
    chosen = name if name is not None else metainfo.get("default_norm")
    known = [*norms, *BOX_NORMS]
    if chosen is None:
        raise UserError(
            f"the data set names no norm of its own for NME; name one with `norm`. Known: {', '.join(known)}."
        )
    if chosen in norms:
        first, second = (tuple(int(point) for point in end) for end in norms[chosen])
        return Norm(chosen, (first, second))
    if chosen not in BOX_NORMS:
        raise UserError(
            f"there is no norm {chosen!r} in these data.{nearest(chosen, known)} Known: {', '.join(known)}."
        )
    return Norm(chosen)


def _span(points: Sequence[int]) -> str:
    """`36`, `36-41`, or `1, 3 + 7`."""
    if len(points) > 1 and list(points) == list(range(points[0], points[-1] + 1)):
        return f"{points[0]}-{points[-1]}"
    return " + ".join(map(str, points))


# --- Errors ----------------------------------------------------------------------------------------------------------


class FaceErrors(NamedTuple):
    """What is kept of each face.

    Attributes:
        total: sum (N,) of the distances of the points that count, in pixels.
        counted: number (N,) of these points.
        norm: (N,), in pixels; 0 or not-a-number where there is none.
    """

    total: Floats
    counted: Floats
    norm: Floats

    @property
    def measured(self) -> Mask:
        """Whether (N,) a face has a norm above zero and a point that counts."""
        return (self.norm > 0) & (self.counted > 0)

    def at(self, mask: Mask) -> "FaceErrors":
        """The faces where `mask` (N,) is true."""
        return FaceErrors(*(values[mask] for values in self))

    def errors(self, zero_norm: str = "left_out") -> Floats:
        """The mean error (N,) of each face as a fraction of the norm; not-a-number, or inf, for one without a norm.

        A face without a point that counts is not-a-number in any case.
        """
        measured = self.measured
        found = np.full(len(self.total), np.nan)
        found[measured] = self.total[measured] / self.counted[measured] / self.norm[measured]
        if zero_norm == "inf":
            found[~measured & (self.counted > 0)] = np.inf
        return found


def face_errors(
    predictions: Floats,
    points: Floats,
    visible: Mask,
    norm: Norm,
    boxes: Floats | None = None,
    missing: str = "per_face",
) -> FaceErrors:
    """Sums of the point errors of each face, with its norm.

    Args:
        predictions: (N, K, 2).
        points: the annotated points (N, K, 2), in the same coordinates.
        visible: whether (N, K) a point is annotated.
        norm: what errors are divided by; a face that lacks the annotation of one of its points has none, except by
            the rule `all`.
        boxes: (N, 4), for a norm of the box.
        missing: one of `MISSING`; `per_face` and `pooled` leave out points that are not annotated.
    """
    counted = np.ones_like(visible) if missing == "all" else visible
    given = points.astype(np.float64)
    off = predictions - given
    distances = np.sqrt(off[..., 0] ** 2 + off[..., 1] ** 2)
    lengths = norm.lengths(given, boxes)
    return FaceErrors(
        np.where(counted, distances, 0.0).sum(-1),
        counted.sum(-1).astype(np.float64),
        np.where(norm.annotated(counted) & np.isfinite(lengths), lengths, 0.0),
    )


def mean_error(faces: FaceErrors, missing: str = "per_face", zero_norm: str = "left_out") -> float:
    """NME as a fraction; not-a-number without a face."""
    errors = faces.errors(zero_norm)
    known = ~np.isnan(errors)
    if not known.any():
        return float("nan")
    if missing != "pooled":
        return float(errors[known].mean())
    return float((errors[known] * faces.counted[known]).sum() / faces.counted[known].sum())


# --- Thresholds ------------------------------------------------------------------------------------------------------


def failure_rate(errors: Floats, threshold: float) -> float:
    """The share of faces whose error is above `threshold` (HRNet); not-a-number without a face."""
    return float(np.mean(errors > threshold)) if len(errors) else float("nan")


def accuracy(errors: Floats, threshold: float) -> float:
    """The share of faces whose error is below `threshold` (D-X-Y landmark detection); a face at it is in neither."""
    return float(np.mean(errors < threshold)) if len(errors) else float("nan")


def shares_below(errors: Floats, thresholds: Floats) -> Floats:
    """The share of faces whose error is below each of `thresholds` (T,)."""
    return np.searchsorted(np.sort(errors), thresholds, side="left") / max(len(errors), 1)


def area_under_curve(errors: Floats, threshold: float, rule: str = "grid") -> float:
    """AUC: the area under the curve of `shares_below` from 0 to `threshold`, as a share of the whole.

    Args:
        errors: (N,) fractions; inf counts as a failure.
        threshold: where the curve ends.
        rule: `grid`, 2000 thresholds and trapezoids (D-X-Y), or `area`, the area of the step curve itself.

    Returns:
        0 to 1; not-a-number without a face.
    """
    if not len(errors):
        return float("nan")
    if rule == "area":
        return float(np.clip(1 - errors / threshold, 0, None).mean())
    thresholds = np.linspace(0, threshold, GRID)
    return float(np.trapezoid(shares_below(errors, thresholds), thresholds) / threshold)
