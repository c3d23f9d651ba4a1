"""Ranked strips show the right pictures in the right frames; the report card and `browse` show them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from kd_reid.drawing import FRAME, GAP, LINE, QUERY, RIGHT, TILE, WRONG, ReIDDrawing, ranked_strips

from kd_tasks.vision.drawing import SetDrawing

TILE_HEIGHT, TILE_WIDTH = TILE[0] + 2 * FRAME + LINE, TILE[1] + 2 * FRAME


def sample(role: str, identity: int, camera: int) -> dict:
    targets = {"label": torch.tensor(-1), "identity": torch.tensor(identity), "camera": torch.tensor(camera)}
    return {"targets": targets, "meta": {"role": role, "path": f"{role}/{identity}_c{camera + 1}.jpg"}}


# Angles of the embeddings in degrees: a query's ranking can be read off.
GALLERY = [
    (sample("gallery", 7, 0), 1),  # the query's own camera: left out for the first query
    (sample("gallery", 7, 1), 20),
    (sample("gallery", 8, 1), 10),
    (sample("gallery", -1, 1), 0),  # junk
    (sample("gallery", 0, 1), 45),  # a distractor
    (sample("gallery", 8, 0), 89),
]
QUERIES = [
    (sample("query", 7, 0), 0),  # 8 (10), 7 (20), 0 (45), 8 (89): AP 1/2
    (sample("query", 8, 1), 90),  # 8 (89) first: AP 1
    (sample("query", 9, 1), 30),  # nobody in the gallery
    (sample("query", 8, 0), 80),  # 0 (45), 7 (20), 8 (10): the one of camera 0 is left out: AP 1/3
]
SAMPLES = [entry for entry, _ in QUERIES + GALLERY]


def embeddings(angles: list[float]) -> list[dict]:
    radians = torch.deg2rad(torch.tensor(angles))
    return [{"embedding": 3 * torch.stack([a.cos(), a.sin()])} for a in radians]


PREDICTIONS = embeddings([angle for _, angle in QUERIES + GALLERY])


def picture(index: int) -> np.ndarray:
    """Every sample has a brightness of its own."""
    return np.full((64, 32, 3), 10 * index + 5, np.uint8)


def rows(count: int = 9, top: int = 10, predictions=None):
    return ranked_strips(picture, SAMPLES, predictions or {"": PREDICTIONS}, count, top)


def tiles(strip: np.ndarray) -> list[tuple[tuple[int, ...], int]]:
    """(frame colour, sample) of each tile from the left."""
    found, left = [], 0
    while left < strip.shape[1]:
        tile = strip[:, left : left + TILE_WIDTH]
        shown = tile[FRAME + TILE[0] // 2, FRAME + TILE[1] // 2]
        assert (tile[: FRAME - 1] == tile[0, 0]).all()
        assert (tile[FRAME : TILE[0], 0] == tile[0, 0]).all()
        found.append((tuple(int(v) for v in tile[0, 0]), int(shown[0] - 5) // 10))
        left += TILE_WIDTH + (2 * GAP if left == 0 else GAP)
    return found


def test_worst_queries_come_first_and_the_title_says_so():
    found = rows()
    assert [row.title for row in found] == [
        "Worst 1 of 3 queries, camera 1 (query/8_c1.jpg)",
        "Worst 2 of 3 queries, camera 1 (query/7_c1.jpg)",
        "Worst 3 of 3 queries, camera 2 (query/8_c2.jpg)",
    ]
    assert [row.panels[0][0] for row in found] == [
        f"{row.title}: AP {ap}" for row, ap in zip(found, ("33.3 %", "50.0 %", "100.0 %"), strict=True)
    ]
    assert [row.title for row in rows(count=2)] == [row.title for row in found[:2]]


def test_a_strip_shows_the_nearest_pictures_in_their_frames_without_junk_and_the_own_camera():
    first = len(QUERIES)
    worst, second, best = (tiles(row.panels[0][1]) for row in rows())
    assert worst == [(QUERY, 3), (WRONG, first + 4), (WRONG, first + 1), (RIGHT, first + 2), (WRONG, first)]
    assert second == [(QUERY, 0), (WRONG, first + 2), (RIGHT, first + 1), (WRONG, first + 4), (WRONG, first + 5)]
    assert best[:3] == [(QUERY, 1), (RIGHT, first + 5), (WRONG, first + 4)]
    assert tiles(rows(top=2)[0].panels[0][1]) == worst[:3]


def test_strips_have_one_height_and_say_the_camera_below():
    strip = rows()[0].panels[0][1]
    assert strip.dtype == np.uint8
    assert strip.shape[0] == TILE_HEIGHT
    assert (strip[-LINE:] < 128).any()


def test_the_first_model_chooses_and_every_model_is_shown():
    blind = embeddings([90.0, 90.0, 30.0, 80.0] + [angle for _, angle in GALLERY])
    found = rows(predictions={"student": PREDICTIONS, "teacher": blind})
    assert [row.title for row in found] == [row.title for row in rows()]
    assert [title for title, _ in found[1].panels] == ["student: AP 50.0 %", "teacher: AP 33.3 %"]
    assert not np.array_equal(found[1].panels[0][1], found[1].panels[1][1])


def test_equal_embeddings_keep_the_order_of_the_data_set():
    same = embeddings([0.0] * len(SAMPLES))
    strip = next(row for row in rows(predictions={"": same}) if "query/7" in row.title).panels[0][1]
    first = len(QUERIES)
    assert [index for _, index in tiles(strip)] == [0, first + 1, first + 2, first + 4, first + 5]


def test_single_samples_are_shown_with_person_and_camera():
    drawing = ReIDDrawing({"classes": ["7"]})
    assert isinstance(drawing, SetDrawing)
    image = np.full((20, 16, 3), 90, np.uint8)
    targets = {"label": torch.tensor(2), "identity": torch.tensor(7), "camera": torch.tensor(0)}
    ((title, labelled),) = drawing.panels(image, targets, None)
    ((_, unlabelled),) = drawing.panels(image, {**targets, "label": torch.tensor(-1)}, {"embedding": torch.ones(2)})
    assert title == "label"
    assert labelled.shape == unlabelled.shape == (200 + LINE, 160, 3)
    assert (labelled[:200] == 90).all()
    assert (labelled[200:] < 128).sum() > (unlabelled[200:] < 128).sum() > 0
    assert drawing.panels(image, {}, None)[0][0] == "image"
    assert dict(drawing.legend()) == {"query": QUERY, "same person": RIGHT, "another person": WRONG}


def test_the_gallery_of_the_drawing_is_the_ranked_strips():
    shown = ReIDDrawing({}).gallery(picture, SAMPLES, {"": PREDICTIONS}, 2)
    assert [row.title for row in shown] == [row.title for row in rows(2)]
    assert "worst" in ReIDDrawing.explanation


# --- In the report card and in `browse` ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory):
    """A config on a few pictures in the layout of Market-1501, and an untrained checkpoint."""
    from kd_reid.networks import SmallReIDNet
    from mmengine.config import Config

    from kd_tasks.engine.checkpoints import save_student

    folder = tmp_path_factory.mktemp("reid")
    rng = np.random.default_rng(0)
    for name, cameras in (("query", (1,)), ("bounding_box_test", (1, 2)), ("bounding_box_train", (1, 2))):
        (folder / "data" / name).mkdir(parents=True)
        for identity in range(1, 5):
            for camera in cameras:
                file = folder / "data" / name / f"{identity:04}_c{camera}s1_000001_00.jpg"
                cv2.imwrite(str(file), rng.integers(0, 255, (64, 32, 3), np.uint8))
    torch.manual_seed(0)
    save_student(SmallReIDNet(4), folder / "student.pth", {})
    loader = {"batch_size": 3, "dataset": {"type": "Market1501", "data_root": str(folder / "data"), "split": "test"}}
    loader["dataset"]["test_mode"] = True
    model = {
        "type": "TaskModel",
        "network": {"type": "SmallReIDNet", "num_classes": 4},
        "decoder": {"type": "EmbeddingDecoder"},
    }
    evaluator = {"type": "ReIDMetric"}
    return Config({"task": "reid", "model": model, "test_dataloader": loader, "test_evaluator": evaluator}), folder


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    from kd_reid import plugin

    from kd_tasks import plugins

    found = {p.name: p for p in (*plugins.discover(), plugin)}
    plugin.load()
    monkeypatch.setattr(plugins, "get", found.__getitem__)


def test_browse_shows_ranked_strips_of_a_checkpoint(config, installed, tmp_path: Path):
    from kd_tasks.report.pictures import browse

    cfg, folder = config
    files = browse(cfg, tmp_path, count=3, checkpoint=folder / "student.pth", rows=2)
    assert [file.name for file in files] == ["predictions_1.png", "predictions_2.png"]
    sheet = cv2.imread(str(files[0]))[..., ::-1]
    (first, *_) = (int(row) for row in np.flatnonzero((sheet == QUERY).all(2).any(1)) if row >= 22)
    assert tuple(sheet[first, 0]) == QUERY
    assert {tuple(sheet[first, 2 * GAP + TILE_WIDTH + i * (TILE_WIDTH + GAP)]) for i in range(7)} == {RIGHT, WRONG}


def test_the_report_card_shows_the_strips_of_every_model(config, installed):
    from kd_tasks.engine.build import build_task_model
    from kd_tasks.report import pictures
    from kd_tasks.report.card import _pictures

    cfg, folder = config
    model = build_task_model(cfg, str(folder / "student.pth"))
    models = {"teacher": (cfg, model), "distilled": (cfg, model)}
    gallery = pictures._gallery_of_set(ReIDDrawing({}), "distilled", models, 2)
    assert [sample.title.split(" of ")[0] for sample in gallery.samples] == ["Worst 1", "Worst 2"]
    titles = [[picture.title.partition(":")[0] for picture in sample.pictures] for sample in gallery.samples]
    assert titles == [["distilled", "teacher"]] * 2
    assert 'class="strip wide"' in _pictures(gallery)
    assert gallery.explanation == ReIDDrawing.explanation
