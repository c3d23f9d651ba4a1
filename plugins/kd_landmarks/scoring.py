"""What `kd-tasks score` takes: points that anybody has predicted, of each data set of faces."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kd_landmarks.datasets import AFLW19, COFW, WFLW, Faces300W, FacesFolder
from kd_landmarks.faces import FaceDataset
from kd_landmarks.metrics import LandmarkMetric, evaluate_predictions
from kd_tasks.engine.evaluate import EvaluationResult


def score_faces(
    dataset: type[FaceDataset],
    predictions: Path,
    annotations: Path,
    split: str = "test",
    norm: str | None = None,
    missing: str = "per_face",
    thresholds: Sequence[float] = (0.08, 0.1),
    auc: str = "grid",
    zero_norm: str = "left_out",
    one_based: bool = False,
) -> EvaluationResult:
    """The numbers of `LandmarkMetric` for a file of points; see `kd_landmarks.metrics.evaluate_predictions`.

    Args:
        dataset: its class.
        predictions: the file.
        annotations: the data set's folder.
        split: of the data set.
        norm: see `LandmarkMetric`.
        missing: see `LandmarkMetric`.
        thresholds: see `LandmarkMetric`.
        auc: see `LandmarkMetric`.
        zero_norm: see `LandmarkMetric`.
        one_based: the file's upper left pixel is (1, 1) instead of (0, 0).
    """
    metric = LandmarkMetric(norm=norm, missing=missing, thresholds=thresholds, auc=auc, zero_norm=zero_norm)
    return evaluate_predictions(predictions, dataset(annotations, split, test_mode=True), metric, one_based)


score_300w = partial(score_faces, Faces300W, split="full")
score_wflw = partial(score_faces, WFLW)
score_aflw = partial(score_faces, AFLW19)
score_cofw = partial(score_faces, COFW)
score_faces_folder = partial(score_faces, FacesFolder)
