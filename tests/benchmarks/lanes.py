"""Evaluation of lanes against the seconds of the official evaluators, and against their way done by hand.

The official seconds are CPU time of one core, measured once on another machine; they are the promise, what is drawn or
computed by hand here in turns the check that holds on any machine.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from kd_lanes import bdd, culane, tusimple
from kd_lanes.lane_files import Lane, lines_path, write_lines
from scipy.ndimage import binary_dilation
from scipy.optimize import linear_sum_assignment

from kd_tasks.engine.progress import track
from tests.benchmarks import Row, in_turns

CULANE_SECONDS = 8.61  # of the official C++ evaluator for 200 pictures with 4 annotated and 4 predicted lanes
CULANE_PICTURES = 200
LANES = 4
POINTS = 29
TUSIMPLE_SECONDS = 6.1  # of the official evaluator for 2,782 pictures with 4 annotated and 4 predicted lanes
TUSIMPLE_PICTURES = 2782
BDD_SECONDS = 196.4  # of the official evaluator for 100 frames
BDD_FRAMES = 100
Pictures = list[tuple[list[Lane], list[Lane]]]


def run(rounds: int = 3) -> list[Row]:
    """All comparisons."""
    return [*culane_rows(rounds), *tusimple_rows(rounds), *bdd_rows(rounds)]


def against_seconds(name: str, call: Callable[[], object], official: float, limit: float, rounds: int) -> Row:
    """CPU seconds of `call` against those of an official evaluator."""
    call()
    return Row(name, [cpu_seconds(call) for _ in track(range(rounds), name)], [official] * rounds, limit)


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of this process for one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


# --- CULane -----------------------------------------------------------------------------------------------------------


def culane_rows(rounds: int, pictures: int = CULANE_PICTURES, by_pair: int = 10) -> list[Row]:
    """The evaluation of files, and of lanes in memory against drawing both lanes of each pair."""
    cv2.setNumThreads(1)
    made = random_pictures(pictures)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_culane(root, made)
        name = f"CULane files, {pictures} pictures, {LANES} x {LANES} lanes: C++, CPU s"
        files = against_seconds(name, culane_files(root), CULANE_SECONDS, 0.5, rounds)
    few = made[:by_pair]
    name = f"CULane, {by_pair} pictures: drawing by pairs"
    return [files, in_turns(name, culane_ours(few), culane_by_pair(few), 0.2, rounds, warm_up=1)]


def random_pictures(count: int, seed: int = 0) -> Pictures:
    """Predicted and annotated lanes of pictures: curves from below to the horizon, predictions beside them."""
    generator = np.random.default_rng(seed)
    return [random_picture(generator) for _ in range(count)]


def random_picture(generator: np.random.Generator) -> tuple[list[Lane], list[Lane]]:
    """Four lanes of 29 points as predicted, shifted and bent a little, and as annotated."""
    y = 590.0 - 10.0 * np.arange(POINTS)
    share = (590 - y) / 290
    horizon, bend = generator.uniform(600, 1000), generator.uniform(-150, 150)
    bottoms = np.array([-200, 450, 1150, 1850]) + generator.uniform(-60, 60, LANES)
    annotated = [np.stack([b + (horizon - b) * share + bend * share**2, y], axis=1) for b in bottoms]
    shifts = generator.normal(0, 8, (LANES, 2))
    predicted = [
        lane + np.stack([a + b * share, np.zeros(POINTS)], axis=1)
        for lane, (a, b) in zip(annotated, shifts, strict=True)
    ]
    return tuple([lane.round(3).astype(np.float32) for lane in lanes] for lanes in (predicted, annotated))  # type: ignore[return-value]


def write_culane(root: Path, pictures: Pictures) -> None:
    """Folders `pred` and `CULane` with files of lanes, and `list.txt`."""
    names = [f"driver/{number:05d}.jpg" for number in range(len(pictures))]
    (root / "list.txt").write_text("".join(f"/{name}\n" for name in names))
    for name, sides in zip(names, pictures, strict=True):
        for folder, lanes in zip(("pred", "CULane"), sides, strict=True):
            write_lines(lines_path(root / folder, name), lanes)


def culane_files(root: Path) -> Callable[[], object]:
    """The evaluation of files in one process."""
    return lambda: culane.evaluate_files(root / "pred", root / "CULane", root / "list.txt").counts()


def culane_ours(pictures: Pictures) -> Callable[[], culane.CULaneCounts]:
    """Counts of lanes in memory."""
    return lambda: culane.count_all(culane.match_lanes(*picture) for picture in pictures)


def culane_by_pair(pictures: Pictures) -> Callable[[], culane.CULaneCounts]:
    """The same as one writes it by hand: two whole pictures are drawn for each pair of lanes, line by line."""

    def evaluate() -> culane.CULaneCounts:
        total = culane.CULaneCounts()
        for predicted, annotated in pictures:
            ious = np.array([[iou_by_hand(a, b) for b in predicted] for a in annotated])
            pairs = linear_sum_assignment(ious, maximize=True)
            found = int((ious[pairs] > culane.IOU).sum())
            total += culane.CULaneCounts(found, len(predicted) - found, len(annotated) - found)
        return total

    return evaluate


def iou_by_hand(first: Lane, second: Lane) -> float:
    """IoU of two lanes in two whole pictures."""
    masks = [drawn_by_hand(lane) for lane in (first, second)]
    common = int((masks[0] & masks[1]).sum())
    return common / (int(masks[0].sum()) + int(masks[1].sum()) - common)


def drawn_by_hand(lane: Lane, size: tuple[int, int] = culane.SIZE, width: int = culane.WIDTH) -> npt.NDArray[np.uint8]:
    """The mask of a lane, one line after the other."""
    mask = np.zeros(size[::-1], np.uint8)
    points = np.rint(culane.spline(lane) if len(lane) > 2 else lane).astype(np.int32).tolist()
    for start, end in itertools.pairwise(points):
        cv2.line(mask, start, end, 1, width)
    return mask


# --- TuSimple ---------------------------------------------------------------------------------------------------------

Records = list[tusimple.Record]


def tusimple_rows(rounds: int, pictures: int = TUSIMPLE_PICTURES, by_lane: int = 300) -> list[Row]:
    """The evaluation of files, and of lists in memory against a loop over lanes with a least-squares solver."""
    predicted, annotated = random_records(pictures)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "pred.json", Path(folder) / "gt.json"
        for path, records in zip(files, (predicted, annotated), strict=True):
            tusimple.write_records(path, records)
        name = f"TuSimple files, {pictures} pictures, {LANES} x {LANES} lanes: official, CPU s"
        whole = against_seconds(name, lambda: tusimple.evaluate_files(*files), TUSIMPLE_SECONDS, 1 / 6.1, rounds)
    few = predicted[:by_lane], annotated[:by_lane]
    name = f"TuSimple, {by_lane} pictures: loop over lanes"
    return [whole, in_turns(name, tusimple_ours(*few), tusimple_by_lane(*few), 0.2, rounds, warm_up=1)]


def random_records(count: int, seed: int = 0) -> tuple[Records, Records]:
    """Lines of predictions and labels: straight lanes at 56 rows, absent above the horizon, predictions beside them."""
    generator = np.random.default_rng(seed)
    rows = np.arange(160, 711, 10)
    predicted, annotated = [], []
    for number in range(count):
        slopes, bottoms = generator.uniform(-1.5, 1.5, LANES), generator.uniform(100, 1180, LANES)
        x = bottoms[:, None] - slopes[:, None] * (710 - rows)
        x[:, : generator.integers(6, 14)] = tusimple.ABSENT
        noisy = np.where(x >= 0, np.maximum(x + generator.normal(0, 18, x.shape), 0), x)
        name = f"clips/0530/{number}/20.jpg"
        annotated.append({"raw_file": name, "lanes": x.round().astype(int).tolist(), "h_samples": rows.tolist()})
        predicted.append({"raw_file": name, "lanes": noisy.round().astype(int).tolist(), "run_time": 10})
    return predicted, annotated


def tusimple_ours(predicted: Records, annotated: Records) -> Callable[[], dict[str, float]]:
    """The scores of lists of lanes."""

    def evaluate() -> dict[str, float]:
        sides = ([np.array(r["lanes"], np.float64) for r in records] for records in (predicted, annotated))
        rows, times = [r["h_samples"] for r in annotated], [r["run_time"] for r in predicted]
        return tusimple.summary(tusimple.score_pictures(*sides, rows, times))

    return evaluate


def tusimple_by_lane(predicted: Records, annotated: Records) -> Callable[[], dict[str, float]]:
    """The same as one writes it by hand, picture by picture and lane by lane."""

    def evaluate() -> dict[str, float]:
        pairs = zip(predicted, annotated, strict=True)
        return tusimple.summary(np.array([picture_by_hand(p, a) for p, a in pairs]))

    return evaluate


def picture_by_hand(predicted: tusimple.Record, annotated: tusimple.Record) -> tuple[float, float, float]:
    """Accuracy, FP and FN of one picture."""
    found, lanes, rows = predicted["lanes"], annotated["lanes"], np.array(annotated["h_samples"], float)
    if predicted["run_time"] > 200 or len(found) > len(lanes) + 2:
        return 0.0, 0.0, 1.0
    best = []
    for lane in lanes:
        limit = 20 / np.cos(angle_by_hand(np.array(lane, float), rows))
        best.append(max((share_by_hand(p, lane, limit) for p in found), default=0.0))
    hits = sum(share >= 0.85 for share in best)
    missed, total = len(lanes) - hits, sum(best)
    if len(lanes) > 4:
        missed, total = max(missed - 1, 0), total - min(best)
    counted = max(min(len(lanes), 4), 1)
    return total / counted, (len(found) - hits) / len(found) if found else 0.0, missed / counted


def angle_by_hand(x: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]) -> float:
    """The angle of an annotated lane, fitted by a general solver."""
    there = x >= 0
    if there.sum() < 2:
        return 0.0
    design = np.stack([rows[there], np.ones(there.sum())], axis=1)
    return float(np.arctan(np.linalg.lstsq(design, x[there])[0][0]))


def share_by_hand(predicted: list[float], annotated: list[float], limit: float) -> float:
    """The share of right rows of one predicted lane."""
    sides = [np.array([value if value >= 0 else -100 for value in lane]) for lane in (predicted, annotated)]
    return float(np.mean(np.abs(sides[0] - sides[1]) < limit))


# --- BDD100K ----------------------------------------------------------------------------------------------------------

Masks = list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]


def bdd_rows(rounds: int, frames: int = 2, height: int = 720, width: int = 1280) -> list[Row]:
    """The boundary F1 of `BDD_FRAMES` frames, and of a few against one dilation a class, threshold and side."""
    cv2.setNumThreads(1)
    masks = [(random_mask(2 * i, height, width), random_mask(2 * i + 1, height, width)) for i in range(frames)]
    name = f"BDD100K boundary F1, {BDD_FRAMES} frames {width} x {height}: official, CPU s"
    many = (masks * BDD_FRAMES)[:BDD_FRAMES]
    whole = against_seconds(name, bdd_ours(many), BDD_SECONDS, 1 / 50, rounds)
    name = f"BDD100K boundary F1, {frames} frames: a dilation each"
    return [whole, in_turns(name, bdd_ours(masks), bdd_by_dilation(masks), 1 / 50, rounds=1, warm_up=0)]


def random_mask(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A mask in the bytes of BDD100K with ten markings of any kind, from the lower border to a horizon."""
    generator = np.random.default_rng(seed)
    mask = np.full((height, width), bdd.EMPTY, np.uint8)
    for _ in range(10):
        start, end = (int(x) for x in generator.integers(0, width, 2))
        byte = int(generator.integers(0, 8) + 16 * generator.integers(0, 4))
        cv2.line(mask, (start, height - 1), (end, height * 2 // 5), byte, max(1, height // 90))
    return mask


def bdd_ours(masks: Masks) -> Callable[[], dict[str, dict[str, float]]]:
    """The official numbers of pairs of masks."""
    return lambda: bdd.byte_summary(np.stack([bdd.byte_scores(*pair) for pair in masks]))


def bdd_by_dilation(masks: Masks) -> Callable[[], dict[str, dict[str, float]]]:
    """The same as one writes it by hand: each class is cut out and dilated with each disk, on both sides."""

    def evaluate() -> dict[str, dict[str, float]]:
        return bdd.byte_summary(np.stack([frame_by_hand(*pair) for pair in masks]))

    return evaluate


def frame_by_hand(labels: npt.NDArray[np.uint8], predictions: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """F1 (12, 3) of one frame."""
    rows = []
    for shift, count in ((5, 2), (4, 2), (0, 8)):
        for value in range(count):
            sides = [((m & 8) == 0) & ((m >> shift) % count == value) for m in (labels, predictions)]
            rows.append([f1_by_hand(sides[0], sides[1], radius) for radius in (1, 2, 5)])
    return np.array(rows)


def f1_by_hand(labels: npt.NDArray[np.bool_], predictions: npt.NDArray[np.bool_], radius: int) -> float:
    """F1 of one class within a disk."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    near = [binary_dilation(side, x * x + y * y <= radius * radius) for side in (labels, predictions)]
    if not labels.any() or not predictions.any():
        return float(labels.any() == predictions.any())
    precision, recall = near[0][predictions].mean(), near[1][labels].mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
