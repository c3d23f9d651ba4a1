"""Lanes are drawn where they are and in the colour of what became of them; `browse` and `predict` show them."""

import cv2
import numpy as np
import pytest
import torch
from kd_lanes.drawing import ANNOTATED, FALSE, FOUND, MISSED, LaneDrawing
from kd_lanes.synthetic import write_culane
from mmengine.config import Config
from torch import nn
from typer.testing import CliRunner

from kd_tasks.cli import app
from kd_tasks.engine.build import build_task_model
from kd_tasks.engine.checkpoints import save_student
from kd_tasks.engine.config import dump_config
from kd_tasks.errors import UserError
from kd_tasks.evaluation.deployed import export_checkpoint
from kd_tasks.registry import NETWORKS
from kd_tasks.report.pictures import browse
from kd_tasks.report.predict import predict
from kd_tasks.vision.images import read_image, write_image

HEIGHT, WIDTH = 148, 410
GREY = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
INFO = {"classes": ["background", "lane 1", "lane 2"], "palette": [[0, 0, 0], [250, 0, 0], [0, 0, 250]]}


def lane(x, top=70):
    return [[x, y] for y in range(HEIGHT, top, -5)]


def known(*lanes, **more):
    return {"meta": {"lanes": list(lanes), "original_size": (HEIGHT, WIDTH), **more}}


def predicted(*lanes, **more):
    return {"lanes": [np.array(one, np.float32) for one in lanes], **more}


def has(picture, colour, tolerance=25):
    """Whether (H, W) pixels have about a colour."""
    return (np.abs(picture.astype(int) - colour) <= tolerance).all(-1)


def columns(picture, colour):
    """The columns in which most of the rows of a lane have a colour."""
    return set(np.flatnonzero(has(picture, colour).sum(axis=0) > 50).tolist())


def test_annotated_lanes_are_drawn_where_they_are():
    ((title, picture),) = LaneDrawing(INFO).panels(GREY, known(lane(100), lane(300)), None)
    assert title == "label"
    assert {100, 300} <= columns(picture, ANNOTATED) <= set(range(99, 103)) | set(range(299, 303))
    assert not has(picture[:65], ANNOTATED).any()
    assert (GREY == 90).all(), "the picture itself is left alone"


def test_hits_misses_and_false_lanes_have_their_colours():
    drawing = LaneDrawing(INFO)
    found = predicted(lane(101), lane(390))
    panels = dict(drawing.panels(GREY, known(lane(100), lane(200)), found))
    assert list(panels) == ["label", "prediction"]
    assert columns(panels["label"], ANNOTATED) >= {100, 200}
    assert {101} <= columns(panels["prediction"], FOUND) <= {100, 101, 102}
    assert {200} <= columns(panels["prediction"], MISSED) <= {199, 200, 201}
    assert {390} <= columns(panels["prediction"], FALSE) <= {389, 390, 391}
    assert [name for name, _ in drawing.legend()] and dict(drawing.legend()).get("missed") == MISSED


@pytest.mark.parametrize(("shift", "found"), [(2, True), (3, False)])
def test_a_lane_is_found_by_the_rule_of_culane(shift, found):
    """Lanes 8 px wide, shifted by s, have an IoU of about (8 - s) / (8 + s): above a half up to 2 px."""
    panels = dict(LaneDrawing(INFO).panels(GREY, known(lane(100)), predicted(lane(100 + shift))))
    assert bool(columns(panels["prediction"], FOUND)) is found
    assert bool(columns(panels["prediction"], FALSE)) is not found
    wide = dict(LaneDrawing(INFO, width=16).panels(GREY, known(lane(100)), predicted(lane(100 + shift))))
    assert columns(wide["prediction"], FOUND)


def test_one_lane_is_found_once():
    panels = dict(LaneDrawing(INFO).panels(GREY, known(lane(100)), predicted(lane(100), lane(104))))
    assert columns(panels["prediction"], FOUND) and columns(panels["prediction"], FALSE)


def test_pictures_without_annotation():
    drawing = LaneDrawing(INFO)
    assert [title for title, _ in drawing.panels(GREY, {}, None)] == ["image"]
    panels = dict(drawing.panels(GREY, {"meta": {}}, predicted(lane(100))))
    assert list(panels) == ["image", "prediction"]
    assert 100 in columns(panels["prediction"], FOUND)
    empty = dict(drawing.panels(GREY, known(), predicted(lane(100))))
    assert 100 in columns(empty["prediction"], FALSE), "a crossroads has an annotation: no lanes"


def test_scores_are_written_beside_the_lanes():
    found = predicted(lane(100), [[5, 5]], lane(300), scores=np.array([0.25, 0.5, 1.0]))
    plain = dict(LaneDrawing(INFO).panels(GREY, {}, found))["prediction"]
    scored = dict(LaneDrawing(INFO, scores=True).panels(GREY, {}, found))["prediction"]
    changed = np.flatnonzero((plain != scored).any(axis=(0, 2)))
    assert ((changed > 95) & (changed < 140)).any() and ((changed > 295) & (changed < 340)).any()
    assert not (changed < 90).any(), "a lane of one point is none"


def test_masks_are_shown_where_there_are_no_lanes_or_on_demand():
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    mask[:, 10:20], mask[:, 50:60], mask[:, 80:90] = 1, 2, 255
    ((title, label),) = LaneDrawing(INFO, alpha=1.0).panels(GREY, {"mask": mask}, None)
    assert title == "label"
    assert (label[0, 15] == (250, 0, 0)).all() and (label[0, 55] == (0, 0, 250)).all()
    assert (label[0, 85] == 90).all() and (label[0, 30] == 90).all()
    panels = dict(LaneDrawing(INFO, alpha=1.0).panels(GREY, {"mask": mask}, {"lanes": [], "mask": mask}))
    assert (panels["prediction"][0, 15] == (250, 0, 0)).all()
    both = predicted(lane(100), mask=mask)
    assert (dict(LaneDrawing(INFO).panels(GREY, {}, both))["prediction"][0, 15] == 90).all()
    assert (dict(LaneDrawing(INFO, mask=True).panels(GREY, {}, both))["prediction"][0, 15] != 90).any()


def test_transformed_pictures_are_shown_with_their_mask_not_with_lanes_of_the_original():
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    mask[:, 200:210] = 1
    ((_, picture),) = LaneDrawing(INFO, alpha=1.0).panels(GREY, {**known(lane(100)), "mask": mask}, None)
    assert not columns(picture, ANNOTATED) and columns(picture, (250, 0, 0)) == set(range(200, 210))
    smaller = GREY[:, :200]
    assert [title for title, _ in LaneDrawing(INFO).panels(smaller, known(lane(100)), None)] == ["image"]


def test_impossible_options_are_refused():
    for wrong in ({"iou": 1.0}, {"width": 0}):
        with pytest.raises(UserError):
            LaneDrawing(INFO, **wrong)


# --- `browse` and `predict` -------------------------------------------------------------------------------------------


@NETWORKS.register
class OneLane(nn.Module):
    """Takes the middle column of every picture for the second lane."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        width = images.shape[-1]
        middle = (torch.arange(width) == width // 2).float().view(1, 1, 1, width)
        nothing = 0 * images[:, :1]
        lane = nothing + self.scale * middle
        exist = nothing.mean(dim=(2, 3)) + torch.tensor([[-9.0, 9.0, -9.0, -9.0]])
        return {"logits": torch.cat([nothing + 5, nothing, lane, nothing, nothing], dim=1), "exist": exist}


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    root = tmp_path_factory.mktemp("twin") / "culane"
    write_culane(root, train=4, val=1, test=9)
    return root


@pytest.fixture
def run(twin, tmp_path):
    """A finished run with the network above: sky cut off, pictures of 48 x 104."""
    dataset = {"type": "CULane", "data_root": str(twin), "size": (48, 104), "crop_top": 60}
    cfg = Config(
        {
            "task": "lanes",
            "work_dir": str(tmp_path / "run"),
            "model": {
                "type": "TaskModel",
                "network": {"type": "OneLane"},
                "decoder": {"type": "LaneDecoder", "smoothing": 1, "row_step": 5.0},
            },
            "train_dataloader": {"batch_size": 2, "dataset": {**dataset, "split": "train"}},
            "test_dataloader": {"batch_size": 2, "dataset": {**dataset, "split": "test", "test_mode": True}},
            "test_evaluator": {"type": "CULaneMetric"},
        }
    )
    (tmp_path / "run").mkdir()
    dump_config(cfg, tmp_path / "run" / "config.py")
    save_student(build_task_model(cfg).network, tmp_path / "run" / "student.pth", {})
    return tmp_path / "run"


@pytest.fixture
def frames(tmp_path):
    """Frames of a drive, whose grey says their number."""
    for number in (1, 2, 10):
        write_image(tmp_path / "drive" / f"{number}.png", np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8))
    return tmp_path / "drive"


def test_browse_shows_lanes_of_training_data_and_predictions(run, tmp_path):
    cfg = Config.fromfile(run / "config.py")
    (file,) = browse(cfg, tmp_path / "sheets", count=2)
    assert file.is_file()
    sheets = browse(cfg, tmp_path / "sheets", count=9, checkpoint=run / "student.pth")
    pictures = [read_image(sheet) for sheet in sheets]
    assert any(has(picture, ANNOTATED).sum() > 100 for picture in pictures)
    assert any(has(picture, MISSED).sum() > 100 for picture in pictures)
    assert any(has(picture, FALSE).sum() > 30 for picture in pictures)


@pytest.mark.parametrize("kind", ["run", "weights", "onnx", "pt2"])
def test_predict_draws_lanes_on_frames(kind, run, frames, tmp_path):
    model, config = run, None
    if kind == "weights":
        model, config = tmp_path / "elsewhere.pth", str(run / "config.py")
        model.write_bytes((run / "student.pth").read_bytes())
    if kind in ("onnx", "pt2"):
        (model,) = export_checkpoint(Config.fromfile(run / "config.py"), run, kind, out=tmp_path / f"student.{kind}")
    written = predict(model, frames, tmp_path / "out", config)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written.files] == ["1.png", "2.png", "10.png"]
    assert written.video is None
    for number, file in zip((1, 2, 10), written.files, strict=True):
        picture = read_image(file)
        assert picture.shape == (HEIGHT, WIDTH, 3)
        assert (picture[5, 5] == 10 * number).all()
        lines = has(picture, FOUND)
        assert lines[80:140].any(axis=1).all()
        assert not lines[:58].any(), "no lane in the sky that was cut off"
        place = np.flatnonzero(lines[100]).mean()
        assert place == pytest.approx(52 * WIDTH / 104, abs=1.5)


def test_predict_needs_no_data_set(run, frames, tmp_path):
    cfg = Config.fromfile(run / "config.py")
    cfg.test_dataloader.dataset.data_root = str(tmp_path / "gone")
    dump_config(cfg, run / "config.py")
    assert len(predict(run, frames, tmp_path / "out").files) == 3


def test_predict_writes_a_video_of_the_frames_in_the_order_of_their_numbers(run, frames, tmp_path):
    result = CliRunner().invoke(
        app, ["predict", str(run), str(frames), "--out", str(tmp_path / "out"), "--video", "--fps", "5"]
    )
    assert result.exit_code == 0, result.output
    assert "3 drawn pictures" in result.output and "predictions.mp4" in result.output
    video = cv2.VideoCapture(str(tmp_path / "out" / "predictions.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    greys = []
    while (got := video.read())[0]:
        assert got[1].shape == (HEIGHT, WIDTH, 3)
        greys.append(float(got[1][:40].mean()))
    assert greys == pytest.approx([10, 20, 100], abs=4)


def test_predict_takes_frames_of_other_sizes_and_names(run, tmp_path):
    folder = tmp_path / "frames"
    write_image(folder / "a" / "1.jpg", np.full((81, 121, 3), 50, np.uint8))
    write_image(folder / "a" / "1.png", np.full((100, 300, 3), 50, np.uint8))
    write_image(folder / "b.jpg", np.full((148, 410, 3), 50, np.uint8))
    written = predict(run, folder, tmp_path / "out", video=True)
    names = [path.relative_to(tmp_path / "out").as_posix() for path in written.files]
    assert names == ["a/1.jpg.png", "a/1.png.png", "b.png"]
    assert [read_image(path).shape[:2] for path in written.files] == [(81, 121), (100, 300), (148, 410)]
    video = cv2.VideoCapture(str(written.video))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert video.read()[1].shape == (82, 122, 3), "an even size, as video needs it"
    single = predict(run, folder / "b.jpg", tmp_path / "single")
    assert [path.name for path in single.files] == ["b.png"]


def test_predict_says_what_is_wrong(run, frames, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "1.jpg").write_bytes(b"no picture")
    write_image(tmp_path / "low" / "1.jpg", np.zeros((50, 100, 3), np.uint8))
    lone = tmp_path / "lone.pth"
    lone.write_bytes((run / "student.pth").read_bytes())
    cases = [
        ((run, tmp_path / "nowhere"), "no such image or folder"),
        ((run, tmp_path / "empty"), "holds no image"),
        ((run, tmp_path / "faulty"), "1.jpg"),
        ((tmp_path / "nowhere.onnx", frames), "nowhere.onnx"),
        ((tmp_path / "nowhere.pth", frames), "no such checkpoint"),
        ((lone, frames), "Name the config"),
        ((run, tmp_path / "low"), "1.jpg: has 50 rows, but crop_top=60"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            predict(*arguments, out)
    with pytest.raises(UserError, match="among the originals"):
        predict(run, frames, frames / "out")
    with pytest.raises(UserError, match="a second"):
        predict(run, frames, out, video=True, fps=0)
    cfg = Config.fromfile(run / "config.py")
    cfg.pop("test_dataloader")
    dump_config(cfg, tmp_path / "untested.py")
    with pytest.raises(UserError, match="names no test data"):
        predict(lone, frames, out, str(tmp_path / "untested.py"))


def test_predict_refuses_a_task_whose_decoder_needs_more_than_a_picture(run, frames, tmp_path, monkeypatch):
    from kd_lanes.decoder import LaneDecoder

    monkeypatch.setattr(LaneDecoder, "__call__", lambda self, outputs, meta: [m["to_input"] for m in meta])
    with pytest.raises(UserError, match=r"needs 'to_input'.*'kd-tasks browse'"):
        predict(run, frames, tmp_path / "out")
