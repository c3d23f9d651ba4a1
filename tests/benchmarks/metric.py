"""The counts behind mIoU against a bincount over pairs of label and prediction."""

import itertools
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
from kd_segmentation.metrics import SegmentationMetric

from tests.benchmarks import Row, in_turns

CLASSES = 19
IGNORED = 255
MAPS = 4
Mask = npt.NDArray[np.uint8]


def run(maps: int = 500, height: int = 1024, width: int = 2048, rounds: int = 3) -> list[Row]:
    """`maps` predictions of `height` x `width` pixels and 19 classes, four different ones in turn."""
    cv2.setNumThreads(1)
    pairs = [pair(number, height, width) for number in range(MAPS)]
    name = f"mIoU of {maps} maps of {height} x {width}, bincount"
    return [in_turns(name, ours(pairs, maps), by_hand(pairs, maps), 1 / 1.5, rounds=rounds, warm_up=0)]


def pair(seed: int, height: int, width: int) -> tuple[Mask, Mask]:
    """Labels in blocks, a tenth of them ignored, and a prediction that is right for about 80 % of the pixels."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, CLASSES, (16, 32), dtype=np.uint8)
    labels = np.asarray(cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
    noise = generator.integers(0, CLASSES, labels.shape, dtype=np.uint8)
    prediction = np.where(generator.random(labels.shape) < 0.2, noise, labels)
    return np.where(generator.random(labels.shape) < 0.1, np.uint8(IGNORED), labels), prediction


def ours(pairs: list[tuple[Mask, Mask]], maps: int) -> Callable[[], float]:
    """The metric as the evaluator calls it, one sample a batch."""

    def evaluate() -> float:
        metric = SegmentationMetric(metrics=["mIoU"])
        metric.dataset_meta = {"classes": [str(i) for i in range(CLASSES)]}
        for labels, prediction in itertools.islice(itertools.cycle(pairs), maps):
            metric.process({"targets": {"mask": [labels]}, "meta": [{}]}, [{"mask": prediction}])
        return metric.evaluate(maps)["mIoU"]

    return evaluate


def by_hand(pairs: list[tuple[Mask, Mask]], maps: int) -> Callable[[], float]:
    """A confusion matrix by `numpy.bincount`, as one writes it by hand."""

    def evaluate() -> float:
        confusion = np.zeros((CLASSES, CLASSES), np.int64)
        for labels, prediction in itertools.islice(itertools.cycle(pairs), maps):
            valid = labels != IGNORED
            keys = CLASSES * labels[valid].astype(np.int64) + prediction[valid]
            confusion += np.bincount(keys, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
        right = confusion.diagonal()
        return 100 * float(np.mean(right / (confusion.sum(0) + confusion.sum(1) - right)))

    return evaluate
