"""Evaluation of TuSimple: accuracy, false and missed lanes, and the JSON lines of labels and predictions.

A lane is given by its x at the rows of its picture, `h_samples`, as in the files: a negative x means that the lane is
not there, 0 is a point.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_tasks.engine.log import log_once
from kd_tasks.errors import UserError, nearest
from kd_tasks.vision.images import write_bytes

Floats = npt.NDArray[np.float64]
Record = dict[str, Any]

ABSENT = -2
PIXELS = 20.0  # a point is right within so many pixels across the lane
MATCHED = 0.85  # share of right rows from which on a lane is found
SLOWEST = 200.0  # ms for one picture
LANES_TOO_MANY = 2  # predicted lanes more than annotated ones that are allowed
LANES_COUNTED = 4  # of five annotated lanes, one may be missed
FAR = -100.0  # where absent points stand when they are compared
FAILED = (0.0, 0.0, 1.0)
PICTURES_AT_ONCE = 128
LABEL_KEYS = ("raw_file", "lanes", "h_samples")
PREDICTION_KEYS = ("raw_file", "lanes", "run_time")


def score_pictures(
    predictions: Sequence[Floats],
    annotations: Sequence[Floats],
    h_samples: Sequence[npt.ArrayLike],
    run_times: Sequence[float] | None = None,
) -> Floats:
    """Accuracy, false lanes per predicted lane and missed lanes per annotated lane of each picture, (N, 3), 0 to 1.

    A point is right within 20 px / cos of the lane's angle, the angle of the least-squares line through the annotated
    points, and also where both lanes are absent. A lane is found if a prediction has at least 85 % of its rows right.
    Predictions are not used up: one that fits two lanes finds both, and the false lanes are then negative. Of more
    than four annotated lanes the worst one does not count. A picture has accuracy 0 and all lanes missed if it took
    more than 200 ms or has over two lanes more than are annotated. Fixtures `metrics/tusimple`.

    *Deviations* from the official code: the slope has its closed form instead of a general least-squares solver.

    Args:
        predictions: x of the predicted lanes (lanes, rows) of each picture; negative where a lane is absent.
        annotations: the same of the annotated lanes.
        h_samples: y of the rows, (rows,) of each picture.
        run_times: ms that each picture took; None judges no time.

    Raises:
        ValueError: if lanes have not as many values as their picture has rows.
    """
    rows = [np.asarray(h, np.float64) for h in h_samples]
    for number, (predicted, annotated, h) in enumerate(zip(predictions, annotations, rows, strict=True)):
        if predicted.shape[1:] != h.shape or annotated.shape[1:] != h.shape:
            raise ValueError(
                f"picture {number}: lanes are {predicted.shape} and {annotated.shape}, not (lanes, {len(h)} rows)."
            )
    times = np.zeros(len(rows)) if run_times is None else np.asarray(run_times, np.float64)
    scores = np.empty((len(rows), 3))
    for chosen in _blocks(rows):
        found, truth = ([lanes[i] for i in chosen] for lanes in (predictions, annotations))
        scores[chosen] = _block_scores(found, truth, np.stack([rows[i] for i in chosen]), times[chosen])
    return scores


def _blocks(rows: Sequence[Floats]) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of pictures with one number of rows, a block at a time."""
    lengths = np.array([len(h) for h in rows], np.int64)
    for length in np.unique(lengths):
        found = np.flatnonzero(lengths == length)
        for start in range(0, len(found), PICTURES_AT_ONCE):
            yield found[start : start + PICTURES_AT_ONCE]


def _block_scores(
    predictions: Sequence[Floats], annotations: Sequence[Floats], rows: Floats, run_times: Floats
) -> Floats:
    """`score_pictures` of pictures with one number of rows; `rows` (N, rows)."""
    predicted, annotated = (np.array([len(lanes) for lanes in side]) for side in (predictions, annotations))
    owner = np.repeat(np.arange(len(rows)), annotated)
    truth = np.concatenate(annotations)
    best = _best_shares(np.concatenate(predictions), truth, predicted, owner, point_thresholds(truth, rows[owner]))

    found = np.bincount(owner, best >= MATCHED, len(rows))
    total = np.bincount(owner, best, len(rows))
    worst = np.full(len(rows), np.inf)
    np.minimum.at(worst, owner, best)
    many = annotated > LANES_COUNTED
    missed = annotated - found
    missed -= many & (missed > 0)
    counted = np.clip(annotated, 1, LANES_COUNTED)
    scores = np.stack(
        [
            (total - np.where(many, worst, 0)) / counted,
            (predicted - found) / np.maximum(predicted, 1),
            missed / counted,
        ],
        axis=1,
    )
    scores[predicted == 0, 1] = 0
    scores[(run_times > SLOWEST) | (predicted > annotated + LANES_TOO_MANY)] = FAILED
    return scores


def _best_shares(
    predictions: Floats, truth: Floats, predicted: npt.NDArray[Any], owner: npt.NDArray[Any], limits: Floats
) -> Floats:
    """The share of right rows of each annotated lane under the prediction that fits it best; 0 without one."""
    partners = predicted[owner]
    first = np.cumsum(predicted) - predicted
    lane = np.repeat(np.arange(len(truth)), partners)
    number = np.arange(len(lane)) - np.repeat(np.cumsum(partners) - partners, partners)
    theirs, ours = (np.where(x >= 0, x, FAR) for x in (predictions, truth))
    right = np.abs(theirs[first[owner[lane]] + number] - ours[lane]) < limits[lane, None]
    best = np.zeros(len(truth))
    np.maximum.at(best, lane, np.count_nonzero(right, axis=1) / max(truth.shape[1], 1))
    return best


def point_thresholds(lanes: Floats, rows: Floats) -> Floats:
    """How far off a point may be along x, (L,), by the angle of each annotated lane; upright up to one point.

    Args:
        lanes: x (L, rows), negative where absent.
        rows: y (L, rows).
    """
    present = lanes >= 0
    count = np.maximum(present.sum(axis=1, keepdims=True), 1)
    x, y = (
        np.where(present, values - np.sum(values, axis=1, where=present, keepdims=True) / count, 0)
        for values in (lanes, rows)
    )
    spread = np.sum(y * y, axis=1)
    slope = np.divide(np.sum(x * y, axis=1), spread, out=np.zeros_like(spread), where=spread > 0)
    return PIXELS / np.cos(np.arctan(slope))


def f1_score(false: float, missed: float) -> float:
    """The harmonic mean of `1 - false` and `1 - missed`, as papers report it; 0 where there is none."""
    precision, recall = 1 - false, 1 - missed
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def summary(scores: Floats, pictures: int | None = None) -> dict[str, float]:
    """`Accuracy`, `FP`, `FN` and `F1`, 0 to 1, of `score_pictures`.

    Args:
        scores: (N, 3).
        pictures: by how many the sums are divided; None, by N.
    """
    count = len(scores) if pictures is None else pictures
    accuracy, false, missed = (math.fsum(column) / count for column in scores.T)
    return {"Accuracy": accuracy, "FP": false, "FN": missed, "F1": f1_score(false, missed)}


@dataclass(frozen=True)
class Line:
    """One line of a file, for messages."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path}: line {self.number}"


def read_records(path: str | Path, keys: Sequence[str] = LABEL_KEYS) -> list[Record]:
    """The objects of a file of JSON lines; blank lines are passed over.

    Args:
        path: such as `label_data_0313.json`, `test_label.json` or predictions.
        keys: what each line must have.

    Raises:
        UserError: if the file is missing, or a line is no JSON or lacks a key; names the line.
    """
    return [record for _, record in numbered_records(Path(path), keys)]


def numbered_records(path: Path, keys: Sequence[str] = LABEL_KEYS) -> list[tuple[Line, Record]]:
    """`read_records` with the place of each."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}.") from error
    places = [(Line(path, number), line) for number, line in enumerate(lines, 1) if line.strip()]
    return [(place, _parsed(place, line, keys)) for place, line in places]


def _parsed(place: Line, line: str, keys: Sequence[str]) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: is not JSON: {error}. Each line must be one object with {_listed(keys)}.") from None
    if not isinstance(record, dict):
        raise UserError(f"{place}: is a {type(record).__name__}; each line must be one object with {_listed(keys)}.")
    for key in keys:
        if key not in record:
            raise UserError(f"{place}: has no {key!r}.{nearest(key, record)} Each line needs {_listed(keys)}.")
    return record


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def sample_rows(h_samples: Any, where: object) -> Floats:
    """The `h_samples` of a record as array (rows,).

    Raises:
        UserError: if they are no list of at least one number; names `where`.
    """
    try:
        rows = np.array(h_samples, np.float64)
    except (TypeError, ValueError):
        rows = np.empty(0)
    if rows.ndim != 1 or not len(rows):
        raise UserError(f"{where}: 'h_samples' must be a list of the y of the rows, such as 160, 170 to 710.")
    return rows


def lane_rows(lanes: Any, rows: int, where: object) -> Floats:
    """The `lanes` of a record as array (lanes, rows).

    Args:
        lanes: a list of x for each lane.
        rows: number of `h_samples`.
        where: what a message names.

    Raises:
        UserError: if a lane has another number of values, or they are no numbers.
    """
    if not isinstance(lanes, list) or any(not isinstance(lane, list) for lane in lanes):
        raise UserError(f"{where}: 'lanes' must be a list with one list of x for each lane.")
    for number, lane in enumerate(lanes, 1):
        if len(lane) != rows:
            raise UserError(
                f"{where}: lane {number} has {len(lane)} values, but the picture has {rows} h_samples. Give one x for "
                f"each of them, {ABSENT} where the lane is absent."
            )
    try:
        return np.array(lanes, np.float64).reshape(len(lanes), rows)
    except (TypeError, ValueError):
        raise UserError(f"{where}: 'lanes' holds values that are no numbers.") from None


def evaluate_files(predictions: str | Path, annotations: str | Path) -> dict[str, float]:
    """The official evaluation of a file of predictions, `Accuracy`, `FP`, `FN`, and `F1` besides, 0 to 1.

    As in the official code, a picture that is predicted twice counts twice, so that another one may be missing; that
    is reported as a warning.

    Args:
        predictions: JSON lines with `raw_file`, `lanes` and `run_time` (ms); `h_samples` may be there.
        annotations: JSON lines with `raw_file`, `lanes` and `h_samples`, such as `test_label.json`.

    Raises:
        UserError: if there are not as many predictions as annotations, a picture is unknown, or lanes do not fit
            `h_samples`; names the line.
    """
    labels = numbered_records(Path(annotations), LABEL_KEYS)
    predicted = numbered_records(Path(predictions), PREDICTION_KEYS)
    if not labels:
        raise UserError(f"{annotations}: holds no annotation.")
    known = {str(record["raw_file"]): (place, record) for place, record in labels}
    _check_pictures(Path(predictions), predicted, known, len(labels))
    # Annotated lanes of a picture are read once, however often it is predicted.
    truth = {name: _label_arrays(*entry) for name, entry in known.items()}
    pairs = [(_prediction_array(place, r, truth[r["raw_file"]][1]), *truth[r["raw_file"]]) for place, r in predicted]
    found, lanes, rows = zip(*pairs, strict=True)
    return summary(score_pictures(found, lanes, rows, [_run_time(*entry) for entry in predicted]), len(known))


def _check_pictures(path: Path, predicted: Sequence[tuple[Line, Record]], known: Mapping[str, Any], count: int) -> None:
    names = Counter(str(record["raw_file"]) for _, record in predicted)
    missing = [name for name in known if name not in names]
    for place, record in predicted:
        name = str(record["raw_file"])
        if name not in known:
            raise UserError(f"{place}: raw_file {name!r} is not among the annotations.{nearest(name, known)}")
    if len(predicted) != count:
        example = f"; there is none for {missing[0]}" if missing else ""
        raise UserError(f"{path}: has {len(predicted)} predictions for {count} annotated pictures{example}.")
    if missing:
        twice = next(name for name, number in names.items() if number > 1)
        log_once(
            f"{path}: {twice} is predicted more than once and counts so; {missing[0]} is not predicted at all "
            f"({len(missing)} pictures).",
            logging.WARNING,
        )


def _label_arrays(place: Line, record: Record) -> tuple[Floats, Floats]:
    """Lanes (lanes, rows) and rows (rows,) of one annotation."""
    rows = sample_rows(record["h_samples"], place)
    return lane_rows(record["lanes"], len(rows), place), rows


def _prediction_array(place: Line, record: Record, rows: Floats) -> Floats:
    if "h_samples" in record and not np.array_equal(sample_rows(record["h_samples"], place), rows):
        raise UserError(
            f"{place}: its h_samples are not the {len(rows)} of the annotation, {rows.min():g} to {rows.max():g}. "
            "Predict x at the rows that the annotation or the test task has."
        )
    return lane_rows(record["lanes"], len(rows), place)


def _run_time(place: Line, record: Record) -> float:
    try:
        return float(record["run_time"])
    except (TypeError, ValueError):
        raise UserError(f"{place}: run_time is {record['run_time']!r}; give the milliseconds of the picture.") from None


def lane_at_rows(points: npt.ArrayLike, rows: npt.ArrayLike) -> Floats:
    """x (rows,) of a lane, -2 where it is absent.

    A lane whose points all lie on rows is present at just these. Of any other lane, rows between two points get the x
    of the straight line through them.

    Args:
        points: x, y of the lane (P, 2), in any order of y.
        rows: y of the rows.
    """
    lane = np.asarray(points, np.float64).reshape(-1, 2)
    wanted = np.asarray(rows, np.float64)
    lane = lane[(lane[:, 0] >= 0) & np.isfinite(lane).all(axis=1)]
    if not len(lane):
        return np.full(wanted.shape, float(ABSENT))
    lane = lane[np.argsort(lane[:, 1], kind="stable")]
    x = np.interp(wanted, lane[:, 1], lane[:, 0], left=ABSENT, right=ABSENT)
    on_rows = np.isin(lane[:, 1], wanted).all()
    return np.where(np.isin(wanted, lane[:, 1]), x, ABSENT) if on_rows else x


def lanes_at_rows(lanes: Sequence[npt.ArrayLike], rows: npt.ArrayLike) -> Floats:
    """x (lanes, rows) of several lanes, see `lane_at_rows`."""
    shape = (len(lanes), len(np.asarray(rows)))
    return np.array([lane_at_rows(lane, rows) for lane in lanes], np.float64).reshape(shape)


def prediction_record(
    raw_file: str, lanes: Sequence[npt.ArrayLike], h_samples: Sequence[float], run_time: float = 0.0
) -> Record:
    """One line of a file of predictions, from lanes (P, 2) in pixels of the original picture; `run_time` in ms."""
    x = np.round(lanes_at_rows(lanes, h_samples), 2)
    return {"raw_file": raw_file, "lanes": x.tolist(), "run_time": run_time}


def write_records(path: str | Path, records: Sequence[Record]) -> None:
    """Write JSON lines, whole or not at all: labels or predictions.

    Raises:
        UserError: if the file cannot be written.
    """
    write_bytes(path, "".join(json.dumps(record) + "\n" for record in records).encode())
