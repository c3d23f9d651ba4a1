"""Predictions for pictures of one's own, of any task: drawn where the task's drawing can, refused where it cannot."""

import numpy as np
import pytest
from kd_classification import plugin as classification
from run_folders import write_run

from kd_tasks import plugins
from kd_tasks.errors import UserError
from kd_tasks.evaluation.comparison import ALONE
from kd_tasks.report.predict import predict
from kd_tasks.vision.images import read_image, write_image


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        write_image(tmp_path / "pictures" / f"{number}.png", rng.integers(0, 255, (40, 60, 3)).astype(np.uint8))
    return tmp_path / "pictures"


def test_classes_are_drawn(pictures, tmp_path):
    run = write_run(tmp_path / "run", ALONE)
    written = predict(run, pictures, tmp_path / "out")
    assert [path.name for path in written.files] == ["0.png", "1.png"]
    assert not np.array_equal(read_image(written.files[0]), read_image(written.files[1]))


def test_a_task_that_draws_nothing_for_a_picture_alone_says_so(pictures, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", ALONE)

    class Mute:
        def __init__(self, metainfo):
            pass

        def panels(self, image, targets, prediction):
            return [("image", image)]

        def legend(self):
            return []

    monkeypatch.setattr(plugins, "resolve", lambda reference: Mute)
    with pytest.raises(UserError, match="draws no prediction for a picture alone"):
        predict(run, pictures, tmp_path / "out")

    class OfSets(Mute):
        explanation = "ranks"

        def gallery(self, picture, samples, predictions, count):
            return []

    monkeypatch.setattr(plugins, "resolve", lambda reference: OfSets)
    with pytest.raises(UserError, match="whole test data set"):
        predict(run, pictures, tmp_path / "out")
    monkeypatch.setattr(plugins, "get", lambda name: type(classification)("mute", ""))
    with pytest.raises(UserError, match="has no drawing"):
        predict(run, pictures, tmp_path / "out")
