"""Evaluation of lane markings on BDD100K: its own boundary F1, and the accuracy and IoU that papers report.

A mask of BDD100K has a byte a pixel: bits 0 to 2 the category, bit 3 set on the background, bit 4 the style, bit 5 the
direction. Each marking counts in three tasks, in one class of each.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from kd_tasks.engine.progress import track
from kd_tasks.errors import UserError
from kd_tasks.vision.images import read_labels

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TASKS: Mapping[str, tuple[str, ...]] = {
    "direction": ("parallel", "vertical"),
    "style": ("solid", "dashed"),
    "category": (
        "crosswalk",
        "double other",
        "double white",
        "double yellow",
        "road curb",
        "single other",
        "single white",
        "single yellow",
    ),
}
FIRST_BIT = {"direction": 5, "style": 4, "category": 0}
BACKGROUND = 8  # bit 3
EMPTY = 255
THRESHOLDS = (1, 2, 5)
CLASSES_AT_MOST = 16


@functools.cache
def byte_table() -> Bits:
    """For each byte (256,) the classes it belongs to, one bit each, in the order of `TASKS`; 0 for the background."""
    value = np.arange(256)
    table = np.zeros(256, np.uint16)
    bit = 0
    for task, names in TASKS.items():
        here = (value >> FIRST_BIT[task]) % len(names)
        table |= np.left_shift(1, bit + here).astype(np.uint16)
        bit += len(names)
    table[(value & BACKGROUND) > 0] = 0
    return table


def class_table(classes: int) -> Bits:
    """For each value of a mask (256,) its bit: 1 to `classes` belong to one class each, the rest to none."""
    if not 1 <= classes <= CLASSES_AT_MOST:
        raise ValueError(f"boundary scores are of 1 to {CLASSES_AT_MOST} classes, not {classes}.")
    table = np.zeros(256, np.uint16)
    table[1 : classes + 1] = np.left_shift(1, np.arange(classes)).astype(np.uint16)
    return table


def bits_of(mask: Bytes, table: Bits) -> Bits:
    """The bits (H, W) of a mask (H, W), by `byte_table` or `class_table`."""
    return np.asarray(cv2.LUT(np.ascontiguousarray(mask), table.reshape(1, 256)), np.uint16)


def boundary_scores(labels: Bits, predictions: Bits, classes: int, thresholds: Sequence[int] = THRESHOLDS) -> Floats:
    """The F1 of the pixels of each class (classes, thresholds), 0 to 1, of one picture.

    Precision is the share of the predicted pixels that lie at most `threshold` pixels from a labelled one of the class
    (within a disk), recall the reverse. A class without pixels on both sides has 1, on one side alone 0. Fixture
    `metrics/bdd_lane`.

    All classes are handled at once: a pixel carries one bit for each, and to spread over a disk is to combine bits of
    shifted maps, which the disks of all thresholds share.

    Args:
        labels: classes of each pixel (H, W), bit k for class k, see `bits_of`.
        predictions: the same.
        classes: number of classes, at most 16.
        thresholds: radii of the disk in pixels, whole numbers.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"the label map has {labels.shape} pixels, the prediction {predictions.shape}.")
    if not thresholds:
        return np.zeros((classes, 0))
    sides = _cropped(labels, predictions)
    places = [np.flatnonzero(side) for side in sides]
    values = [side.ravel()[place] for side, place in zip(sides, places, strict=True)]
    counts = [_counts(value, classes) for value in values]
    near = [
        [_counts(value & spread.ravel()[place], classes) for spread in spreads(other, thresholds)]
        for value, place, other in zip(values, places, reversed(sides), strict=True)
    ]
    recall, precision = (_shares(np.stack(n, axis=1), c[:, None]) for n, c in zip(near, counts, strict=True))
    total = precision + recall
    scores = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    scores[(counts[0] == 0) & (counts[1] == 0)] = 1
    return scores


def _shares(part: Ints, whole: Ints) -> Floats:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def _cropped(labels: Bits, predictions: Bits) -> tuple[Bits, Bits]:
    """Both without the empty rows and columns around them."""
    used = labels | predictions
    rows, columns = (np.flatnonzero(used.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return labels[:0], predictions[:0]
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.ascontiguousarray(labels[window]), np.ascontiguousarray(predictions[window])


def _counts(bits: Bits, classes: int) -> Ints:
    """Pixels (classes,) of each bit, of pixels (N,)."""
    found = np.bincount(bits, minlength=1 << classes)
    member = (np.arange(len(found))[:, None] >> np.arange(classes)) & 1
    return found @ member


def spreads(bits: Bits, thresholds: Sequence[int]) -> list[Bits]:
    """Maps (H, W) of the bits that occur within each radius of a pixel, that is in a disk around it."""
    height, width = bits.shape
    margin = max(thresholds, default=0)
    # Rows one after the other with a margin between them: every shift of the map is a shift of one long row.
    stride = width + margin
    flat = np.zeros((height + 2 * margin) * stride, np.uint16)
    inside = slice(margin * stride, (margin + height) * stride)
    flat[inside].reshape(height, stride)[:, :width] = bits
    results = [np.zeros(height * stride, np.uint16) for _ in thresholds]
    run = flat.copy()  # the bits up to `half` pixels to the left and the right
    for half in range(margin + 1):
        if half:
            run[half:] |= flat[:-half]
            run[:-half] |= flat[half:]
        for radius, result in zip(thresholds, results, strict=True):
            for row in _rows_of_disk(radius, half):
                result |= run[inside.start + row * stride : inside.stop + row * stride]
    return [result.reshape(height, stride)[:, :width] for result in results]


def _rows_of_disk(radius: int, half: int) -> list[int]:
    """The rows of a disk around 0 that reach `half` pixels to both sides."""
    return [row for row in range(-radius, radius + 1) if math.isqrt(radius**2 - row**2) == half]


def check_thresholds(thresholds: Sequence[int]) -> tuple[int, ...]:
    """`thresholds` as a tuple.

    Raises:
        UserError: if one is no whole number of pixels of at least 0, or there is none.
    """
    if not thresholds or any(not isinstance(value, int) or value < 0 for value in thresholds):
        raise UserError(f"boundary thresholds are {thresholds!r}; give whole numbers of pixels, such as {THRESHOLDS}.")
    return tuple(thresholds)


def byte_scores(labels: Bytes, predictions: Bytes, thresholds: Sequence[int] = THRESHOLDS) -> Floats:
    """The official scores (12, thresholds) of one picture, 0 to 1, classes in the order of `TASKS`.

    Args:
        labels: mask of BDD100K (H, W), a byte a pixel.
        predictions: the same.
        thresholds: in pixels.
    """
    truth, predicted = (bits_of(mask, byte_table()) for mask in (labels, predictions))
    return boundary_scores(truth, predicted, sum(map(len, TASKS.values())), thresholds)


def byte_summary(scores: Floats, thresholds: Sequence[int] = THRESHOLDS) -> dict[str, dict[str, float]]:
    """The official numbers in percent, `{'F1_pix1': {'parallel': ..., 'DIRECTION': ..., 'AVERAGE': ...}}`.

    Args:
        scores: `byte_scores` of each picture, (N, 12, thresholds).
        thresholds: those of `scores`.
    """
    means = 100 * np.asarray(scores, np.float64).mean(axis=0)
    result: dict[str, dict[str, float]] = {}
    for threshold, column in zip(thresholds, means.T, strict=True):
        pieces = dict(
            zip(TASKS, np.split(column, np.cumsum([len(names) for names in TASKS.values()])[:-1]), strict=True)
        )
        row = {name: float(v) for task, names in TASKS.items() for name, v in zip(names, pieces[task], strict=True)}
        tasks = {task.upper(): float(piece.mean()) for task, piece in pieces.items()}
        result[f"F1_pix{threshold}"] = row | tasks | {"AVERAGE": sum(tasks.values()) / len(tasks)}
    return result


def by_class(table: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The AVERAGE of each measure of a `byte_summary`, and its numbers turned around: by class, then by measure."""
    classes: dict[str, dict[str, float]] = {}
    for measure, row in table.items():
        for name, value in row.items():
            classes.setdefault(name, {})[measure] = value
    return classes.pop("AVERAGE", {}), classes


def lane_scores(labels: npt.NDArray[np.bool_], predictions: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Accuracy and IoU of the lane pixels of one picture, 0 to 1, as papers on BDD100K report them.

    Accuracy is the share of the labelled lane pixels that are predicted, 0 without a labelled one; IoU is 0 without a
    lane pixel on either side. Both are averaged over all pictures. Fixture `metrics/bdd_lane/expected_enet_sad.json`.

    Papers: Self Attention Distillation (Hou et al., ICCV 2019), whose test labels draw lanes 2 px wide.

    Args:
        labels: where a lane is, (H, W).
        predictions: where one is predicted, (H, W).
    """
    both = np.count_nonzero(labels & predictions)
    labelled = np.count_nonzero(labels)
    either = labelled + np.count_nonzero(predictions) - both
    return both / labelled if labelled else 0.0, both / either if either else 0.0


def is_marking(mask: Bytes) -> npt.NDArray[np.bool_]:
    """Where a mask of BDD100K has a marking of any kind."""
    return (mask & BACKGROUND) == 0


def evaluate_folder(
    labels: str | Path, results: str | Path, thresholds: Sequence[int] = THRESHOLDS
) -> dict[str, dict[str, float]]:
    """The official evaluation of a folder of masks, and `lane` with `Accuracy` and `IoU` of all markings; in percent.

    Args:
        labels: folder with one PNG a picture, such as `labels/lane/masks/val`.
        results: folder with PNGs of the same names; others are left alone.
        thresholds: in pixels.

    Raises:
        UserError: if there are no labels, a result is missing, sizes differ, or a mask holds impossible bytes; names
            the file.
    """
    radii = check_thresholds(thresholds)
    truths = sorted(Path(labels).glob("*.png"))
    if not truths:
        raise UserError(f"{labels}: there are no PNG files; give a folder of masks, like labels/lane/masks/val.")
    boundary, lanes = [], []
    for truth in track(truths, "BDD100K"):
        pair = read_mask(truth), read_mask(Path(results) / truth.name)
        if pair[0].shape != pair[1].shape:
            raise UserError(
                f"{Path(results) / truth.name}: has {pair[1].shape} pixels, its label {pair[0].shape}. Write "
                "predictions at the size of the label."
            )
        boundary.append(byte_scores(*pair, radii))
        lanes.append(lane_scores(is_marking(pair[0]), is_marking(pair[1])))
    accuracy, iou = 100 * np.mean(lanes, axis=0)
    lane = {"Accuracy": float(accuracy), "IoU": float(iou)}
    return {**byte_summary(np.stack(boundary), radii), "lane": lane}


def read_mask(path: Path) -> Bytes:
    """A mask of BDD100K (H, W), a byte a pixel.

    Raises:
        UserError: if it cannot be read, or holds bytes that mean nothing.
    """
    mask = read_labels(path)
    if mask.dtype != np.uint8:
        raise UserError(f"{path}: holds numbers of 16 bits; a lane mask of BDD100K has one byte a pixel.")
    check_bytes(mask, path)
    return mask


def check_bytes(mask: Bytes, where: object) -> None:
    """Look whether all bytes are markings or the background.

    Raises:
        UserError: for bytes with bits 6 or 7 set that are not 255; names `where`.
    """
    used = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    wrong = used[(used > 63) & (used != EMPTY)]
    if len(wrong):
        raise UserError(
            f"{where}: holds the value {wrong[0]}, which is no lane marking of BDD100K: those are 0 to 63, and "
            f"{EMPTY} is the background. Is it a colour map or a mask of another task?"
        )
