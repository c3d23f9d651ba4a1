"""Pictures of segmentation hold the right pixels, and saved masks the right numbers."""

import cv2
import numpy as np
import pytest
import torch
from kd_segmentation.classes import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from kd_segmentation.drawing import WRONG, SegmentationDrawing, error_map, save_cityscapes_result
from kd_segmentation.metrics import CITYSCAPES_LABELS
from PIL import Image

from kd_tasks.errors import UserError
from kd_tasks.vision.drawing import distinct_colours, grid, legend_picture, overlay, png_bytes
from kd_tasks.vision.images import read_labels

METAINFO = {"classes": ["sky", "road"], "palette": [[0, 0, 200], [100, 50, 0]]}
LABELS = np.array([[0, 0, 1], [1, 255, 255]], np.uint8)
MASK = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
IMAGE = np.full((2, 3, 3), (10, 20, 30), np.uint8)


def test_a_mask_gets_the_colours_of_its_classes_and_black_where_there_is_none():
    colours = SegmentationDrawing(METAINFO).colour(LABELS)
    assert colours.tolist() == [[[0, 0, 200]] * 2 + [[100, 50, 0]], [[100, 50, 0], [0, 0, 0], [0, 0, 0]]]


def test_an_overlay_mixes_image_and_colour_and_leaves_ignored_pixels():
    picture = SegmentationDrawing(METAINFO, alpha=0.5).overlay(IMAGE, LABELS)
    assert picture[0, 0].tolist() == [5, 10, 115]
    assert picture[0, 2].tolist() == [55, 35, 15]
    assert picture[1, 1].tolist() == [10, 20, 30]
    assert overlay(IMAGE, IMAGE * 2, alpha=1.0).tolist() == (IMAGE * 2).tolist()


def test_an_error_map_tells_right_wrong_and_ignored_apart():
    picture = error_map(IMAGE, LABELS, MASK)
    assert picture[0, 1].tolist() == picture[1, 0].tolist() == list(WRONG)
    assert picture[1, 1].tolist() == picture[1, 2].tolist() == [0, 0, 0]
    red, green, blue = picture[0, 0].astype(int)
    assert green > red
    assert green > blue
    assert picture[0, 0].tolist() == picture[0, 2].tolist()


def test_panels_follow_what_there_is():
    drawing = SegmentationDrawing(METAINFO)
    targets, prediction = {"mask": torch.from_numpy(LABELS)}, {"mask": torch.from_numpy(MASK)}

    def titles(*arguments):
        return [title for title, _ in drawing.panels(IMAGE, *arguments)]

    assert titles({}, None) == ["image"]
    assert titles(targets, None) == ["image", "label"]
    assert titles({}, prediction) == ["image", "prediction"]
    assert titles(targets, prediction) == ["image", "label", "prediction", "errors"]
    pictures = dict(drawing.panels(IMAGE, targets, prediction))
    assert all(picture.shape == (2, 3, 3) and picture.dtype == np.uint8 for picture in pictures.values())
    assert np.array_equal(pictures["prediction"], drawing.overlay(IMAGE, MASK))
    assert np.array_equal(pictures["errors"], error_map(IMAGE, LABELS, MASK))


def test_masks_of_another_size_are_brought_to_the_image():
    large = np.repeat(np.repeat(IMAGE, 4, axis=0), 4, axis=1)
    drawing = SegmentationDrawing(METAINFO)
    (_, label) = drawing.panels(large, {"mask": torch.from_numpy(LABELS)}, None)[1]
    assert np.array_equal(label, drawing.overlay(large, np.repeat(np.repeat(LABELS, 4, axis=0), 4, axis=1)))


def test_the_legend_names_the_colours():
    assert SegmentationDrawing(METAINFO).legend() == [("sky", (0, 0, 200)), ("road", (100, 50, 0))]
    picture = legend_picture(SegmentationDrawing(METAINFO).legend(), columns=1)
    assert picture[10, 10].tolist() == [0, 0, 200]
    assert picture[30, 10].tolist() == [100, 50, 0]
    assert (picture[:, 22:] < 128).any(axis=(1, 2)).sum() > 8


def test_colours_are_made_where_the_data_set_has_none_and_must_fit_where_it_has():
    drawing = SegmentationDrawing({"classes": [str(i) for i in range(30)]})
    assert len({colour for _, colour in drawing.legend()}) == 30
    assert len(set(distinct_colours(150))) > 145
    with pytest.raises(UserError, match="2 classes, but 1 colours"):
        SegmentationDrawing({"classes": ["a", "b"], "palette": [[1, 2, 3]]})


def test_a_saved_mask_has_classes_as_numbers_and_their_colours(tmp_path):
    SegmentationDrawing(METAINFO).save_mask(LABELS, tmp_path / "mask.png")
    assert np.array_equal(read_labels(tmp_path / "mask.png"), LABELS)
    with Image.open(tmp_path / "mask.png") as picture:
        assert picture.mode == "P"
        assert picture.convert("RGB").getpixel((2, 0)) == (100, 50, 0)


def test_a_submission_for_cityscapes_holds_label_ids(tmp_path):
    train_ids = np.arange(20, dtype=np.uint8).reshape(4, 5)
    train_ids[3, 4] = 255
    file = save_cityscapes_result(
        torch.from_numpy(train_ids), tmp_path, "leftImg8bit/val/bonn/bonn_000001_000019_leftImg8bit.png"
    )
    assert file.name == "bonn_000001_000019_labelIds.png"
    names = [CITYSCAPES_LABELS[i].name for i in read_labels(file).ravel()]
    assert names == [*CITYSCAPES_CLASSES, "unlabeled"]


def test_a_grid_shows_every_panel_under_its_title():
    red, blue = (np.full((40, 60, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    picture = grid([("one", red), ("two", blue[:20]), ("three", blue)], columns=2, gap=6)
    assert picture.shape == (2 * (40 + 22) + 6, 2 * 60 + 6, 3)
    assert picture[22 + 20, 30].tolist() == [255, 0, 0]
    assert picture[22 + 20, 66 + 30].tolist() == [0, 0, 255]
    assert picture[22 + 5, 66 + 30].tolist() == [255, 255, 255]
    assert picture[-10, 30].tolist() == [0, 0, 255]
    assert picture[-10, -10].tolist() == [255, 255, 255]
    assert (picture[:22, :60] < 128).any()


def test_png_bytes_keep_the_colours():
    picture = SegmentationDrawing({"classes": CITYSCAPES_CLASSES, "palette": CITYSCAPES_PALETTE}).colour(MASK)
    decoded = cv2.imdecode(np.frombuffer(png_bytes(picture), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), picture)
