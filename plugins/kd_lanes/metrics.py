"""Metrics of lane detection: TuSimple, CULane and BDD100K."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from mmengine.registry import METRICS

from kd_lanes import bdd, culane, tusimple
from kd_lanes.lane_files import Lane, as_lane, lines_path, read_lines, tidy, write_lines
from kd_tasks.engine.log import log_once
from kd_tasks.errors import UserError, nearest
from kd_tasks.evaluation.metric import Metric
from kd_tasks.paths import data_root as found_root

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

IGNORED = 255
ENCODINGS = {
    "classes": "masks hold class numbers",
    "bytes": "masks hold the bytes of BDD100K, scores of its 12 classes in 3 tasks",
}


@METRICS.register_module()
class TuSimpleMetric(Metric):
    """`Accuracy`, `FP`, `FN` and `F1` in percent, as the official evaluation of TuSimple has them; F1 besides.

    Lanes are compared at the rows that each picture's `h_samples` name; those given at other rows are interpolated
    (see `kd_lanes.tusimple.lane_at_rows`). The time that a picture took is not judged. The scores are those of
    `kd_lanes.tusimple.score_pictures`; files are evaluated by `kd_lanes.tusimple.evaluate_files`.

    Args:
        collect_device: `cpu` or `gpu`, where the ranks' results meet.
        prefix: put before the names, with a slash.
    """

    lower_is_better: ClassVar[tuple[str, ...]] = ("FP", "FN")

    rule = (
        "points within 20 px / cos(angle), lanes found from 85 % of the rows on, means over pictures "
        "(rule of TuSimple); FP is of the predicted, FN of the annotated lanes; F1 of 1 - FP and 1 - FN"
    )

    def __init__(self, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Score one batch: `lanes` of each prediction against `lanes` at the `h_samples` of each meta."""
        metas = data_batch["meta"]
        rows = [tusimple.sample_rows(m.get("h_samples"), m.get("path", "a picture")) for m in metas]
        found = [
            tusimple.lanes_at_rows(_lanes(sample, meta, "the prediction"), h)
            for sample, meta, h in zip(data_samples, metas, rows, strict=True)
        ]
        truth = [
            tusimple.lanes_at_rows(_lanes(m, m, "the picture's meta"), h) for m, h in zip(metas, rows, strict=True)
        ]
        self.results += list(tusimple.score_pictures(found, truth, rows))

    def compute_metrics(self, results: list[Floats]) -> dict[str, float]:
        """The means in percent, from accuracy, FP and FN of each picture."""
        log_once(f"TuSimpleMetric: {self.rule}.")
        return {name: 100 * value for name, value in tusimple.summary(np.stack(results)).items()}


@METRICS.register_module()
class BDDLaneMetric(Metric):
    """`Accuracy` and `IoU` of the lane pixels as papers on BDD100K have them, and its boundary F1; in percent.

    Accuracy and IoU are of all lanes together, of each picture first (see `kd_lanes.bdd.lane_scores`). `F1_pix1` and
    so on are means over the classes, of each picture first (see `kd_lanes.bdd.boundary_scores`); with `bytes` the
    official AVERAGE over its three tasks. After `evaluate`, `per_class` holds them for each class. Where classes are
    numbers, pixels labelled 255 count nowhere. Folders are evaluated by `kd_lanes.bdd.evaluate_folder`.

    Args:
        thresholds: in pixels, of the boundary F1; empty leaves it out, which saves most of the time.
        encoding: `classes`, masks hold 0 for the background and the data set's classes from 1 on; `bytes`, masks hold
            the bytes of BDD100K.
        collect_device: `cpu` or `gpu`, where the ranks' results meet.
        prefix: put before the names, with a slash.

    Raises:
        UserError: if thresholds are no whole numbers, or there is no such encoding.
    """

    def __init__(
        self,
        thresholds: Sequence[int] = bdd.THRESHOLDS,
        encoding: str = "classes",
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if encoding not in ENCODINGS:
            hint = nearest(encoding, ENCODINGS)
            raise UserError(f"BDDLaneMetric: no encoding {encoding!r}.{hint} It can be {', '.join(ENCODINGS)}.")
        self.thresholds = bdd.check_thresholds(thresholds) if thresholds else ()
        self.encoding = encoding
        self.per_class: dict[str, dict[str, float]] = {}

    @property
    def rule(self) -> str:
        """In words, what is counted how."""
        return (
            "accuracy is the share of labelled lane pixels that are predicted, IoU that of the lane class, means over "
            f"pictures, 0 where there is no lane; {ENCODINGS[self.encoding]}"
        )

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Score one batch: `targets['mask']` (H, W) of each sample against `mask` (H, W) of each prediction."""
        masks = data_batch["targets"]["mask"]
        for labels, sample, meta in zip(masks, data_samples, data_batch["meta"], strict=True):
            if "mask" not in sample:
                raise UserError(
                    "BDDLaneMetric: the decoder gives no 'mask'; use LaneDecoder(rule='mask') or mask=True."
                )
            pair = _mask(labels, meta), _mask(sample["mask"], meta)
            if pair[0].shape != pair[1].shape:
                raise UserError(
                    f"{meta.get('path', 'a picture')}: the label has {pair[0].shape} pixels, the prediction "
                    f"{pair[1].shape}; is the data set in test mode, and `original_size` the label's?"
                )
            self.results.append(self._bytes(*pair, meta) if self.encoding == "bytes" else self._classes(*pair))

    def compute_metrics(self, results: list[tuple[tuple[float, float], Floats]]) -> dict[str, float]:
        """The means in percent, from the scores of each picture; sets `per_class`."""
        lanes, boundary = zip(*results, strict=True)
        accuracy, iou = 100 * np.mean(lanes, axis=0)
        scores = np.stack(boundary)
        table = bdd.byte_summary(scores, self.thresholds) if self.encoding == "bytes" else self._summary(scores)
        means, self.per_class = bdd.by_class(table)
        log_once(f"BDDLaneMetric: {self.rule}.")
        return {"Accuracy": float(accuracy), "IoU": float(iou), **means}

    def _bytes(self, labels: Bytes, predictions: Bytes, meta: Mapping[str, Any]) -> tuple[tuple[float, float], Floats]:
        path = meta.get("path", "a picture")
        bdd.check_bytes(labels, path)
        bdd.check_bytes(predictions, f"the prediction for {path}")
        lanes = bdd.lane_scores(bdd.is_marking(labels), bdd.is_marking(predictions))
        return lanes, bdd.byte_scores(labels, predictions, self.thresholds)

    def _classes(self, labels: Bytes, predictions: Bytes) -> tuple[tuple[float, float], Floats]:
        names = self._names()
        ignored = labels == IGNORED
        truth, predicted = (np.where(ignored, np.uint8(0), mask) for mask in (labels, predictions))
        table = bdd.class_table(len(names))
        sides = bdd.bits_of(truth, table), bdd.bits_of(predicted, table)
        boundary = bdd.boundary_scores(sides[0], sides[1], len(names), self.thresholds)
        return bdd.lane_scores(truth > 0, predicted > 0), boundary

    def _summary(self, scores: Floats) -> dict[str, dict[str, float]]:
        means = 100 * scores.mean(axis=0)
        rows = [dict(zip(self._names(), map(float, column), strict=True)) for column in means.T]
        return {
            f"F1_pix{threshold}": row | {"AVERAGE": sum(row.values()) / len(row)}
            for threshold, row in zip(self.thresholds, rows, strict=True)
        }

    def _names(self) -> list[str]:
        names = list((self.dataset_meta or {}).get("classes", ()))[1:]
        if not 1 <= len(names) <= bdd.CLASSES_AT_MOST:
            raise UserError(
                f"BDDLaneMetric: the data set names {len(names)} classes beside the background; it can be 1 to "
                f"{bdd.CLASSES_AT_MOST}, in `metainfo['classes']`."
            )
        return names


def _lanes(holder: Mapping[str, Any], meta: Mapping[str, Any], what: str) -> Sequence[npt.ArrayLike]:
    if "lanes" not in holder:
        known = ", ".join(holder) or "nothing"
        raise UserError(f"{meta.get('path', 'a picture')}: {what} has no 'lanes', but {known}.")
    return list(holder["lanes"])


def _mask(mask: Any, meta: Mapping[str, Any]) -> Bytes:
    """A mask, tensor or array of any integer type, as uint8."""
    values = mask.cpu().numpy() if hasattr(mask, "cpu") else np.asarray(mask)
    if values.dtype == np.uint8:
        return values
    if values.size and (values.min() < 0 or values.max() > 255):
        raise UserError(
            f"{meta.get('path', 'a picture')}: a mask holds values from {values.min()} to {values.max()}, not 0 to 255."
        )
    return values.astype(np.uint8)


@METRICS.register_module()
class CULaneMetric(Metric):
    """F1 of drawn lanes by CULane's rule, in percent: of all pictures, at IoU 0.75, as mF1, and by category.

    Numbers: `F1`, `Precision` and `Recall` at `iou`; `F1@0.75`, or what `more_ious` names; `mF1`, the mean of F1 at IoU
    0.5, 0.55, ... 0.95 (CLRNet); `cross_FP`, the false lanes in pictures of crossroads, where there are any: these have
    no annotated lanes, so that of them only false lanes count, in the total as well. After `evaluate`, `per_class`
    holds F1, precision, recall and the counts of each category, and `matches` those of each picture.

    Counts are those of the official evaluator on the files that `write_to` writes, see `kd_lanes.culane`; fixtures
    `metrics/culane`. Predicted lanes go through `kd_lanes.lane_files.tidy`.

    *Deviations*: where no lane is found, F1 is 0 instead of nan; a ratio of nothing is nan instead of -1.

    Args:
        iou: above which a predicted and an annotated lane belong together.
        width: of a drawn lane in pixels of the picture.
        size: width and height of the pictures, as the official evaluator is told once for all; None: each picture's
            own `original_size`.
        more_ious: further thresholds of which F1 is given.
        annotations: the folder of CULane, to read annotated lanes from its `.lines.txt` files, which also have the
            points beside the picture; None takes `lanes` of each `meta`.
        write_to: a folder for prediction files in the official format.
        collect_device: `cpu` or `gpu`, where the ranks' results meet.
        prefix: put before the names, with a slash.
    """

    lower_is_better: ClassVar[tuple[str, ...]] = ("cross_FP",)

    def __init__(
        self,
        iou: float = culane.IOU,
        width: int = culane.WIDTH,
        size: Sequence[int] | None = None,
        more_ious: Sequence[float] = (0.75,),
        annotations: str | None = None,
        write_to: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        for threshold in (iou, *more_ious):
            if not 0 <= threshold < 1:
                raise UserError(f"CULaneMetric: IoU {threshold} can tell no lanes apart; give one from 0 to below 1.")
        culane.check_drawing(culane.SIZE if size is None else size, width)
        self.iou = iou
        self.width = width
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.more_ious = tuple(more_ious)
        self.annotations = None if annotations is None else found_root(annotations)
        self.write_to = None if write_to is None else Path(write_to)
        self.per_class: dict[str, dict[str, float]] = {}
        self.matches: dict[str, list[culane.Matches]] = {}

    @property
    def rule(self) -> str:
        """In words, when a lane counts as found."""
        return (
            f"lanes drawn {self.width} px wide, matched by the official evaluator's rule, found above IoU {self.iou:g}"
        )

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Match the lanes of one batch.

        Args:
            data_batch: `meta` of each picture with `path`, `original_size` (height, width), `lanes` and, where the
                data have categories, `category`.
            data_samples: dicts with `lanes`, (P, 2) arrays of x, y in pixels of the picture, bottom to top.
        """
        for sample, meta in zip(data_samples, data_batch["meta"], strict=True):
            name = str(meta.get("path", "a picture"))
            if "lanes" not in sample:
                raise UserError(f"CULaneMetric: the decoder gives no 'lanes', but {', '.join(sample) or 'nothing'}.")
            predicted = tidy(sample["lanes"], f"{name}, predicted")
            if self.write_to is not None:
                write_lines(lines_path(self.write_to, name), predicted)
            found = culane.match_lanes(predicted, self._annotated(meta, name), self._size(meta), self.width)
            self.results.append((str(meta.get("category", culane.TOTAL)), found))

    def compute_metrics(self, results: list[tuple[str, culane.Matches]]) -> dict[str, float]:
        """The metrics in percent, from category and matches of each picture; sets `per_class` and `matches`."""
        self.matches = {}
        for category, found in results:
            self.matches.setdefault(category, []).append(found)
        every = [found for _, found in results]
        total = culane.count_all(every, self.iou)
        categories = {name: culane.count_all(self.matches[name], self.iou) for name in _in_order(self.matches)}
        self.per_class = {name: _row(counts) for name, counts in categories.items() if name != culane.TOTAL}
        log_once(f"CULaneMetric: {self.rule}.")
        row = _row(total)
        numbers = {name: row[name] for name in ("F1", "Precision", "Recall")}
        numbers |= {f"F1@{iou:g}": 100 * culane.count_all(every, iou).score for iou in self.more_ious}
        numbers["mF1"] = 100 * culane.mean_f1(every)
        return numbers | ({"cross_FP": float(categories["cross"].fp)} if "cross" in categories else {})

    def _annotated(self, meta: Mapping[str, Any], name: str) -> list[Lane]:
        if self.annotations is not None:
            file = lines_path(self.annotations, name)
            return read_lines(file) if file.is_file() else []
        if "lanes" not in meta:
            raise UserError(f"CULaneMetric: {name} has no 'lanes' in its meta; the data set must be one of lanes.")
        return [as_lane(lane, f"{name}, annotated") for lane in meta["lanes"]]

    def _size(self, meta: Mapping[str, Any]) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        height, width = meta["original_size"]
        return int(width), int(height)


def _in_order(categories: Iterable[str]) -> list[str]:
    """Categories of CULane in the order of its lists, others after them."""
    known = {name: number for number, name in enumerate(culane.CATEGORIES)}
    return sorted(categories, key=lambda name: (known.get(name, len(known)), name))


def _row(counts: culane.CULaneCounts) -> dict[str, float]:
    """Scores in percent, nan for a ratio of nothing, and counts."""
    precision, recall = (value if value >= 0 else math.nan for value in (counts.precision, counts.recall))
    f1 = counts.score if counts.tp + counts.fn else math.nan
    scores = {"F1": f1, "Precision": precision, "Recall": recall}
    return {name: 100 * value for name, value in scores.items()} | {"TP": counts.tp, "FP": counts.fp, "FN": counts.fn}
