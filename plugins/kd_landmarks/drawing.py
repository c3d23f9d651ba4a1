"""Pictures of faces: points with their contours, predictions against annotations, the worst faces of a test set."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from kd_landmarks.ced import ced_picture
from kd_landmarks.nme import Floats, Mask, face_errors, norm_of
from kd_tasks.errors import UserError
from kd_tasks.vision.drawing import WHITE, Entry, Image, Panel, Row, fitted, grid, put_text

TRUTH = (50, 205, 90)
OCCLUDED = (255, 190, 0)
PREDICTED = (60, 150, 255)
ERROR = (235, 50, 50)
NORM = (235, 90, 235)
UNUSED = (150, 150, 150)

TILE, LARGE = 288, 576  # pixels of a face; with numbers
MARGIN = 0.25
SMALLEST = 8.0
SHIFT = 4  # fractional bits of the coordinates that are drawn

Sample = Mapping[str, Any]
Colour = tuple[int, int, int]

EXPLANATION = (
    "First the cumulative error distribution: how many faces have an error below the one on the axis. Then the faces "
    "of the test data on which the first of these models does worst, by NME: not typical ones, and not picked by "
    "hand. Red lines lead from the annotated points to the predicted ones. NME is normalised by {norm}."
)


class Face(NamedTuple):
    """What is known of one face, in pixels of one picture.

    Attributes:
        points: annotated points (K, 2).
        visible: whether (K,) they are annotated.
        occluded: whether (K,) they are hidden.
        box: x, y, width, height (4,), if known.
        used: whether the annotation may be used in training.
    """

    points: Floats
    visible: Mask
    occluded: Mask
    box: Floats | None
    used: bool


class View:
    """A part of a picture, enlarged, on which points of the picture are drawn.

    Args:
        image: uint8 RGB (H, W, 3).
        region: left, top, right, bottom in pixels of the image; may reach beyond it, where it is black. The whole
            image if not given.
        size: longer side of the view in pixels.
    """

    def __init__(self, image: Image, region: Sequence[float] | None = None, size: int = TILE) -> None:
        height, width = image.shape[:2]
        left, top, right, bottom = region if region is not None else (-0.5, -0.5, width - 0.5, height - 0.5)
        self.scale = size / max(right - left, bottom - top)
        self.origin = np.array([left, top])
        shape = max(1, round((right - left) * self.scale)), max(1, round((bottom - top) * self.scale))
        matrix = np.array([[self.scale, 0, 0], [0, self.scale, 0]])
        matrix[:, 2] = self.place(np.zeros(2))
        method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
        source = image if self.scale >= 0.5 else cv2.blur(image, (round(0.7 / self.scale),) * 2)
        self.canvas = np.asarray(cv2.warpAffine(source, matrix, shape, flags=method), np.uint8)

    def place(self, points: Floats) -> Floats:
        """Points (..., 2) of the image in pixels of the view, both at pixel centres."""
        return (points - self.origin) * self.scale - 0.5

    def dots(self, points: Floats, colours: Sequence[Colour], radius: float = 2.2) -> None:
        """Filled discs with a dark rim."""
        for place, colour in zip(self._fixed(points), colours, strict=True):
            for extra, shade in ((1.0, (20, 20, 20)), (0.0, colour)):
                reach = round((radius + extra) * (1 << SHIFT))
                cv2.circle(self.canvas, place, reach, shade, cv2.FILLED, cv2.LINE_AA, SHIFT)

    def lines(self, starts: Floats, ends: Floats, colour: Colour, thickness: int = 1) -> None:
        """Segments between two lists of points (N, 2)."""
        for start, end in zip(self._fixed(starts), self._fixed(ends), strict=True):
            cv2.line(self.canvas, start, end, colour, thickness, cv2.LINE_AA, SHIFT)

    def numbers(self, points: Floats, numbers: Sequence[int]) -> None:
        """Small numbers to the right of points."""
        for (x, y), number in zip(np.round(self.place(points)).astype(int).tolist(), numbers, strict=True):
            put_text(self.canvas, str(number), (x + 4, y + 3), 14, WHITE)

    def _fixed(self, points: Floats) -> list[tuple[int, int]]:
        limit = 1 << 20
        places = np.clip(np.round(self.place(points) * (1 << SHIFT)), -limit, limit).astype(int)
        return [(int(x), int(y)) for x, y in places]


class LandmarkDrawing:
    """Draws faces with their points, and the predictions for a whole test set as its error curve and its worst faces.

    Args:
        metainfo: of the data set: `contours`, lists of points that lines join; `norms` and `default_norm`.
        norm: of the errors, see `LandmarkMetric`; the data set's own if not given.
        numbers: write the points' numbers, counted from 0, beside them.
        contours: draw lines between points.

    Raises:
        UserError: if the data set has no such norm.
    """

    def __init__(
        self, metainfo: Mapping[str, Any], norm: str | None = None, numbers: bool = False, contours: bool = True
    ) -> None:
        chosen = norm if norm is not None else metainfo.get("default_norm", "face_size")
        self.norm = norm_of(chosen, metainfo)
        self.numbers = numbers
        self.size = LARGE if numbers else TILE
        self.contours = [list(contour) for contour in metainfo.get("contours") or []] if contours else []
        self.explanation = EXPLANATION.format(norm=self.norm.words)

    def panels(self, image: Image, targets: Mapping[str, Any], prediction: Mapping[str, Any] | None) -> list[Panel]:
        """`label`, the whole picture; with a prediction `label`, `prediction` and `errors` of the face alone.

        Without points it is `image`, or the `prediction` alone.

        Args:
            image: uint8 RGB (H, W, 3).
            targets: `points` (K, 2) in pixels of `image`, `visible`, `occluded`, `box`, `labelled`.
            prediction: `points` (K, 2), in the same pixels.
        """
        face = face_of(targets)
        if prediction is None:
            return (
                [("label", self.label(View(image, size=self.size), face))] if face is not None else [("image", image)]
            )
        found = _array(prediction["points"])
        region = region_of(face, found)
        predicted = self.prediction(View(image, region, self.size), found)
        if face is None:
            return [("prediction", predicted)]
        shown = self.label(View(image, region, self.size), face)
        return [
            ("label", shown),
            ("prediction", predicted),
            ("errors", self.errors(View(image, region, self.size), face, found)),
        ]

    def legend(self) -> list[Entry]:
        """What the colours mean."""
        ends = "box of the norm" if self.norm.ends is None else self.norm.short
        return [
            ("annotated", TRUTH),
            ("annotated, occluded", OCCLUDED),
            ("predicted", PREDICTED),
            ("error", ERROR),
            (ends, NORM),
            ("not used in training", UNUSED),
        ]

    def gallery(
        self,
        picture: Callable[[int], Image],
        samples: Sequence[Sample],
        predictions: Mapping[str, Sequence[Mapping[str, Any]]],
        count: int,
    ) -> list[Row]:
        """The error curves of all models, then the faces on which the first model does worst, as every model sees them.

        Equal errors stand in the order of the data set; faces without a norm are left out. With a `count` of 1 there is
        no curve.

        Args:
            picture: the image uint8 RGB of a sample, by its place; at its original size.
            samples: of each, `targets` and `meta`, in test mode.
            predictions: by model, one `dict(points=(K, 2))` a sample.
            count: rows at most.
        """
        errors = {name: self.nme(samples, found) for name, found in predictions.items()}
        first = next(iter(errors.values()))
        order = np.argsort(-np.nan_to_num(first, nan=-1.0), kind="stable")
        known = int((~np.isnan(first)).sum())
        rows = [self._curves(errors)] if count > 1 and known else []
        for number, place in enumerate(order[: min(count - len(rows), known)].tolist(), start=1):
            path = samples[place]["meta"].get("path", place)
            title = f"Worst {number} of {known} faces ({path})"
            found = {name: _array(given[place]["points"]) for name, given in predictions.items()}
            values = {name: 100 * float(of_model[place]) for name, of_model in errors.items()}
            rows.append(Row(title, [self._strip(title, picture(place), samples[place], found, values)]))
        return rows

    def nme(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]]) -> Floats:
        """The error (N,) of each face over its annotated points, as a fraction; not-a-number without a norm."""
        faces = [face for sample in samples if (face := face_of(sample["targets"])) is not None]
        if len(faces) < len(samples):
            raise UserError("the test data have faces without points, so the worst predictions are not known.")
        boxes = np.stack([face.box if face.box is not None else np.zeros(4) for face in faces])
        points, visible = (np.stack([getattr(face, name) for face in faces]) for name in ("points", "visible"))
        found = np.stack([_array(given["points"]) for given in predictions])
        return face_errors(found, points, visible, self.norm, boxes).errors()

    # --- Parts of a picture ---

    def label(self, view: View, face: Face) -> Image:
        """Annotated points: hidden ones in another colour, all in grey where training may not use them."""
        colours = [OCCLUDED if hidden else TRUTH for hidden in face.occluded]
        if not face.used:
            colours = [UNUSED] * len(colours)
        self._contours(view, face.points, face.visible, TRUTH if face.used else UNUSED)
        self._points(view, face.points, face.visible, colours)
        return view.canvas

    def prediction(self, view: View, points: Floats) -> Image:
        """Predicted points."""
        finite: Mask = np.asarray(np.isfinite(points).all(-1))
        self._contours(view, points, finite, PREDICTED)
        self._points(view, points, finite, [PREDICTED] * len(points))
        return view.canvas

    def errors(self, view: View, face: Face, points: Floats) -> Image:
        """The norm, and lines from annotated to predicted points."""
        self._norm(view, face)
        both = face.visible & np.isfinite(points).all(-1)
        view.lines(face.points[both], points[both], ERROR, 2)
        colours = [OCCLUDED if hidden else TRUTH for hidden in face.occluded[face.visible]]
        view.dots(face.points[face.visible], colours, 1.6)
        self._points(view, points, both, [PREDICTED] * len(points), 1.6)
        return view.canvas

    def _points(self, view: View, points: Floats, shown: Mask, colours: Sequence[Colour], radius: float = 2.2) -> None:
        places = np.flatnonzero(shown).tolist()
        view.dots(points[shown], [colours[place] for place in places], radius)
        if self.numbers:
            view.numbers(points[shown], places)

    def _contours(self, view: View, points: Floats, shown: Mask, colour: Colour) -> None:
        dim = (colour[0] * 2 // 3, colour[1] * 2 // 3, colour[2] * 2 // 3)
        for contour in self.contours:
            pairs = [(a, b) for a, b in pairwise(contour) if shown[a] and shown[b]]
            if pairs:
                starts, ends = zip(*pairs, strict=True)
                view.lines(points[list(starts)], points[list(ends)], dim)

    def _norm(self, view: View, face: Face) -> None:
        if self.norm.ends is not None:
            ends = self.norm.segment(face.points)
            if self.norm.annotated(face.visible[None]).all():
                view.lines(ends[:1], ends[1:], NORM, 2)
        elif face.box is not None:
            x, y, width, height = face.box
            corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
            view.lines(corners, np.roll(corners, -1, axis=0), NORM, 2)

    # --- Rows of the gallery ---

    def _curves(self, errors: Mapping[str, Floats]) -> Row:
        title = f"Cumulative error distribution of {len(next(iter(errors.values())))} faces"
        return Row(title, [(title, ced_picture(errors, self.norm.words))])

    def _strip(
        self, title: str, image: Image, sample: Sample, found: Mapping[str, Floats], values: Mapping[str, float]
    ) -> Panel:
        """The annotation and the prediction of every model side by side, with its NME above each."""
        face = face_of(sample["targets"])
        assert face is not None
        region = region_of(face, *found.values())
        tiles: list[Panel] = [("annotated", self.label(View(image, region, self.size), face))]
        for name, of_model in found.items():
            words = ": ".join(filter(None, (name, f"NME {values[name]:.2f} %")))
            tiles.append((words, self.errors(View(image, region, self.size), face, of_model)))
        said = ", ".join(f"{name} {value:.2f} %".strip() for name, value in values.items())
        return f"{title}: NME {said}", grid([(words, fitted(tile, self.size, self.size)) for words, tile in tiles])


def face_of(targets: Mapping[str, Any]) -> Face | None:
    """The face of one sample's targets; None without points."""
    if "points" not in targets:
        return None
    points = _array(targets["points"])
    absent, present = np.zeros(len(points), bool), np.ones(len(points), bool)
    visible = _array(targets["visible"]).astype(bool) if "visible" in targets else present
    return Face(
        points,
        visible & np.isfinite(points).all(-1),
        _array(targets["occluded"]).astype(bool) if "occluded" in targets else absent,
        _array(targets["box"]) if "box" in targets else None,
        bool(targets.get("labelled", True)),
    )


def region_of(face: Face | None, *predictions: Floats) -> list[float]:
    """The square around a face's annotated points, with some margin: left, top, right, bottom in pixels.

    Without annotated points it is that around the predictions, which do not count otherwise: a point far off shows how
    far by its line.
    """
    points = face.points[face.visible] if face is not None else np.zeros((0, 2))
    if not len(points):
        points = np.concatenate([np.zeros((0, 2)), *predictions])
        points = points[np.isfinite(points).all(-1)]
    if not len(points):
        points = np.zeros((1, 2))
    low, high = points.min(0), points.max(0)
    half = max(float((high - low).max()), SMALLEST) * (0.5 + MARGIN)
    x, y = ((low + high) / 2).tolist()
    return [x - half, y - half, x + half, y + half]


def _array(values: Any) -> Any:
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array
