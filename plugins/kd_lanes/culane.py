"""CULane's evaluation, equal to the official C++ evaluator: splines, drawn lanes, their matching with slack, counts.

Lanes are (P, 2) arrays of x, y in pixels of the picture. Fixtures `metrics/culane`.
"""

import math
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from kd_lanes.lane_files import Lane, as_lane, check_odd, lines_path, read_lines, read_list, without_repeats
from kd_tasks.engine.progress import track
from kd_tasks.errors import UserError, nearest

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

CATEGORIES = ("normal", "crowd", "hlight", "shadow", "noline", "arrow", "curve", "cross", "night")
TOTAL = "total"
SIZE = (1640, 590)
WIDTH = 30
IOU = 0.5
MF1_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))

STEPS = 50  # of the spline between two points
SLACK = 1e-2  # of the matching: how much two lanes may differ from the best and still be taken for it
WIDEST = 32767  # line that OpenCV draws
OUTSIDE = -(2**31)  # what C++ makes of a coordinate that no int holds
PICTURES_AT_ONCE = 16  # that a process gets


@dataclass(frozen=True)
class CULaneCounts:
    """Lanes found, found in vain, and missed; counts of several pictures are added.

    `precision`, `recall` and `f1` are 0 to 1 with the official evaluator's special values; `score` is F1 for reports.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "CULaneCounts") -> "CULaneCounts":
        return CULaneCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP); -1 if no lane is predicted."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else -1.0

    @property
    def recall(self) -> float:
        """TP / (TP + FN); -1 if no lane is annotated."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else -1.0

    @property
    def f1(self) -> float:
        """The official F-measure: -1 with no lane at all; nan if there are lanes on both sides and none is found."""
        precision, recall = self.precision, self.recall
        return 2 * precision * recall / (precision + recall) if precision + recall else math.nan

    @property
    def score(self) -> float:
        """2 TP / (2 TP + FP + FN): `f1` where that is a measure, 0 if no lane is found, nan with no lane at all."""
        lanes = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / lanes if lanes else math.nan


@dataclass(frozen=True)
class Matches:
    """The outcome of a picture, from which counts at every threshold follow.

    Attributes:
        annotated: number of annotated lanes.
        predicted: number of predicted lanes.
        ious: IoU of each pair that was matched.
    """

    annotated: int
    predicted: int
    ious: tuple[float, ...] = ()

    def counts(self, iou: float = IOU) -> CULaneCounts:
        """A pair counts as found if its IoU is above, not at, the threshold."""
        tp = sum(value > iou for value in self.ious)
        return CULaneCounts(tp, self.predicted - tp, self.annotated - tp)


@dataclass(frozen=True)
class CULaneResult:
    """The evaluation of files.

    Attributes:
        matches: of each picture, by category; of a single list, under the list's name.
        notes: what the official evaluator takes in silence, a sentence each: missing files, blank lines, points that
            stand twice in a row.
    """

    matches: Mapping[str, Sequence[Matches]]
    notes: tuple[str, ...] = field(default=(), repr=False)

    def counts(self, iou: float = IOU) -> dict[str, CULaneCounts]:
        """Counts of each category, and of all together under `total`."""
        categories = {name: count_all(matches, iou) for name, matches in self.matches.items()}
        return categories | {TOTAL: sum(categories.values(), CULaneCounts())}

    @property
    def mf1(self) -> float:
        """See `mean_f1`, over all categories."""
        return mean_f1(chain.from_iterable(self.matches.values()))


def count_all(matches: Iterable[Matches], iou: float = IOU) -> CULaneCounts:
    """Counts over pictures."""
    return sum((match.counts(iou) for match in matches), CULaneCounts())


def mean_f1(matches: Iterable[Matches]) -> float:
    """mF1 (CLRNet): the mean over IoU 0.5, 0.55, ... 0.95 of F1, as `CULaneCounts.score` has it."""
    matches = list(matches)
    return float(np.mean([count_all(matches, iou).score for iou in MF1_IOUS]))


# --- one picture ------------------------------------------------------------------------------------------------------


def evaluate_lanes(
    predicted: Sequence[npt.ArrayLike],
    annotated: Sequence[npt.ArrayLike],
    size: tuple[int, int] = SIZE,
    width: int = WIDTH,
    iou: float = IOU,
) -> CULaneCounts:
    """Counts of one picture.

    Args:
        predicted: lanes (P, 2); their order matters, see `match`.
        annotated: lanes (P, 2).
        size: width and height of the picture in pixels.
        width: of a drawn lane in pixels.
        iou: above which a pair counts as found.

    Raises:
        UserError: if a lane is no (P, 2) array of finite numbers.
    """
    return match_lanes(predicted, annotated, size, width).counts(iou)


def match_lanes(
    predicted: Sequence[npt.ArrayLike],
    annotated: Sequence[npt.ArrayLike],
    size: tuple[int, int] = SIZE,
    width: int = WIDTH,
) -> Matches:
    """The lanes of one picture, matched; for the arguments see `evaluate_lanes`."""
    if not len(predicted) or not len(annotated):
        return Matches(len(annotated), len(predicted))
    ious = lane_ious(predicted, annotated, size, width)
    pairs = match(ious)
    found = tuple(float(ious[i, j]) for i, j in enumerate(pairs) if j >= 0)
    return Matches(len(annotated), len(predicted), found)


def lane_ious(
    predicted: Sequence[npt.ArrayLike],
    annotated: Sequence[npt.ArrayLike],
    size: tuple[int, int] = SIZE,
    width: int = WIDTH,
) -> Floats:
    """IoU (A, B) of each annotated with each predicted lane, as drawn; each is drawn once.

    A lane with fewer than two points has IoU 0 with all; two lanes outside the picture have nan.
    """
    rows, columns = ([_draw(as_lane(lane), size, width) for lane in lanes] for lanes in (annotated, predicted))
    return np.array([[_iou(a, b) for b in columns] for a in rows], np.float64).reshape(len(rows), len(columns))


def check_drawing(size: Sequence[int], width: int) -> None:
    """Raise UserError if no lane of `width` pixels can be drawn into pictures of `size` (width, height)."""
    sides = tuple(size) if isinstance(size, Sequence) else (size,)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"the size of the pictures is {sides}; give width and height in pixels.")
    if not 1 <= width <= WIDEST:
        raise UserError(f"lanes are to be drawn {width} pixels wide; give 1 to {WIDEST}.")


@dataclass(frozen=True)
class Drawn:
    """A lane in a picture: the part (h, w) of the mask that has it, where that begins, and the number of its pixels."""

    mask: Bytes
    left: int
    top: int
    area: int


def draw_lane(lane: npt.ArrayLike, size: tuple[int, int] = SIZE, width: int = WIDTH) -> Bytes:
    """The mask (H, W) of a lane, 1 where it is, as the official evaluator draws it; 0 with fewer than two points."""
    mask = np.zeros(size[::-1], np.uint8)
    drawn = _draw(as_lane(lane), size, width)
    if drawn is not None:
        height, length = drawn.mask.shape
        mask[drawn.top : drawn.top + height, drawn.left : drawn.left + length] = drawn.mask
    return mask


def _draw(lane: Lane, size: tuple[int, int], width: int) -> Drawn | None:
    """None for a lane with fewer than two points.

    OpenCV cuts lines at the border of the picture before it rounds them, so that drawing into a crop could differ:
    the lane is drawn into a whole picture, of which only the part with the lane is ever touched.
    """
    if len(lane) < 2:
        return None
    points = _pixels(lane if len(lane) == 2 else spline(lane))
    canvas = np.zeros(size[::-1], np.uint8)
    cv2.polylines(canvas, [points], isClosed=False, color=1, thickness=width)
    margin = width // 2 + 2
    low, high = points.min(axis=0).astype(np.int64) - margin, points.max(axis=0).astype(np.int64) + margin + 1
    (left, top), (right, bottom) = np.clip(low, 0, size), np.clip(high, 0, size)
    mask = canvas[top:bottom, left:right]
    return Drawn(mask, int(left), int(top), cv2.countNonZero(mask) if mask.size else 0)


def _pixels(points: Lane) -> npt.NDArray[np.int32]:
    """Points on whole pixels, halves to even, without those that repeat the one before; at least two."""
    rounded = np.rint(points.astype(np.float64))
    held = np.abs(rounded) < -OUTSIDE  # false for nan
    pixels = np.where(held, rounded, OUTSIDE).astype(np.int32)
    changes = np.append((pixels[1:] != pixels[:-1]).any(axis=1), True)
    distinct = pixels[changes]
    return np.repeat(distinct, 2, axis=0) if len(distinct) == 1 else distinct


def _iou(first: Drawn | None, second: Drawn | None) -> float:
    if first is None or second is None:
        return 0.0
    common = _common(first, second)
    union = first.area + second.area - common
    return common / union if union else math.nan


def _common(first: Drawn, second: Drawn) -> int:
    """Number of pixels that both lanes cover."""
    left, top = max(first.left, second.left), max(first.top, second.top)
    right = min(one.left + one.mask.shape[1] for one in (first, second))
    bottom = min(one.top + one.mask.shape[0] for one in (first, second))
    if right <= left or bottom <= top:
        return 0
    parts = [one.mask[top - one.top : bottom - one.top, left - one.left : right - one.left] for one in (first, second)]
    return cv2.countNonZero(cv2.bitwise_and(*parts))


# --- spline -----------------------------------------------------------------------------------------------------------


def spline(lane: npt.ArrayLike, steps: int = STEPS) -> Lane:
    """Points ((P - 1) * steps + 1, 2) of a natural cubic spline through a lane (P, 2), over the length of its chords.

    Every operation is that of the official evaluator, in its order, because the last digit decides about pixels: the
    points are float32, the rest float64. So a point that stands twice in a row makes all points nan but the last.
    """
    lane = as_lane(lane)
    if len(lane) < 2:
        return lane
    offsets = np.diff(lane, axis=0).astype(np.float64)  # the difference itself is float32
    if len(lane) == 2:
        ramp = np.arange(steps + 1)[:, None]
        return (lane[0].astype(np.float64) + offsets * ramp / steps).astype(np.float32)
    lengths = np.sqrt(offsets[:, 0] ** 2 + offsets[:, 1] ** 2)
    if not lengths.all():
        return np.concatenate([np.full(((len(lane) - 1) * steps, 2), np.nan, np.float32), lane[-1:]])
    bends = _second_derivatives(offsets, lengths)
    h = lengths[:, None]
    linear = offsets / h - (2 * h * bends[:-1] + h * bends[1:]) / 6
    square, cubic = bends[:-1] / 2, (bends[1:] - bends[:-1]) / (6 * h)
    t = ((lengths / steps)[:, None] * np.arange(steps))[..., None]
    curves = lane[:-1, None].astype(np.float64) + linear[:, None] * t + square[:, None] * t**2 + cubic[:, None] * t**3
    return np.concatenate([curves.reshape(-1, 2).astype(np.float32), lane[-1:]])


def _second_derivatives(offsets: Floats, lengths: Floats) -> Floats:
    """(P, 2) of a natural spline from its chords (P - 1, 2), by the tridiagonal algorithm on plain floats."""
    slopes = offsets / lengths[:, None]
    lower, upper = lengths[:-1].tolist(), lengths[1:].tolist()
    right = (6 * (slopes[1:] - slopes[:-1])).tolist()
    ratio, x, y = 0.0, 0.0, 0.0
    rows = []
    for a, c, (dx, dy) in zip(lower, upper, right, strict=True):
        pivot = 2 * (a + c) - a * ratio
        ratio, x, y = c / pivot, (dx - a * x) / pivot, (dy - a * y) / pivot
        rows.append((ratio, x, y))
    bends = np.zeros((len(lengths) + 1, 2))
    x = y = 0.0
    for number in range(len(rows), 0, -1):
        ratio, dx, dy = rows[number - 1]
        x, y = dx - ratio * x, dy - ratio * y
        bends[number] = x, y
    return bends


# --- matching ---------------------------------------------------------------------------------------------------------


def match(similarity: npt.ArrayLike) -> list[int]:
    """The column that belongs to each row (A, B), -1 for none, by the official evaluator's Hungarian matching.

    It takes an edge for tight within `SLACK`, and the first that is: of two predictions whose IoU with a lane differ by
    less, the one listed first wins, even if only the other is above the threshold. A best assignment, as
    `scipy.optimize.linear_sum_assignment` has it, differs. Edges of nan are never taken.
    """
    matrix = np.asarray(similarity, np.float64)
    rows, columns = matrix.shape
    if rows > columns:
        return _Matching(matrix.T.tolist()).owners
    result = [-1] * rows
    for column, row in enumerate(_Matching(matrix.tolist()).owners):
        if row >= 0:
            result[row] = column
    return result


class _Matching:
    """Grows a matching row by row along augmenting paths of tight edges; there are no more rows than columns.

    Attributes:
        owners: the row of each column, -1 for none.
    """

    def __init__(self, matrix: list[list[float]]) -> None:
        self.matrix = matrix
        self.owners = [-1] * (len(matrix[0]) if matrix else 0)
        self.row_weights = [max((v for v in row if not math.isnan(v)), default=-math.inf) for row in matrix]
        self.column_weights = [0.0] * len(self.owners)
        for row in range(len(matrix)):
            if not self._place(row):
                return

    def _place(self, row: int) -> bool:
        """Find a column for `row`; False if no edge is left that could become tight."""
        while True:
            rows: set[int] = set()
            columns: set[int] = set()
            if self._augment(row, rows, columns):
                return True
            gaps = [self._gap(i, j) for i in rows for j in range(len(self.owners)) if j not in columns]
            step = min((gap for gap in gaps if not math.isnan(gap)), default=math.inf)
            if math.isinf(step):
                return False
            for i in rows:
                self.row_weights[i] -= step
            for j in columns:
                self.column_weights[j] += step

    def _augment(self, row: int, rows: set[int], columns: set[int]) -> bool:
        """Give `row` a column along tight edges, the first in the order of the columns; notes what it passes."""
        rows.add(row)
        for column, owner in enumerate(self.owners):
            if column in columns or not abs(self._gap(row, column)) < SLACK:
                continue
            columns.add(column)
            if owner < 0 or self._augment(owner, rows, columns):
                self.owners[column] = row
                return True
        return False

    def _gap(self, row: int, column: int) -> float:
        return self.row_weights[row] + self.column_weights[column] - self.matrix[row][column]


# --- files ------------------------------------------------------------------------------------------------------------


def evaluate_files(
    predictions_root: str | Path,
    annotations_root: str | Path,
    list_file: str | Path,
    size: tuple[int, int] = SIZE,
    width: int = WIDTH,
    odd: str = "error",
    workers: int = 1,
) -> CULaneResult:
    """Evaluate `.lines.txt` files, whoever wrote them, as the official evaluator does.

    A missing file is a picture without lanes, and a blank line a lane without points; see `CULaneResult.notes`.

    Args:
        predictions_root: folder with `driver_.../00000.lines.txt` of the predicted lanes.
        annotations_root: the same of the annotated ones: the folder of CULane.
        list_file: a list of pictures, or the folder `list/test_split`, whose files `test0_normal.txt` to
            `test8_night.txt` give the categories.
        size: width and height of the pictures in pixels.
        width: of a drawn lane in pixels.
        odd: what an odd count of numbers in a line does: `error`; `drop`, the last is left out, as the official
            evaluator has it.
        workers: processes that share the pictures; 1 evaluates in this one.

    Raises:
        UserError: if a folder or list is missing, no picture of the list has a file of annotations, or a file has a
            fault; see `read_lines`.
    """
    check_odd(odd)
    check_drawing(size, width)
    predictions, annotations = _folder(predictions_root, "predictions"), _folder(annotations_root, "annotations")
    lists = read_lists(list_file)
    jobs = [
        Job(lines_path(predictions, name), lines_path(annotations, name), size, width, odd)
        for name in chain.from_iterable(lists.values())
    ]
    if not any(job.annotations.is_file() for job in jobs):
        example = f", such as {jobs[0].annotations}" if jobs else ""
        raise UserError(f"{list_file}: none of its {len(jobs)} pictures has a file of annotations{example}.")
    outcomes = _run(jobs, workers)
    done = iter(outcomes)
    matches = {category: [next(done)[0] for _ in names] for category, names in lists.items()}
    return CULaneResult(matches, tuple(chain.from_iterable(notes for _, notes in outcomes)))


@dataclass(frozen=True)
class Job:
    """One picture to evaluate: its two files, and how."""

    predictions: Path
    annotations: Path
    size: tuple[int, int]
    width: int
    odd: str


def _evaluate(job: Job) -> tuple[Matches, list[str]]:
    notes: list[str] = []
    predicted = _read(job.predictions, "predictions", job.odd, notes)
    annotated = _read(job.annotations, "annotations", job.odd, notes)
    return match_lanes(predicted, annotated, job.size, job.width), notes


def _read(path: Path, what: str, odd: str, notes: list[str]) -> list[Lane]:
    if not path.is_file():
        notes.append(f"{path}: no file of {what}; the picture counts as one without lanes.")
        return []
    lanes = read_lines(path, odd)
    for number, lane in enumerate(lanes, start=1):
        if len(lane) < 2:
            notes.append(f"{path}, line {number}: a lane of fewer than two points; it counts, and matches none.")
        elif len(without_repeats(lane)) < len(lane):
            notes.append(f"{path}, line {number}: a point stands twice in a row; the spline of that lane is nan.")
    return lanes


def _run(jobs: list[Job], workers: int) -> list[tuple[Matches, list[str]]]:
    if workers < 1:
        raise UserError(f"workers is {workers}; give 1 or more.")
    if workers == 1:
        return list(track(map(_evaluate, jobs), "CULane", len(jobs)))
    # Processes are spawned, because a forked one can hang in OpenCV or torch.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread) as pool:
        return list(track(_results(pool, jobs), "CULane", len(jobs)))


def _results(pool: ProcessPoolExecutor, jobs: list[Job]) -> Iterator[tuple[Matches, list[str]]]:
    return pool.map(_evaluate, jobs, chunksize=PICTURES_AT_ONCE)


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _folder(root: str | Path, what: str) -> Path:
    if not Path(root).is_dir():
        raise UserError(f"{root}: there is no such folder of {what}; give the one that has driver_... in it.")
    return Path(root)


def read_lists(list_file: str | Path) -> dict[str, list[str]]:
    """The pictures of each category, or of a single list under its name; see `evaluate_files`."""
    path = Path(list_file)
    if not path.is_dir():
        return {path.stem: read_list(path)}
    files = {category: path / category_file(category) for category in CATEGORIES}
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        found = sorted(file.name for file in path.iterdir())
        hint = nearest(missing[0], found)
        raise UserError(
            f"{path}: the lists {', '.join(missing)} are missing.{hint} Give a folder like list/test_split."
        )
    return {category: read_list(file) for category, file in files.items()}


def category_file(category: str) -> str:
    """The name of the list of a category, `test0_normal.txt` to `test8_night.txt`."""
    return f"test{CATEGORIES.index(category)}_{category}.txt"
