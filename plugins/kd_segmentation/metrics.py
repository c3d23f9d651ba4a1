"""Metrics of segmentation: mIoU and its relatives, and the pixel-level evaluation of Cityscapes.

Counts are int64 and are kept one sample at a time, so that what a distributed sampler repeats can be left out.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from mmengine.registry import METRICS

from kd_segmentation.classes import CITYSCAPES_IDS
from kd_tasks.engine.log import log_once
from kd_tasks.errors import UserError, nearest
from kd_tasks.evaluation.metric import Metric
from kd_tasks.paths import data_root as found_root
from kd_tasks.vision.images import read_labels

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Metric names, as users know them, with the name of the measure of one class.
MEASURES = {
    "mIoU": "IoU",
    "mAcc": "Acc",
    "mDice": "Dice",
    "mFscore": "Fscore",
    "mPrecision": "Precision",
    "mRecall": "Recall",
}
METRIC_NAMES = ("mIoU", "mAcc", "aAcc", "mDice", "mFscore", "mPrecision", "mRecall")
RULES = {
    "skip": "classes without a pixel in labels and predictions are left out of the means (rule of mmsegmentation)",
    "zero": "classes without a pixel in labels and predictions count 0 in the means (rule of structured distillation)",
}
CLASSES_AT_MOST = 254
# OpenCV gives histograms as float32, which holds whole numbers up to here.
PIXELS_AT_ONCE = 2**24


def joint_histogram(labels: Bytes, predictions: Bytes) -> Counts:
    """Number of pixels (256, 256) of each label (row) with each prediction (column), of two uint8 maps of one shape."""
    counts = np.zeros((256, 256), np.int64)
    rows = [np.ascontiguousarray(values).reshape(1, -1) for values in (labels, predictions)]
    for start in range(0, labels.size, PIXELS_AT_ONCE):
        pieces = [row[:, start : start + PIXELS_AT_ONCE] for row in rows]
        counts += cv2.calcHist(pieces, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    return counts


def class_areas(labels: Bytes, predictions: Bytes, num_classes: int, ignore_index: int = 255) -> Counts:
    """Pixels (3, num_classes) of each class: right, predicted, labelled.

    Pixels labelled `ignore_index` do not count. Of a pixel with another label that is no class, the prediction counts;
    a prediction that is no class counts nowhere.

    Args:
        labels: (H, W), uint8.
        predictions: (H, W), uint8.
        num_classes: C; the classes are 0 to C - 1.
        ignore_index: label of pixels that do not count.
    """
    counts = joint_histogram(labels, predictions)
    if 0 <= ignore_index < len(counts):
        counts[ignore_index] = 0
    areas = np.stack([counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)])
    return areas[:, :num_classes]


def class_scores(areas: Counts, absent: str = "skip") -> dict[str, Floats]:
    """IoU, Acc, Dice, Fscore, Precision and Recall of each class, 0 to 1, by name.

    Args:
        areas: (3, C), see `class_areas`.
        absent: what a class without pixels has: `skip`, nan; `zero`, 0.
    """
    right, predicted, labelled = areas.astype(np.float64)
    precision, recall = _ratio(right, predicted), _ratio(right, labelled)
    scores = {
        "IoU": _ratio(right, predicted + labelled - right),
        "Acc": recall,
        "Dice": _ratio(2 * right, predicted + labelled),
        "Fscore": _ratio(2 * precision * recall, precision + recall),
        "Precision": precision,
        "Recall": recall,
    }
    return {name: np.nan_to_num(values) for name, values in scores.items()} if absent == "zero" else scores


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole != 0)


def mean_of_known(values: Iterable[float]) -> float:
    """The mean of all values that are not nan; nan if there is none."""
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@METRICS.register_module()
class SegmentationMetric(Metric):
    """mIoU, mAcc, aAcc, mDice, mFscore, mPrecision and mRecall in percent, at the labels' own size.

    The numbers are mmsegmentation's (fixtures `metrics/miou`): sums over all images first, then ratios of each class,
    then their mean. A class that is predicted but in no label has IoU 0, and no accuracy. A class whose precision and
    recall are 0 has Dice 0 but no F-score. After `evaluate`, `per_class` holds the measures of each class in percent.

    *Deviations* from mmsegmentation: counts are integers, and values are not rounded.

    Args:
        ignore_index: label of pixels that do not count.
        absent: what a class without pixels does in the means: `skip`, left out; `zero`, counts 0.
        metrics: which of the names above to give; the first is the main one.
        collect_device: `cpu` or `gpu`, where the ranks' results meet.
        prefix: put before the names, with a slash.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        absent: str = "skip",
        metrics: Sequence[str] = ("mIoU", "mAcc", "aAcc", "mDice", "mFscore"),
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if absent not in RULES:
            raise UserError(f"SegmentationMetric: absent is {absent!r}; it can be 'skip' or 'zero'.")
        for name in metrics:
            if name not in METRIC_NAMES:
                hint = nearest(name, METRIC_NAMES)
                raise UserError(f"SegmentationMetric: no metric {name!r}.{hint} Known: {', '.join(METRIC_NAMES)}.")
        self.ignore_index = ignore_index
        self.absent = absent
        self.metrics = tuple(metrics)
        self.per_class: dict[str, dict[str, float]] = {}

    @property
    def rule(self) -> str:
        """In words, what a class without pixels does in the means."""
        return RULES[self.absent]

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count one batch: `targets['mask']` (H, W) of each sample against `mask` (H, W) of each prediction, uint8."""
        classes = len(self._classes())
        for labels, prediction, meta in zip(
            data_batch["targets"]["mask"], data_samples, data_batch["meta"], strict=True
        ):
            pair = as_bytes(labels, meta), as_bytes(prediction["mask"], meta)
            if pair[0].shape != pair[1].shape:
                raise UserError(
                    f"{meta.get('path', 'a sample')}: the label map has {pair[0].shape} pixels, the prediction "
                    f"{pair[1].shape}; is the data set in test mode, and `original_size` the label's?"
                )
            self.results.append(class_areas(*pair, classes, self.ignore_index))

    def compute_metrics(self, results: list[Counts]) -> dict[str, float]:
        """The metrics in percent, from `class_areas` of each sample."""
        names = self._classes()
        areas: Counts = np.stack(results).sum(axis=0)
        scores = {name: 100 * values for name, values in class_scores(areas, self.absent).items()}
        shown = [MEASURES[name] for name in self.metrics if name in MEASURES] or ["IoU"]
        self.per_class = {
            name: {measure: float(scores[measure][i]) for measure in shown} for i, name in enumerate(names)
        }
        right, _, labelled = areas.sum(axis=1)
        means = {name: mean_of_known(scores[measure]) for name, measure in MEASURES.items()}
        means["aAcc"] = float(100 * right / labelled) if labelled else math.nan
        log_once(f"SegmentationMetric: {self.rule}.")
        return {name: means[name] for name in self.metrics}

    def _classes(self) -> list[str]:
        names = list((self.dataset_meta or {}).get("classes", ()))
        if not names:
            raise UserError("SegmentationMetric: the data set names no classes; its `metainfo` needs 'classes'.")
        if len(names) > CLASSES_AT_MOST:
            raise UserError(f"SegmentationMetric: {len(names)} classes; masks of uint8 hold {CLASSES_AT_MOST}.")
        return names


def as_bytes(mask: Any, meta: Mapping[str, Any]) -> Bytes:
    """A mask, tensor or array of any integer type, as uint8 array.

    Raises:
        UserError: if it has values that uint8 does not hold; names the sample by its `path`.
    """
    values = mask.cpu().numpy() if hasattr(mask, "cpu") else np.asarray(mask)
    if values.dtype == np.uint8:
        return values
    if values.size and (values.min() < 0 or values.max() > 255):
        raise UserError(
            f"{meta.get('path', 'a sample')}: a mask holds values from {values.min()} to {values.max()}, but classes "
            "are 0 to 254 and 255 is ignored. Correct the label files, or map their values in the data set."
        )
    return values.astype(np.uint8)


@dataclass(frozen=True)
class CityscapesLabel:
    """One label id of Cityscapes: `evaluated` labels are the 19 train ids; `has_instances` those with instance ids."""

    id: int
    name: str
    category: str
    evaluated: bool
    has_instances: bool


_CATEGORIES = {
    "void": ("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground"),
    "flat": ("road", "sidewalk", "parking", "rail track"),
    "construction": ("building", "wall", "fence", "guard rail", "bridge", "tunnel"),
    "object": ("pole", "polegroup", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
}
CITYSCAPES_LABELS = tuple(
    CityscapesLabel(i, name, category, i in CITYSCAPES_IDS, category in ("human", "vehicle"))
    for i, (category, name) in enumerate((c, name) for c, names in _CATEGORIES.items() for name in names)
)
# Mean number of pixels of an instance in the training set, as the official evaluation has them.
INSTANCE_SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "caravan": 36771.8241758242,
    "trailer": 16926.9763313609,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
FIRST_INSTANCE = 1000  # instance ids are 1000 · label id + number; a group has the plain label id
LABELS_SUFFIX = "_gtFine_labelIds.png"
INSTANCES_SUFFIX = "_gtFine_instanceIds.png"
_COUNT = len(CITYSCAPES_LABELS)
_CATEGORY_OF = np.array([list(_CATEGORIES).index(label.category) for label in CITYSCAPES_LABELS])
_IDS_OF_TRAIN_IDS = np.zeros(256, np.uint8)
_IDS_OF_TRAIN_IDS[: len(CITYSCAPES_IDS)] = CITYSCAPES_IDS


def label_ids(train_ids: Bytes) -> Bytes:
    """Label ids, as Cityscapes' files and its evaluation have them, of train ids; 0, unlabelled, for the rest."""
    return _IDS_OF_TRAIN_IDS[train_ids]


@dataclass(frozen=True)
class CityscapesCounts:
    """What the evaluation of Cityscapes counts; counts of several images are added.

    Attributes:
        confusion: pixels (34, 34) of each label id (row) with each predicted id (column).
        instances: (2, 34): right and missed pixels of instances, each instance weighted to the mean size of its class.
        groups: (2, 34): the same, where any class of the instance's category is right.
    """

    confusion: Counts
    instances: Floats
    groups: Floats

    def __add__(self, other: "CityscapesCounts") -> "CityscapesCounts":
        return CityscapesCounts(
            self.confusion + other.confusion, self.instances + other.instances, self.groups + other.groups
        )


def cityscapes_counts(labels: Bytes, predictions: Bytes, instances: npt.NDArray[Any] | None) -> CityscapesCounts:
    """Counts of one image.

    Args:
        labels: label ids (H, W).
        predictions: label ids (H, W).
        instances: instance ids (H, W); without them there is no iIoU.

    Raises:
        UserError: if the sizes differ, or there are values that are no label id.
    """
    if labels.shape != predictions.shape:
        raise UserError(f"the label map has {labels.shape} pixels, the prediction {predictions.shape}.")
    counts = joint_histogram(labels, predictions)
    confusion = counts[:_COUNT, :_COUNT]
    if confusion.sum() != labels.size:
        raise UserError(f"labels and predictions of Cityscapes are label ids 0 to {_COUNT - 1}, but there are others.")
    if instances is None:
        return CityscapesCounts(confusion, *np.zeros((2, 2, _COUNT)))
    if instances.shape != labels.shape:
        raise UserError(f"the label map has {labels.shape} pixels, the instance map {instances.shape}.")
    return CityscapesCounts(confusion, *_instance_counts(instances, predictions))


def _instance_counts(instances: npt.NDArray[Any], predictions: Bytes) -> tuple[Floats, Floats]:
    chosen = instances > FIRST_INSTANCE
    ids, predicted = instances[chosen].astype(np.int64), predictions[chosen]
    label = ids // FIRST_INSTANCE
    sizes = np.bincount(ids)
    right = np.bincount(ids[label == predicted], minlength=len(sizes))
    right_group = np.bincount(ids[_CATEGORY_OF[label] == _CATEGORY_OF[predicted]], minlength=len(sizes))
    weighted = np.zeros((2, 2, _COUNT))
    for instance in np.flatnonzero(sizes):
        known = CITYSCAPES_LABELS[instance // FIRST_INSTANCE]
        if not known.evaluated:
            continue
        weight = INSTANCE_SIZES[known.name] / sizes[instance]
        for place, hits in zip(weighted, (right, right_group), strict=True):
            place[:, known.id] += weight * hits[instance], weight * (sizes[instance] - hits[instance])
    return weighted[0], weighted[1]


def cityscapes_scores(counts: CityscapesCounts) -> dict[str, Any]:
    """All scores of the official pixel-level evaluation, 0 to 1, under its names; nan where there are none."""
    evaluated = {label.id for label in CITYSCAPES_LABELS if label.evaluated}
    classes, class_instances = {}, {}
    for label in CITYSCAPES_LABELS:
        row = _class_scores(counts, label, evaluated)
        classes[label.name], class_instances[label.name] = row
    categories, category_instances = {}, {}
    for category in _CATEGORIES:
        categories[category], category_instances[category] = _category_scores(counts, category, evaluated)
    pixels = counts.confusion.sum(axis=1)
    return {
        "averageScoreClasses": mean_of_known(classes.values()),
        "averageScoreInstClasses": mean_of_known(class_instances.values()),
        "averageScoreCategories": mean_of_known(categories.values()),
        "averageScoreInstCategories": mean_of_known(category_instances.values()),
        "classScores": classes,
        "classInstScores": class_instances,
        "categoryScores": categories,
        "categoryInstScores": category_instances,
        "priors": {label.name: float(pixels[label.id] / pixels.sum()) for label in CITYSCAPES_LABELS},
    }


def _class_scores(counts: CityscapesCounts, label: CityscapesLabel, evaluated: set[int]) -> tuple[float, float]:
    if not label.evaluated:
        return math.nan, math.nan
    others = sorted(evaluated - {label.id})
    right = counts.confusion[label.id, label.id]
    missed = counts.confusion[label.id].sum() - right
    wrong = counts.confusion[others, label.id].sum()
    instance_right, instance_missed = counts.instances[:, label.id]
    iou = _iou(right, missed, wrong)
    return iou, _iou(instance_right, instance_missed, wrong) if label.has_instances else math.nan


def _category_scores(counts: CityscapesCounts, category: str, evaluated: set[int]) -> tuple[float, float]:
    members = [label for label in CITYSCAPES_LABELS if label.category == category]
    inside = [label.id for label in members if label.evaluated]
    outside = sorted(evaluated - set(inside))
    if not inside:
        return math.nan, math.nan
    right = counts.confusion[np.ix_(inside, inside)].sum()
    missed = counts.confusion[inside].sum() - right
    iou = _iou(right, missed, counts.confusion[np.ix_(outside, inside)].sum())
    if not all(label.has_instances for label in members):
        return iou, math.nan
    every = [label.id for label in members]
    instance_right, instance_missed = counts.groups[:, every].sum(axis=1)
    return iou, _iou(instance_right, instance_missed, counts.confusion[np.ix_(outside, every)].sum())


def _iou(right: float, missed: float, wrong: float) -> float:
    total = right + missed + wrong
    return float(right / total) if total else math.nan


@METRICS.register_module()
class CityscapesMetric(Metric):
    """The official pixel-level evaluation of Cityscapes, in percent: classes, categories, and both by instances.

    Reads the label and instance files of each image below `data_root` and holds the predictions, mapped from train ids
    to label ids, against them. Gives `mIoU` and `iIoU` (weighted by instances) of the classes, `category_mIoU` and
    `category_iIoU` of the categories; after `evaluate`, `per_class` holds each class and category, and `scores` all
    numbers under the official names. Fixture `metrics/cityscapes`.

    Rule of the means: a class without a pixel in labels and predictions is left out.

    Args:
        data_root: the folder with `gtFine`.
        instances: whether to read the instance files; without them there is no iIoU.
        collect_device: `cpu` or `gpu`, where the ranks' results meet.
        prefix: put before the names, with a slash.
    """

    rule = RULES["skip"]

    def __init__(
        self,
        data_root: str,
        instances: bool = True,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.root = found_root(data_root)
        self.instances = instances
        self.per_class: dict[str, dict[str, float]] = {}
        self.scores: dict[str, Any] = {}

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count one batch: `mask` (H, W) of each prediction, train ids, against the files that belong to `meta`."""
        for prediction, meta in zip(data_samples, data_batch["meta"], strict=True):
            labels = self.root / labels_of(meta)
            self.results.append(_file_counts(labels, label_ids(as_bytes(prediction["mask"], meta)), self.instances))

    def compute_metrics(self, results: list[CityscapesCounts]) -> dict[str, float]:
        """The four means in percent, from `cityscapes_counts` of each sample."""
        total = results[0]
        for counts in results[1:]:
            total = total + counts
        self.scores = cityscapes_scores(total)
        self.per_class = _rows(self.scores, "class") | _rows(self.scores, "category")
        log_once(f"CityscapesMetric: {self.rule}.")
        names = {
            "mIoU": "averageScoreClasses",
            "iIoU": "averageScoreInstClasses",
            "category_mIoU": "averageScoreCategories",
            "category_iIoU": "averageScoreInstCategories",
        }
        return {name: 100 * self.scores[official] for name, official in names.items()}


def labels_of(meta: Mapping[str, Any]) -> Path:
    """The file of label ids that belongs to an image of Cityscapes, both relative to the data root."""
    image = Path(meta["path"])
    if not image.name.endswith("_leftImg8bit.png"):
        raise UserError(f"CityscapesMetric: {image} is not named like an image of Cityscapes (…_leftImg8bit.png).")
    folders = ["gtFine" if part == "leftImg8bit" else part for part in image.parent.parts]
    return Path(*folders) / (image.name.removesuffix("_leftImg8bit.png") + LABELS_SUFFIX)


def evaluate_folder(labels: str | Path, results: str | Path, instances: bool = True) -> dict[str, Any]:
    """The official evaluation of a folder of PNG files with label ids.

    Args:
        labels: folder with `*_gtFine_labelIds.png` at any depth, such as `gtFine/val`.
        results: folder with one `<city>_<sequence>_<frame>*.png` for each of them, at any depth.
        instances: whether to read the instance files, for iIoU.

    Returns:
        see `cityscapes_scores`.

    Raises:
        UserError: if there are no labels, or not exactly one result for each; names the files.
    """
    truths = sorted(Path(labels).rglob(f"*{LABELS_SUFFIX}"))
    if not truths:
        raise UserError(f"{labels}: there are no files *{LABELS_SUFFIX} below it; give a folder like gtFine/val.")
    found = _results_by_frame(Path(results))
    counts = [_file_counts(truth, read_labels(_only_result(truth, found, results)), instances) for truth in truths]
    return cityscapes_scores(sum(counts[1:], start=counts[0]))


def _results_by_frame(folder: Path) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in sorted(folder.rglob("*.png")):
        found[_frame(path.name)].append(path)
    return found


def _frame(name: str) -> str:
    """City, sequence and frame at the beginning of a file name."""
    return "_".join(re.split(r"[_.]", name)[:3])


def _only_result(truth: Path, found: Mapping[str, list[Path]], results: str | Path) -> Path:
    frame = _frame(truth.name)
    matches = found.get(frame, [])
    if not matches:
        raise UserError(f"{results}: there is no prediction {frame}*.png for {truth.name}.")
    if len(matches) > 1:
        raise UserError(f"{truth.name} has several predictions: {matches[0]} and {matches[1]}. Leave one.")
    return matches[0]


def _file_counts(labels: Path, predictions: Bytes, instances: bool) -> CityscapesCounts:
    instance_file = labels.with_name(labels.name.replace(LABELS_SUFFIX, INSTANCES_SUFFIX))
    try:
        return cityscapes_counts(read_labels(labels), predictions, read_labels(instance_file) if instances else None)
    except UserError as error:
        raise UserError(f"{labels.name}: {error}") from error


def _rows(scores: Mapping[str, Any], kind: str) -> dict[str, dict[str, float]]:
    """Rows `{IoU, iIoU}` in percent of what is evaluated; categories are marked, since `sky` is both."""
    plain, weighted = scores[f"{kind}Scores"], scores[f"{kind}InstScores"]
    evaluated = {label.name for label in CITYSCAPES_LABELS if label.evaluated} | set(_CATEGORIES) - {"void"}
    mark = "category " if kind == "category" else ""
    return {
        f"{mark}{name}": {"IoU": 100 * value, "iIoU": 100 * weighted[name]}
        for name, value in plain.items()
        if name in evaluated
    }
