"""Normalised errors of all faces at once against a loop over the faces."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from kd_landmarks.markup import FACE_98, metainfo_of
from kd_landmarks.nme import face_errors, mean_error, norm_of

from tests.benchmarks import Row, in_turns

Points = npt.NDArray[np.float64]
NORM = norm_of("inter_ocular", metainfo_of(FACE_98))
EYES = (60, 72)  # their outer corners, as one writes them by hand
LIMIT = 0.5


def run(faces: int = 2500, points: int = 98, rounds: int = 7) -> list[Row]:
    """As many faces as WFLW has for testing."""
    pred, truth = random_faces(faces, points)
    name = f"NME, {faces} faces of {points} points: loop"
    return [in_turns(name, ours(pred, truth), by_face(pred, truth), LIMIT, rounds, warm_up=1)]


def random_faces(faces: int, points: int) -> tuple[Points, Points]:
    """Predictions and true points (N, K, 2)."""
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 256, (faces, points, 2))
    return truth + generator.normal(0, 2, truth.shape), truth


def ours(pred: Points, truth: Points) -> Callable[[], float]:
    """`face_errors` of all faces."""
    visible = np.ones(truth.shape[:2], bool)
    return lambda: mean_error(face_errors(pred, truth, visible, NORM))


def by_face(pred: Points, truth: Points) -> Callable[[], float]:
    """One face after the other."""

    def compute() -> float:
        errors = [
            np.linalg.norm(found - true, axis=1).mean() / np.linalg.norm(true[EYES[0]] - true[EYES[1]])
            for found, true in zip(pred, truth, strict=True)
        ]
        return float(np.mean(errors))

    return compute
