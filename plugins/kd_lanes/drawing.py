"""Pictures of lanes: annotated ones, and predicted ones as hits, misses and false lanes by CULane's rule."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from kd_lanes import culane
from kd_lanes.lane_files import Lane, as_lane, tidy
from kd_tasks.errors import UserError
from kd_tasks.vision.drawing import Entry, Image, Panel, overlay, put_text

ANNOTATED = (40, 200, 80)
FOUND = (50, 120, 255)
MISSED = (230, 40, 40)
FALSE = (255, 150, 0)
WHITE = (255, 255, 255)

IGNORED = 255
LEGEND: list[Entry] = [
    ("annotated lane", ANNOTATED),
    ("found, or predicted", FOUND),
    ("missed", MISSED),
    ("false", FALSE),
]

_SHIFT = 4  # fractional bits of the coordinates that are drawn
_LIMIT = 1 << 24
_MARGIN = 4

Colour = tuple[int, int, int]


class Outcome(NamedTuple):
    """What became of the lanes of a picture.

    Attributes:
        found: of each predicted lane (B,), whether an annotated one belongs to it.
        missed: of each annotated lane (A,), whether no predicted one belongs to it.
    """

    found: npt.NDArray[np.bool_]
    missed: npt.NDArray[np.bool_]


class LaneDrawing:
    """Annotated lanes green; of predicted ones those found blue, false ones orange, and what they miss red.

    A predicted lane is found if it belongs to an annotated one by the rule of `kd_lanes.culane`, lanes drawn as wide as
    there in proportion to the width of the picture. Lanes on pictures without annotation are blue. Of data without
    lanes as points, such as BDD100K, masks are shown in the colours of their classes.

    Args:
        metainfo: of the data set: `classes`, the background first, and `palette`.
        scores: write the probability that a lane exists at its lower end.
        mask: lay the predicted mask over the picture too, if the decoder gives one; where there are no lanes, always.
        alpha: how opaque masks are, 0 to 1.
        iou: above which lanes belong together.
        width: of lanes where they are compared, in pixels of the picture; in CULane's proportion if not given.

    Raises:
        UserError: if no lane of that width can be drawn.
    """

    def __init__(
        self,
        metainfo: Mapping[str, Any],
        scores: bool = False,
        mask: bool = False,
        alpha: float = 0.5,
        iou: float = culane.IOU,
        width: int | None = None,
    ) -> None:
        if width is not None:
            culane.check_drawing(culane.SIZE, width)
        if not 0 <= iou < 1:
            raise UserError(f"LaneDrawing: IoU {iou} can tell no lanes apart; give one from 0 to below 1.")
        self.scores = scores
        self.mask = mask
        self.alpha = alpha
        self.iou = iou
        self.width = width
        self._table = np.zeros((256, 3), np.uint8)
        palette = np.asarray(list(metainfo.get("palette") or ()), np.uint8).reshape(-1, 3)
        self._table[: len(palette)] = palette

    def panels(self, image: Image, targets: Mapping[str, Any], prediction: Mapping[str, Any] | None) -> list[Panel]:
        """`label`, or `image` where nothing is annotated, and `prediction` if there is one.

        Args:
            image: uint8 RGB (H, W, 3).
            targets: `mask` in pixels of `image`, if there is one, and `meta` of the sample, of which `lanes` are read:
                the annotated lanes in pixels of the original picture.
            prediction: `lanes` and `scores`, `mask`, in the same pixels; then `image` is the original picture.
        """
        lanes = _annotated(image, targets, training=prediction is None)
        masked = targets.get("mask")
        if lanes is not None:
            panels = [("label", self._lines(image, [(lane, ANNOTATED) for lane in lanes]))]
        elif masked is not None and tuple(masked.shape) == image.shape[:2]:
            panels = [("label", self._overlay(image, masked))]
        else:
            panels = [("image", image)]
        if prediction is not None:
            panels.append(("prediction", self.predicted(image, prediction, lanes)))
        return panels

    def legend(self) -> list[Entry]:
        """What the colours of lanes mean."""
        return list(LEGEND)

    def predicted(self, image: Image, prediction: Mapping[str, Any], annotated: Sequence[Any] | None = None) -> Image:
        """A picture with predicted lanes, and the annotated ones where they are known.

        Args:
            image: uint8 RGB (H, W, 3).
            prediction: what `LaneDecoder` gives.
            annotated: lanes (P, 2) in pixels of the picture; None where nothing is known of them.
        """
        lanes = [as_lane(lane) for lane in prediction.get("lanes", ())]
        if "mask" in prediction and (self.mask or not lanes):
            image = self._overlay(image, prediction["mask"])
        drawn = [tidy([lane]) != [] for lane in lanes]
        kept = [tidy([lane])[0] for lane, good in zip(lanes, drawn, strict=True) if good]
        colours, missed = [FOUND] * len(kept), []
        if annotated is not None:
            truth = tidy(annotated)
            outcome = self.outcome(kept, truth, image.shape[:2])
            colours = [FOUND if found else FALSE for found in outcome.found]
            missed = [(lane, MISSED if gone else ANNOTATED) for lane, gone in zip(truth, outcome.missed, strict=True)]
        picture = self._lines(image, [*missed, *zip(kept, colours, strict=True)])
        if self.scores and "scores" in prediction:
            chances = [float(score) for score, good in zip(prediction["scores"], drawn, strict=True) if good]
            for lane, chance in zip(kept, chances, strict=True):
                _write_score(picture, lane, chance)
        return picture

    def outcome(self, predicted: Sequence[Lane], annotated: Sequence[Lane], size: tuple[int, ...]) -> Outcome:
        """Which lanes of a picture of `size` (height, width) are found and missed."""
        found, missed = np.zeros(len(predicted), bool), np.ones(len(annotated), bool)
        if len(predicted) and len(annotated):
            wide = self.width or max(1, round(culane.WIDTH * size[1] / culane.SIZE[0]))
            ious = culane.lane_ious(predicted, annotated, (size[1], size[0]), wide)
            for row, column in enumerate(culane.match(ious)):
                if column >= 0 and ious[row, column] > self.iou:
                    found[column], missed[row] = True, False
        return Outcome(found, missed)

    def _lines(self, image: Image, lanes: Sequence[tuple[Any, Colour]]) -> Image:
        picture = image.copy()
        thickness = max(1, round(image.shape[1] / 250))
        for lane, colour in lanes:
            points = np.clip(np.round(as_lane(lane) * (1 << _SHIFT)), -_LIMIT, _LIMIT).astype(np.int32)
            if len(points):
                cv2.polylines(picture, [points], False, colour, thickness, cv2.LINE_AA, _SHIFT)
        return picture

    def _overlay(self, image: Image, mask: Any) -> Image:
        values = mask.cpu().numpy() if hasattr(mask, "cpu") else np.asarray(mask)
        if values.shape != image.shape[:2]:
            values = cv2.resize(values.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        where = (values > 0) & (values != IGNORED)
        return overlay(image, self._table[values], self.alpha, where=where)


def _annotated(image: Image, targets: Mapping[str, Any], training: bool) -> Sequence[Any] | None:
    """The annotated lanes in pixels of `image`; None if they are not known, or are those of another picture.

    Pictures that went through transforms no longer fit the lanes in `meta`, but their mask does.
    """
    meta = targets.get("meta") or {}
    if "lanes" not in meta or (training and "mask" in targets):
        return None
    same = tuple(meta.get("original_size", image.shape[:2])) == image.shape[:2]
    return meta["lanes"] if same and not (training and meta.get("crop_top")) else None


def _write_score(picture: Image, lane: Lane, chance: float) -> None:
    """Write a probability beside the lowest point of a lane that is inside the picture."""
    height, width = picture.shape[:2]
    inside = lane[(lane[:, 0] >= 0) & (lane[:, 0] < width) & (lane[:, 1] < height)]
    if not len(inside):
        return
    x, y = inside[inside[:, 1].argmax()]
    room = 30
    place = int(np.clip(x, 2, max(width - room - 2, 2))), int(np.clip(y - _MARGIN, 12, height - _MARGIN))
    for shift, colour in (((1, 1), (0, 0, 0)), ((0, 0), WHITE)):
        put_text(picture, f"{chance:.2f}", (place[0] + shift[0], place[1] + shift[1]), room, colour)
