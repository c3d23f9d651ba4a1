"""The albumentations adapter and the reading of images."""

import io
import pickle
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from kd_tasks.errors import UserError
from kd_tasks.vision.augment import Augment, argument_names, transform_class
from kd_tasks.vision.images import image_size, read_image, read_labels, write_bytes, write_image, write_labels

FLIP = {"type": "HorizontalFlip", "p": 1.0}


def picture(height=20, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_seed_decides_everything():
    augment = Augment([{"type": "RandomCrop", "height": 8, "width": 8}, {"type": "ColorJitter", "p": 1}])
    image = picture()
    first = augment(image, seed=5)["image"]
    augment(image, seed=6)
    assert np.array_equal(first, augment(image, seed=5)["image"])
    assert np.array_equal(first, pickle.loads(pickle.dumps(augment))(image, seed=5)["image"])
    assert not np.array_equal(first, augment(image, seed=6)["image"])


def test_transforms_draw_independently_of_each_other():
    augment = Augment([{"type": "HorizontalFlip"}, {"type": "VerticalFlip"}])
    corners = np.arange(4, dtype=np.uint8).reshape(2, 2, 1).repeat(3, axis=2)
    seen = Counter(augment(corners, seed=seed)["image"][0, 0, 0] for seed in range(400))
    assert set(seen) == {0, 1, 2, 3}
    assert min(seen.values()) > 60


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"type": "HorizontalFlp"}, r"transforms\[0\]: 'HorizontalFlp' .* Did you mean 'HorizontalFlip'"),
        ({"type": "RandomCrop", "heigth": 3, "width": 3}, r"\.heigth: RandomCrop .* Did you mean 'height'"),
        ({"type": "RandomCrop", "width": 3}, "needs 'height'"),
        ({"type": "RandomCrop", "height": -3, "width": 3}, "RandomCrop: height; Input should be greater"),
        ({"type": "OneOf", "transforms": [{"type": "Rotate", "limt": 3}]}, r"\[0\]\.transforms\[0\]\.limt: Rotate"),
        ({"type": "OneOf"}, r"transforms\[0\]\.transforms: needs a list"),
        ({"type": "Normalize"}, "leave 'Normalize' out"),
        ({"height": 3}, "a transform is written"),
    ],
)
def test_mistakes_in_a_config_are_named(transform, message):
    with pytest.raises(UserError, match=message):
        Augment([transform])


def test_a_transform_that_does_not_fit_the_image_is_a_user_error():
    with pytest.raises(UserError, match=r"image of 20x30.*\(100, 100\)"):
        Augment([{"type": "RandomCrop", "height": 100, "width": 100}])(picture())


def test_names_and_arguments_can_be_looked_up():
    assert transform_class("HorizontalFlip").__name__ == "HorizontalFlip"
    assert {"height", "width", "p"} <= set(argument_names("RandomCrop"))
    assert transform_class("Sequential").__name__ == "Sequential"


@pytest.mark.parametrize(
    "transform",
    [
        {"type": "PadIfNeeded", "min_height": 40, "min_width": 40},
        {"type": "Rotate", "limit": (45, 45), "p": 1},
        {"type": "Affine", "translate_px": 15, "p": 1},
        {"type": "Sequential", "transforms": [{"type": "Pad", "padding": 5}], "p": 1},
    ],
)
def test_masks_are_ignored_where_there_is_no_image(transform):
    result = Augment([transform])(picture(), mask=np.ones((20, 30), np.uint8), seed=1)
    assert set(np.unique(result["mask"])) == {1, 255}
    given = Augment([{"type": "Pad", "padding": 5, "fill_mask": 7}])(picture(), np.ones((20, 30), np.uint8))
    assert set(np.unique(given["mask"])) == {1, 7}


def test_image_mask_and_keypoints_get_the_same_geometry():
    mask = np.zeros((20, 30), np.uint8)
    mask[6, 21] = 1
    image = np.repeat(mask[..., None], 3, axis=2) * 200
    augment = Augment([{"type": "RandomCrop", "height": 18, "width": 26}, {"type": "D4", "p": 1}])
    for seed in range(8):
        result = augment(image, mask, keypoints=np.array([[21.0, 6.0]]), seed=seed)
        (x, y), (row, column) = result["keypoints"][0], np.argwhere(result["mask"])[0]
        assert (column, row) == pytest.approx((x, y), abs=1e-4)
        assert result["image"][row, column, 0] == 200


def test_left_and_right_change_places_in_a_mirrored_image_only():
    points = np.array([[[2, 5, 2], [27, 5, 1], [15, 9, 2]]], np.float32)  # left, right, nose; visibility third
    swaps = [1, 0, 2]
    flipped = Augment([FLIP], swaps)(picture(), keypoints=points)["keypoints"]
    assert flipped.tolist() == [[[2, 5, 1], [27, 5, 2], [14, 9, 2]]]
    unnamed = Augment([FLIP])(picture(), keypoints=points)["keypoints"]
    assert unnamed.tolist() == [[[27, 5, 2], [2, 5, 1], [14, 9, 2]]]
    turned = Augment([FLIP, {"type": "VerticalFlip", "p": 1}], swaps)(picture(), keypoints=points)["keypoints"]
    assert turned[0, :, 2].tolist() == [2, 1, 2], "two reflections are a turn, and a turn changes no sides"
    nested = Augment([{"type": "OneOf", "transforms": [FLIP, {"type": "Transpose"}], "p": 1}], swaps)
    assert all(nested(picture(), keypoints=points, seed=s)["keypoints"][0, 0, 2] == 1 for s in range(6))
    square = Augment([{"type": "D4", "p": 1}], swaps)
    image = picture(30, 30)
    for seed in range(12):
        moved = square(image, keypoints=points, seed=seed)["keypoints"][0]
        back = moved if moved[0, 2] == 2 else moved[swaps]
        (ax, ay), (bx, by) = (back[1] - back[0])[:2], (back[2] - back[0])[:2]
        mirrored = ax * by - ay * bx < 0
        assert mirrored == (moved[0, 2] == 1)


def test_keypoints_outside_the_image_keep_their_place():
    points = np.array([[1.0, 1.0], [29.0, 19.0]])
    result = Augment([{"type": "Crop", "x_min": 10, "y_min": 5, "x_max": 20, "y_max": 15}])(picture(), keypoints=points)
    assert result["keypoints"].tolist() == [[-9, -4], [19, 14]]
    with pytest.raises(UserError, match="exchange points in pairs"):
        Augment([], keypoint_swaps=[1, 2, 0])


def test_boxes_are_cut_and_labels_stay_integers():
    boxes = np.array([[2, 2, 12, 12], [25, 15, 60, 60], [-9, -9, -1, -1]])
    result = Augment([FLIP])(picture(), boxes=boxes, labels=np.array([7, 8, 9]), seed=0)
    assert result["boxes"] == pytest.approx(np.array([[18, 2, 28, 12], [0, 15, 5, 20]]), abs=1e-4)
    assert result["labels"].dtype == np.int64
    assert result["labels"].tolist() == [7, 8]
    assert result["kept"].tolist() == [0, 1]
    none = Augment([FLIP])(picture(), boxes=np.zeros((0, 4)), labels=np.zeros(0, np.int64))
    assert none["boxes"].shape == (0, 4)
    assert none["labels"].shape == (0,)


def test_albumentations_is_imported_late_and_without_a_call_home():
    code = (
        "import os, sys; from kd_tasks.vision.augment import Augment; Augment([]);"
        "late = 'albumentations' not in sys.modules; Augment([dict(type='NoOp')]);"
        "sys.exit(0 if late and os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1' else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def encoded(suffix):
    return cv2.imencode(suffix, picture(60, 80))[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.995])
def test_truncated_images_are_refused_by_name(tmp_path, suffix, share):
    data = encoded(suffix)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    for read in (read_image, read_labels, image_size):
        with pytest.raises(UserError, match=rf"cut\{suffix}: the image is truncated"):
            read(path)


def test_missing_empty_and_foreign_files_are_refused_by_name(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image at all")
    for name, message in (("none.png", "no such file"), ("empty.png", "is empty"), ("text.png", "not an image")):
        for read in (read_image, read_labels):
            with pytest.raises(UserError, match=rf"{name}: .*{message}"):
                read(tmp_path / name)
    damaged = bytearray(encoded(".png"))
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "damaged.png").write_bytes(damaged)
    with pytest.raises(UserError, match="corrupt"):
        read_labels(tmp_path / "damaged.png")


def test_a_thumbnail_does_not_hide_that_the_picture_is_cut(tmp_path):
    thumbnail = b"Exif\x00\x00" + b"\xff\xd8\xff\xd9"
    data = encoded(".jpg")
    with_thumbnail = data[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + data[2:]
    (tmp_path / "whole.jpg").write_bytes(with_thumbnail)
    (tmp_path / "cut.jpg").write_bytes(with_thumbnail[:-200])
    assert read_image(tmp_path / "whole.jpg").shape == (60, 80, 3)
    with pytest.raises(UserError, match="truncated"):
        read_image(tmp_path / "cut.jpg")


def test_images_are_rgb_as_stored_and_exif_turns_nothing(tmp_path):
    red = np.zeros((10, 20, 3), np.uint8)
    red[..., 0] = 250
    write_image(tmp_path / "red.png", red)
    assert np.array_equal(read_image(tmp_path / "red.png"), red)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    buffer = io.BytesIO()
    Image.fromarray(red).save(buffer, format="JPEG", exif=exif)
    write_bytes(tmp_path / "turned.jpg", buffer.getvalue())
    assert read_image(tmp_path / "turned.jpg").shape == (10, 20, 3)
    assert image_size(tmp_path / "turned.jpg") == (10, 20)


def test_label_maps_keep_their_numbers(tmp_path):
    labels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    write_labels(tmp_path / "grey.png", labels)
    write_labels(tmp_path / "palette.png", labels, palette=[(i, 255 - i, 7) for i in range(256)])
    write_labels(tmp_path / "deep.png", labels.astype(np.uint16) * 300)
    assert np.array_equal(read_labels(tmp_path / "grey.png"), labels)
    assert np.array_equal(read_labels(tmp_path / "palette.png"), labels)
    assert np.array_equal(read_labels(tmp_path / "deep.png"), labels.astype(np.uint16) * 300)
    few = Image.fromarray(labels % 4)
    few.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    few.save(tmp_path / "few.png", bits=2)
    assert np.array_equal(read_labels(tmp_path / "few.png"), labels % 4)
    Image.fromarray(labels % 2 == 1).save(tmp_path / "bits.png")
    assert np.array_equal(read_labels(tmp_path / "bits.png"), labels % 2)
    write_image(tmp_path / "colours.png", picture())
    with pytest.raises(UserError, match=r"colours\.png: holds colours"):
        read_labels(tmp_path / "colours.png")


def test_grey_labels_of_few_bits_are_not_stretched(tmp_path):
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for bits in (2, 4):
        values = np.array([[0, 1, 2, 3]], np.uint8)
        row = sum(int(v) << (bits * (3 - i)) for i, v in enumerate(values[0])).to_bytes(bits // 2, "big")
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0))
        data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\x00" + row)) + chunk(b"IEND", b"")
        (tmp_path / "few.png").write_bytes(data)
        assert np.array_equal(read_labels(tmp_path / "few.png"), values)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")

    def fail(self, data):
        self.touch()
        raise OSError("disk full")

    monkeypatch.setattr(type(target), "write_bytes", fail)
    with pytest.raises(UserError, match=r"a\.bin: could not be written"):
        write_bytes(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
