"""The metric of facial landmarks: NME by a named norm, failure rates, areas under the curve, by subset."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmengine.registry import DATASETS, METRICS

from kd_landmarks.ced import check_format, write_ced
from kd_landmarks.nme import (
    AUC_RULES,
    MISSING,
    ZERO_NORMS,
    FaceErrors,
    Floats,
    Mask,
    Norm,
    accuracy,
    area_under_curve,
    face_errors,
    failure_rate,
    mean_error,
    norm_of,
)
from kd_tasks.engine.evaluate import EvaluationResult
from kd_tasks.engine.log import log_once
from kd_tasks.engine.progress import track
from kd_tasks.errors import UserError, nearest
from kd_tasks.evaluation.metric import Metric
from kd_tasks.task import collate_samples

FULL = "full"
NAMED = 5
BATCH = 64
# Sum and number of the point errors of a face and its norm (3,); its subsets; its path.
Result = tuple[Floats, tuple[str, ...], str]


@METRICS.register_module()
class LandmarkMetric(Metric):
    """NME, failure rates and AUC of landmarks in percent, over all faces and over each subset or attribute.

    `NME` is the mean distance of predicted and annotated points divided by the norm, which `note`, the log, `per_class`
    in the reports and the axis of the CED name. `FR@t` is the share of faces whose error is above t, `AUC@t` the area
    under the cumulative error distribution from 0 to t. Faces whose norm is zero, or without an annotated point, take
    no part; their number is logged and they are named.

    After `evaluate`: `errors` (N,) holds the NME of each face as a fraction, in the order of the data set and
    not-a-number where there is none, `paths` their pictures, and `per_class` the numbers and `faces`, the faces that
    take part, of each subset in the data's `meta['subsets']`; `full`, or what `metainfo['whole']` calls it, is all
    faces pooled. Fixtures `metrics/landmarks`.

    Args:
        norm: `inter_ocular`, `inter_pupil` or what else the data set's metainfo has in `norms`; `box`, the square root
            of the box's area; `face_size`, its longer side; None for the data set's `default_norm`.
        missing: how points that are not annotated count: `per_face`, each face's mean over its annotated points
            (D-X-Y, SAN); `all`, as if they were annotated (HRNet); `pooled`, one mean over all annotated points of all
            faces (mmpose), while FR and AUC stay those of faces.
        thresholds: of failure rate and AUC, as fractions.
        auc: `grid`, 2000 thresholds and trapezoids (D-X-Y), or `area`, the area itself; they differ by less than 0.1
            points with a few hundred faces or more.
        accuracy: also give `ACC@t`, the share of faces whose error is below t (D-X-Y). A face at t is neither a failure
            nor accurate.
        zero_norm: `left_out`, or `inf`: a face without a norm has an infinite error and is a failure (HRNet, D-X-Y).
        ced: a file for the plot of the cumulative error distribution, relative to the folder of the results (a run, or
            `kd-tasks test --out`); not written where there is none, as in validation. Ends with .png, .svg or .pdf.
        collect_device: `cpu` or `gpu`, where the ranks' results meet.
        prefix: put before the names, with a slash.

    Raises:
        UserError: when built, for impossible options; in `process`, for predictions that are not finite or not as many
            as the points; in `evaluate`, if no face has a norm above zero.
    """

    lower_is_better = ("NME", "FR@0.07", "FR@0.08", "FR@0.1")

    def __init__(
        self,
        norm: str | None = None,
        missing: str = "per_face",
        thresholds: Sequence[float] = (0.08, 0.1),
        auc: str = "grid",
        accuracy: bool = False,
        zero_norm: str = "left_out",
        ced: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        for name, value, known in (
            ("missing", missing, MISSING),
            ("auc", auc, AUC_RULES),
            ("zero_norm", zero_norm, ZERO_NORMS),
        ):
            if value not in known:
                raise UserError(
                    f"LandmarkMetric: {name} is {value!r}.{nearest(str(value), known)} Known: {', '.join(known)}."
                )
        self.thresholds = tuple(thresholds)
        if not all(0 < threshold < 1 for threshold in self.thresholds):
            raise UserError(
                f"LandmarkMetric: thresholds are {self.thresholds}; give fractions between 0 and 1, such as 0.08."
            )
        self.norm_name = norm
        self.missing = missing
        self.auc = auc
        self.accuracy = accuracy
        self.zero_norm = zero_norm
        self.ced = check_format(ced) if ced is not None else None
        self.errors: Floats = np.zeros(0)
        self.paths: list[str] = []
        self.per_class: dict[str, dict[str, float]] = {}

    @property
    def norm(self) -> Norm:
        """What errors are divided by in the data set."""
        try:
            return norm_of(self.norm_name, self.dataset_meta or {})
        except UserError as error:
            raise UserError(f"LandmarkMetric: {error}") from None

    @property
    def note(self) -> str:
        """The norm in words, with other rules than the usual ones."""
        parts = [f"NME is normalised by {self.norm.words}"]
        if self.missing != "per_face":
            parts.append(f"the mean is {MISSING[self.missing]}")
        if self.auc != "grid":
            parts.append(f"AUC is the {AUC_RULES[self.auc]}")
        if self.zero_norm != "left_out":
            parts.append("a face without a norm has an infinite error")
        return "; ".join(parts) + "."

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep one batch.

        Args:
            data_batch: `targets` with `points` (N, K, 2) in pixels of the original pictures, `visible` (N, K), all of
                them if there is none, and `box` (N, 4) for a norm of the box; each `meta` with `path` and `subsets`.
            data_samples: dicts with `points` (K, 2), in the same pixels.
        """
        targets, metas, norm = data_batch["targets"], data_batch["meta"], self.norm
        points = _array(_required(targets, "points"))
        visible = _array(targets["visible"]).astype(bool) if "visible" in targets else np.ones(points.shape[:2], bool)
        boxes = _array(_required(targets, "box", norm)) if norm.ends is None else None
        _check_norm(norm, points)
        found = _predictions(data_samples, points, metas)
        _check_points(points, np.ones_like(visible) if self.missing == "all" else visible, metas)
        faces = face_errors(found, points, visible, norm, boxes, self.missing)
        self.results += [
            (numbers, tuple(meta.get("subsets", ())), str(meta.get("path", "")))
            for numbers, meta in zip(np.stack(faces, axis=-1), metas, strict=True)
        ]

    def compute_metrics(self, results: list[Result]) -> dict[str, float]:
        """The numbers in percent over all faces; sets `errors`, `paths` and `per_class`."""
        numbers_of_faces, subsets, paths = zip(*results, strict=True)
        faces = FaceErrors(*np.stack(numbers_of_faces).T)
        self.paths = list(paths)
        self._report(faces)
        self.errors = faces.errors(self.zero_norm)
        numbers = self._numbers(faces)
        self.per_class = self._by_subset(faces, subsets)
        self._write_ced()
        return numbers

    def _numbers(self, faces: FaceErrors) -> dict[str, float]:
        errors = faces.errors(self.zero_norm)
        known = errors[~np.isnan(errors)]
        numbers = {"NME": mean_error(faces, self.missing, self.zero_norm)}
        numbers |= {f"FR@{t:g}": failure_rate(known, t) for t in self.thresholds}
        numbers |= {f"AUC@{t:g}": area_under_curve(known, t, self.auc) for t in self.thresholds}
        if self.accuracy:
            numbers |= {f"ACC@{t:g}": accuracy(known, t) for t in self.thresholds}
        return {name: 100 * value for name, value in numbers.items()}

    def _by_subset(self, faces: FaceErrors, subsets: Sequence[tuple[str, ...]]) -> dict[str, dict[str, float]]:
        members = {name: np.array([name in of_face for of_face in subsets]) for name in _names(subsets)}
        whole = str((self.dataset_meta or {}).get("whole", FULL))
        if not any(mask.all() for mask in members.values()):
            members = {whole: np.ones(len(subsets), bool), **members}
        known = ~np.isnan(faces.errors(self.zero_norm))
        return {
            name: {**self._numbers(faces.at(mask)), "faces": int((known & mask).sum())}
            for name, mask in members.items()
        }

    def _report(self, faces: FaceErrors) -> None:
        """Log the norm, and the faces that have none."""
        log_once(f"LandmarkMetric: {self.note}")
        without, empty = faces.norm <= 0, (faces.counted == 0) & (faces.norm > 0)
        if not faces.measured.any():
            raise UserError(
                f"LandmarkMetric: of {len(self.paths)} faces, none has a norm ({self.norm.short}) above zero and an "
                f"annotated point, so there is no NME; the first is {self.paths[0] or 'unnamed'}. Check the "
                "annotations, or name another norm."
            )
        effect = "count as infinite errors" if self.zero_norm == "inf" else "are left out"
        if without.any():
            self._warn(without, f"no {self.norm.short} above zero and {effect}")
        if empty.any():
            self._warn(empty, "no annotated point and are left out")

    def _warn(self, which: Mask, words: str) -> None:
        named = [self.paths[place] for place in np.flatnonzero(which)]
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        listed = ", ".join(named[:NAMED])
        log_once(f"LandmarkMetric: {len(named)} of {len(which)} faces have {words}: {listed}{more}.", logging.WARNING)

    def _write_ced(self) -> None:
        if self.ced is None or (self.folder is None and not self.ced.is_absolute()):
            return
        first = self.thresholds[0] if self.thresholds else 0.08
        limit = max((*self.thresholds, 0.1))
        path = (self.folder or Path()) / self.ced
        write_ced(path, {"": self.errors}, self.norm.words, first, limit, self.auc)


# --- Predictions in a file -------------------------------------------------------------------------------------------


def evaluate_predictions(
    file: str | Path,
    dataset: Any,
    metric: LandmarkMetric | Mapping[str, Any] | None = None,
    one_based: bool = False,
) -> EvaluationResult:
    """The metric of predictions that lie in a file, such as those of another toolbox.

    Args:
        file: `predictions.jsonl` as `kd-tasks test --out` writes it, one `{"path": ..., "points": [[x, y], ...]}` a
            line; or `.npz` with `path` (N,) and `points` (N, K, 2). Points are in pixels of the original picture. Of
            several faces in one picture, the first entry is for the first face in the data set, and so on.
        dataset: a data set of landmarks in test mode, or the config of one.
        metric: a metric, or the options of one.
        one_based: the file's upper left pixel is (1, 1), as in MATLAB, instead of (0, 0).

    Raises:
        UserError: if the file cannot be read, or does not have one prediction for each face.
    """
    data = DATASETS.build({"test_mode": True, **dataset}) if isinstance(dataset, Mapping) else dataset
    if not getattr(data, "test_mode", True):
        raise UserError(
            f"{file}: predictions are in pixels of the original pictures; build the data set with test_mode=True."
        )
    judge = metric if isinstance(metric, LandmarkMetric) else LandmarkMetric(**(metric or {}))
    judge.dataset_meta = data.metainfo
    given = _read_predictions(Path(file))
    taken: dict[str, int] = defaultdict(int)
    for start in track(range(0, len(data), BATCH), "Landmarks"):
        batch = collate_samples([data[index] for index in range(start, min(start + BATCH, len(data)))])
        found = []
        for meta in batch["meta"]:
            path = str(meta["path"])
            if taken[path] >= len(given.get(path, ())):
                had = f"only {taken[path]} for its faces" if taken[path] else "none"
                close = nearest(path, given) if not taken[path] else ""
                raise UserError(f"{file}: each face needs a prediction; {path} has {had}.{close}")
            found.append({"points": given[path][taken[path]] - (1 if one_based else 0)})
            taken[path] += 1
        judge.process(batch, found)
    _check_left(Path(file), given, taken)
    return EvaluationResult(judge.evaluate(len(data)), judge.per_class, judge.note)


def _check_left(file: Path, given: Mapping[str, Sequence[Floats]], taken: Mapping[str, int]) -> None:
    left = [path for path, predictions in given.items() if len(predictions) > taken.get(path, 0)]
    if left:
        raise UserError(
            f"{file}: {len(left)} pictures have more predictions than the data set has faces in them, such as "
            f"{left[0]}: {len(given[left[0]])} and {taken.get(left[0], 0)}. Is it the file of another split?"
        )


def _read_predictions(file: Path) -> dict[str, list[Floats]]:
    if not file.is_file():
        raise UserError(f"{file}: no such file of predictions.")
    if file.suffix not in (".jsonl", ".npz"):
        raise UserError(f"{file}: predictions are in a .jsonl or a .npz file, see `evaluate_predictions`.")
    found: dict[str, list[Floats]] = defaultdict(list)
    for path, points in _of_arrays(file) if file.suffix == ".npz" else _of_lines(file):
        if points.ndim != 2 or points.shape[1] != 2:
            raise UserError(f"{file}: the points of {path} are {points.shape}, not (points, 2).")
        found[path].append(points)
    return dict(found)


def _of_lines(file: Path) -> Iterator[tuple[str, Floats]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                yield str(entry["path"]), np.asarray(entry["points"], np.float64)
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f'{file}: line {number} is not {{"path": ..., "points": [[x, y], ...]}}: {line.strip()[:80]}'
                ) from None


def _of_arrays(file: Path) -> Iterator[tuple[str, Floats]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            paths, points = arrays["path"], arrays["points"].astype(np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: it must hold the arrays `path` and `points`, and no objects: {error}") from None
    if points.ndim != 3 or len(paths) != len(points):
        raise UserError(f"{file}: path is {paths.shape} and points {points.shape}, not (N,) and (N, K, 2).")
    yield from zip(map(str, paths), points, strict=True)


# --- Parts -----------------------------------------------------------------------------------------------------------


def _required(targets: Mapping[str, Any], key: str, norm: Norm | None = None) -> Any:
    if key in targets:
        return targets[key]
    purpose = f", which {norm.words} needs" if norm is not None else ""
    raise UserError(
        f"LandmarkMetric: the targets have no {key!r}{purpose}, but {', '.join(targets) or 'nothing'}; the data set "
        "must be one of landmarks."
    )


def _check_norm(norm: Norm, points: Floats) -> None:
    highest = max((point for end in norm.ends or () for point in end), default=0)
    if highest >= points.shape[1]:
        raise UserError(
            f"LandmarkMetric: {norm.words} needs point {highest}, and faces have {points.shape[1]} points, from 0 to "
            f"{points.shape[1] - 1}."
        )


def _predictions(samples: Sequence[Mapping[str, Any]], points: Floats, metas: Sequence[Mapping[str, Any]]) -> Floats:
    """The predicted points (N, K, 2)."""
    found = []
    for sample, truth, meta in zip(samples, points, metas, strict=True):
        if "points" not in sample:
            raise UserError(
                f"LandmarkMetric: the decoder gives no 'points', but {', '.join(sample) or 'nothing'}; take a "
                "LandmarkDecoder."
            )
        values = torch.as_tensor(sample["points"])
        if values.shape != truth.shape:
            raise UserError(
                f"{_name(meta)}: {len(values)} points are predicted and {len(truth)} annotated; network and data set "
                "must have the same points."
            )
        found.append(values)
    predictions: Floats = torch.stack(found).detach().cpu().double().numpy()
    if not np.isfinite(predictions).all():
        first = int(np.flatnonzero(~np.isfinite(predictions).all(axis=(1, 2)))[0])
        broken = int((~np.isfinite(predictions[first]).all(-1)).sum())
        raise UserError(
            f"{_name(metas[first])}: {broken} of {points.shape[1]} predicted points are not finite. Did the training "
            "diverge?"
        )
    return predictions


def _check_points(points: Floats, counted: Mask, metas: Sequence[Mapping[str, Any]]) -> None:
    if not np.isfinite(points).all() and not np.isfinite(points[counted]).all():
        bad = (~np.isfinite(points).all(-1) & counted).any(-1)
        raise UserError(f"{_name(metas[int(np.flatnonzero(bad)[0])])}: an annotated point that counts is not finite.")


def _names(subsets: Sequence[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(name for of_face in subsets for name in of_face))


def _name(meta: Mapping[str, Any]) -> str:
    return str(meta.get("path", "a picture"))


def _array(values: Any) -> npt.NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
