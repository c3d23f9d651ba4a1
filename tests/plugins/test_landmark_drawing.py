"""Points lie where they belong, the worst faces come first; the report card and `browse` show them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from kd_landmarks.drawing import (
    ERROR,
    LARGE,
    NORM,
    OCCLUDED,
    PREDICTED,
    TILE,
    TRUTH,
    UNUSED,
    LandmarkDrawing,
    View,
    region_of,
)
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from kd_tasks.errors import UserError
from kd_tasks.registry import NETWORKS
from kd_tasks.vision.drawing import SetDrawing

INFO = {
    "classes": [],
    "points": 4,
    "norms": {"inter_ocular": ((0,), (1,))},
    "default_norm": "inter_ocular",
    "contours": [[0, 1]],
}
POINTS = torch.tensor([[10.0, 10.0], [30.0, 10.0], [20.0, 20.0], [20.0, 30.0]])
GREY = np.full((40, 40, 3), 90, np.uint8)


def targets(**more):
    absent = torch.zeros(4, dtype=torch.bool)
    return {
        "points": POINTS,
        "visible": ~absent,
        "occluded": absent,
        "labelled": torch.tensor(True),
        "box": torch.tensor([10.0, 10, 20, 20]),
        **more,
    }


def mask(*places):
    found = torch.zeros(4, dtype=torch.bool)
    found[list(places)] = True
    return found


def has(picture, colour, tolerance=30):
    """Whether (H, W) pixels have about a colour."""
    return (np.abs(picture.astype(int) - colour) <= tolerance).all(-1)


def at(picture, point, scale):
    """The pixel of an enlarged picture that shows a point of the original."""
    x, y = ((np.asarray(point, float) + 0.5) * scale - 0.5).round().astype(int)
    return picture[y, x]


# --- single samples ---------------------------------------------------------------------------------------------------


def test_training_samples_are_shown_whole_with_their_points():
    ((title, picture),) = LandmarkDrawing(INFO).panels(GREY, targets(), None)
    assert title == "label"
    assert picture.shape == (TILE, TILE, 3)
    scale = TILE / 40
    for point in POINTS.tolist():
        assert has(at(picture, point, scale), TRUTH)
    between = at(picture, (20, 10), scale)
    assert not has(between, (90, 90, 90)) and between.argmax() == 1  # the contour
    assert has(at(picture, (25, 25), scale), (90, 90, 90), 1)


def test_hidden_points_missing_points_and_unused_labels():
    scale, drawing = TILE / 40, LandmarkDrawing(INFO)
    given = targets(occluded=mask(2), visible=~mask(0, 3))
    ((_, picture),) = drawing.panels(GREY, given, None)
    assert has(at(picture, POINTS[1], scale), TRUTH)
    assert has(at(picture, POINTS[2], scale), OCCLUDED)
    assert has(at(picture, POINTS[0], scale), (90, 90, 90), 1)
    assert has(at(picture, (20, 10), scale), (90, 90, 90), 1)  # no contour to a point that is missing
    ((_, picture),) = drawing.panels(GREY, targets(labelled=torch.tensor(False)), None)
    assert has(at(picture, POINTS[2], scale), UNUSED)
    assert not has(picture, TRUTH).any()


def test_pictures_without_points():
    drawing = LandmarkDrawing(INFO)
    assert [title for title, _ in drawing.panels(GREY, {}, None)] == ["image"]
    ((title, picture),) = drawing.panels(GREY, {}, {"points": POINTS})
    assert title == "prediction"
    assert has(picture, PREDICTED).any()


def test_a_prediction_is_shown_on_the_enlarged_face_with_lines_from_the_truth():
    drawing = LandmarkDrawing(INFO)
    found = POINTS + torch.tensor([[0.0, 0], [0, 0], [6, 0], [0, 0]])
    panels = dict(drawing.panels(GREY, targets(), {"points": found}))
    assert list(panels) == ["label", "prediction", "errors"]
    assert {picture.shape for picture in panels.values()} == {(TILE, TILE, 3)}
    scale, left = TILE / 30, 5.0  # the points' extent of 20 pixels, and a quarter of it at each side
    place = lambda x, y: tuple(np.round((np.array([y, x]) - left) * scale - 0.5).astype(int))  # noqa: E731
    assert has(panels["label"][place(20, 20)], TRUTH)
    assert has(panels["prediction"][place(26, 20)], PREDICTED)
    assert has(panels["errors"][place(23, 20)], ERROR)
    assert has(panels["errors"][place(20, 10)], NORM)
    assert has(panels["errors"][place(20, 20)], TRUTH)
    assert has(panels["errors"][place(26, 20)], PREDICTED)
    assert not has(panels["label"], ERROR).any() and not has(panels["label"], NORM).any()


def test_the_box_of_a_norm_and_an_end_that_is_missing():
    boxed = dict(LandmarkDrawing(INFO, norm="box").panels(GREY, targets(), {"points": POINTS}))["errors"]
    scale = TILE / 30
    assert has(boxed[round(15 * scale), round((10 - 5) * scale - 0.5)], NORM)
    missing = dict(LandmarkDrawing(INFO).panels(GREY, targets(visible=~mask(1)), {"points": POINTS}))["errors"]
    assert not has(missing, NORM).any()


def test_numbers_beside_points_on_a_larger_picture():
    ((_, plain),) = LandmarkDrawing(INFO).panels(GREY, targets(), None)
    ((_, numbered),) = LandmarkDrawing(INFO, numbers=True).panels(GREY, targets(), None)
    assert numbered.shape == (LARGE, LARGE, 3)
    assert has(numbered, (255, 255, 255)).any() and not has(plain, (255, 255, 255)).any()


def test_a_point_far_off_does_not_shrink_the_face_and_one_that_is_no_number_is_left_out():
    drawing = LandmarkDrawing(INFO)
    far = POINTS.clone()
    far[2] = torch.tensor([1e9, -1e9])
    far[3] = torch.nan
    panels = dict(drawing.panels(GREY, targets(), {"points": far}))
    assert has(panels["errors"], ERROR).sum() > 100
    assert np.array_equal(panels["label"], dict(drawing.panels(GREY, targets(), {"points": POINTS}))["label"])


def test_a_view_keeps_pixel_centres():
    image = np.zeros((7, 9, 3), np.uint8)
    image[4, 6] = 255
    view = View(image, (3.5, 1.5, 8.5, 6.5), 50)
    x, y = view.place(np.array([6.0, 4.0]))
    rows, columns = np.nonzero(view.canvas[..., 0] > 127)
    assert (columns.mean(), rows.mean()) == pytest.approx((x, y))
    assert region_of(None) == pytest.approx([-6, -6, 6, 6])


def test_the_legend_and_the_explanation_name_the_norm():
    drawing = LandmarkDrawing(INFO)
    assert isinstance(drawing, SetDrawing)
    assert dict(drawing.legend())["inter-ocular distance"] == NORM
    assert "the inter-ocular distance (points 0 and 1)" in drawing.explanation
    assert "face size" in LandmarkDrawing({"classes": []}).explanation
    with pytest.raises(UserError, match="Did you mean 'inter_ocular'"):
        LandmarkDrawing(INFO, norm="inter_occular")


# --- the worst of a set -----------------------------------------------------------------------------------------------


def sample(place, **more):
    return {"targets": targets(**more), "meta": {"path": f"{place}.jpg", "original_size": (40, 40)}}


def shifted(*steps):
    return [{"points": POINTS + torch.tensor([float(step), 0.0])} for step in steps]


def picture(place):
    return np.full((40, 40, 3), 10 * place + 5, np.uint8)


SAMPLES = [sample(place) for place in range(4)]


def test_the_curve_comes_first_and_then_the_worst_faces_of_the_first_model():
    rows = LandmarkDrawing(INFO).gallery(
        picture, SAMPLES, {"student": shifted(1, 4, 2, 4), "teacher": shifted(1, 1, 1, 2)}, 4
    )
    assert [row.title for row in rows] == [
        "Cumulative error distribution of 4 faces",
        "Worst 1 of 4 faces (1.jpg)",
        "Worst 2 of 4 faces (3.jpg)",
        "Worst 3 of 4 faces (2.jpg)",
    ]
    assert [len(row.panels) for row in rows] == [1] * 4
    assert rows[1].panels[0][0] == "Worst 1 of 4 faces (1.jpg): NME student 20.00 %, teacher 5.00 %"
    strip = rows[3].panels[0][1]
    assert strip.shape[1] == 3 * TILE + 2 * 6
    assert tuple(strip[-10, 10]) == tuple(picture(2)[0, 0])
    tiles = strip[:, :TILE], strip[:, TILE + 6 : 2 * TILE + 6], strip[:, -TILE:]
    assert [bool(has(tile, ERROR).any()) for tile in tiles] == [False, True, True]
    assert all((tile[:22] < 128).any() for tile in tiles)  # the names and values are written above


def test_one_row_is_the_worst_face_and_faces_without_a_norm_are_left_out():
    same = POINTS.clone()
    same[1] = same[0]
    samples = [sample(0), sample(1, points=same), sample(2)]
    rows = LandmarkDrawing(INFO).gallery(picture, samples, {"": shifted(1, 9, 2)}, 1)
    assert [row.panels[0][0] for row in rows] == ["Worst 1 of 2 faces (2.jpg): NME 10.00 %"]
    assert len(LandmarkDrawing(INFO).gallery(picture, samples, {"": shifted(1, 9, 2)}, 9)) == 3
    boxed = LandmarkDrawing(INFO, norm="box").gallery(picture, samples, {"": shifted(1, 9, 2)}, 1)
    assert boxed[0].title == "Worst 1 of 3 faces (1.jpg)"


def test_faces_without_points_cannot_be_ranked():
    bare = {"targets": {}, "meta": {"path": "0.jpg"}}
    with pytest.raises(UserError, match="faces without points"):
        LandmarkDrawing(INFO).gallery(picture, [bare], {"": shifted(1)}, 2)


# --- in the report card and in `browse` -------------------------------------------------------------------------------


@NETWORKS.register
class MiddlePoints(nn.Module):
    """Points around the middle of every picture, as fractions."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter((POINTS + 0.5) / 40)

    def forward(self, images):
        return {"points": self.points.expand(len(images), -1, -1)}


@DATASETS.register_module()
class MovedFaces:
    """Face i is i pixels to the right of where the network takes it to be."""

    metainfo = INFO

    def __init__(self, transforms=(), test_mode=False):
        self.test_mode = test_mode

    def __len__(self):
        return 4

    def load(self, index):
        return {"image": picture(index)}

    def __getitem__(self, index):
        moved = POINTS + torch.tensor([float(index), 0.0])
        meta = {"path": f"{index}.jpg", "index": index, "original_size": (40, 40), "input_size": (40, 40)}
        meta |= {"to_input": [[1.0, 0, 0], [0, 1.0, 0]], "subsets": []}
        return {
            "inputs": torch.from_numpy(picture(index)).permute(2, 0, 1),
            "targets": targets(points=moved),
            "meta": meta,
        }


@pytest.fixture
def config(tmp_path, monkeypatch):
    from kd_landmarks import plugin

    from kd_tasks import plugins
    from kd_tasks.engine.checkpoints import save_student

    plugin.load()
    monkeypatch.setattr(plugins, "get", {"landmarks": plugin}.__getitem__)
    save_student(MiddlePoints(), tmp_path / "student.pth", {})
    loader = {"batch_size": 3, "dataset": {"type": "MovedFaces", "test_mode": True}}
    model = {"type": "TaskModel", "network": {"type": "MiddlePoints"}, "decoder": {"type": "LandmarkDecoder"}}
    training = {"batch_size": 2, "dataset": {"type": "MovedFaces"}}
    return Config(
        {
            "task": "landmarks",
            "model": model,
            "train_dataloader": training,
            "test_dataloader": loader,
            "test_evaluator": {"type": "LandmarkMetric"},
        }
    )


def test_browse_shows_training_data_with_points(config, tmp_path: Path):
    from kd_tasks.report.pictures import browse

    (file,) = browse(config, tmp_path / "browse", count=2)
    sheet = cv2.imread(str(file))[..., ::-1]
    assert has(sheet, TRUTH).any()


def test_browse_shows_the_curve_and_the_worst_faces_of_a_checkpoint(config, tmp_path: Path):
    from kd_tasks.report.pictures import browse

    files = browse(config, tmp_path / "browse", count=3, checkpoint=tmp_path / "student.pth", rows=1)
    assert [file.name for file in files] == [f"predictions_{number}.png" for number in (1, 2, 3)]
    worst = cv2.imread(str(files[1]))[..., ::-1]
    areas = [int(has(worst, picture(place)[0, 0], 1).sum()) for place in range(4)]
    assert areas[3] > TILE**2 and max(areas[:3]) < TILE**2 / 20


def test_the_report_card_shows_the_worst_faces_of_every_model(config, tmp_path: Path):
    from kd_tasks.engine.build import build_task_model
    from kd_tasks.report import pictures
    from kd_tasks.report.card import _pictures

    model = build_task_model(config, str(tmp_path / "student.pth"))
    models = {"teacher": (config, model), "distilled": (config, model)}
    gallery = pictures._gallery_of_set(LandmarkDrawing(INFO), "distilled", models, 3)
    titles = [shown.title for shown in gallery.samples]
    assert titles == [
        "Cumulative error distribution of 4 faces",
        "Worst 1 of 4 faces (3.jpg)",
        "Worst 2 of 4 faces (2.jpg)",
    ]
    html = _pictures(gallery)
    assert "NME distilled 15.00 %, teacher 15.00 %" in html
    assert "NME is normalised by the inter-ocular distance (points 0 and 1)." in html
