"""Synthetic faces: the benchmarks' formats, the same bytes for the same seed, points where the picture shows them."""

import json
from pathlib import Path

import numpy as np
import pytest
from kd_landmarks.synthetic import (
    ATTRIBUTES,
    CHALLENGING,
    COMMON,
    IBUG,
    SIZE,
    SOURCES,
    TEST,
    TRAIN,
    WFLW,
    Face,
    attributes,
    draw,
    write_300w,
    write_wflw,
)
from scipy.io import loadmat

from kd_tasks.errors import UserError
from kd_tasks.vision.images import read_image

FLIP = Path(__file__).parents[1] / "fixtures" / "metrics" / "landmarks" / "flip.json"
COUNTS = {"train": 25, "common": 10, "challenging": 4, "test": 5}
FOLDERS = {
    "afw": 3,
    "helen/trainset": 16,
    "lfpw/trainset": 6,
    "helen/testset": 6,
    "lfpw/testset": 4,
    "ibug": 4,
    "300W/01_Indoor": 2,
    "300W/02_Outdoor": 3,
}
LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{}.txt"
CALM = Face(centre=(64.0, 64.0), scale=40.0)


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def read_pts(path):
    """A reader of its own: 0-based points."""
    lines = path.read_text().splitlines()
    assert lines[0] == "version: 1" and lines[2] == "{" and lines[-1] == "}"
    points = np.array([[float(v) for v in line.split()] for line in lines[3:-1]])
    assert int(lines[1].removeprefix("n_points:")) == len(points)
    return points - 1


def swaps(layout):
    """Index of each point's partner, from what HRNet's code does with x -> width - x."""
    case = json.loads(FLIP.read_text())["300W" if layout == IBUG else "WFLW"]
    mirrored = np.array(case["points"]) * [-1, 1] + [case["width"], 0]
    flipped = np.array(case["hrnet_flipped"])
    distances = np.abs(flipped[:, None] - mirrored[None]).sum(axis=-1)
    assert (distances.min(axis=1) < 1e-6).all()
    return distances.argmin(axis=1)


@pytest.fixture(scope="module")
def w300(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins") / "300w"
    write_300w(root, seed=3, **COUNTS)
    return root


@pytest.fixture(scope="module")
def wflw(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins") / "wflw"
    write_wflw(root, seed=3, train=20, test=30)
    return root


# --- Formats ---------------------------------------------------------------------------------------------------------


def test_300w_has_the_folders_of_the_benchmark_in_its_proportions(w300):
    for folder, count in FOLDERS.items():
        files = sorted(path for path in (w300 / folder).iterdir() if path.suffix == ".pts")
        assert len(files) == count, folder
        for file in files:
            (picture,) = [path for path in file.parent.iterdir() if path.stem == file.stem and path != file]
            assert read_image(picture).shape == (SIZE, SIZE, 3)
            points = read_pts(file)
            assert points.shape == (68, 2)
            assert (points > -0.1 * SIZE).all() and (points < 1.1 * SIZE).all()
    assert (w300 / "ibug" / "image_010 01.pts").is_file(), "a name with a blank, as in ibug"


def test_the_boxes_of_300w_lie_around_the_faces(w300):
    for source in SOURCES:
        if source.boxes is None:
            assert source.split == "test"
            continue
        cells = loadmat(w300 / "Bounding_Boxes" / f"bounding_boxes_{source.boxes}.mat")["bounding_boxes"]
        assert cells.shape == (1, FOLDERS[source.folder])
        for cell in cells[0]:
            name, detected, truth = (cell[key][0, 0] for key in ("imgName", "bb_detector", "bb_ground_truth"))
            points = read_pts((w300 / source.folder / str(name[0])).with_suffix(".pts"))
            assert np.allclose(truth[0], np.concatenate([points.min(axis=0), points.max(axis=0)]) + 1, atol=1e-5)
            low, high = np.maximum(detected[0][:2], truth[0][:2]), np.minimum(detected[0][2:], truth[0][2:])
            shared = np.prod(np.maximum(high - low, 0)) / np.prod(truth[0][2:] - truth[0][:2])
            assert 0.7 < shared <= 1
            assert not np.allclose(detected, truth, atol=0.5), "a detector errs"


def test_wflw_has_98_points_a_box_six_attributes_and_a_name(wflw):
    for split, count in (("train", 20), ("test", 30)):
        lines = (wflw / LISTS.format(split)).read_text().splitlines()
        assert len(lines) == count
        seen = np.zeros(6, int)
        for line in lines:
            fields = line.split(" ")
            assert len(fields) == 207
            points, box = np.array(fields[:196], float).reshape(98, 2), np.array(fields[196:200], int)
            flags = np.array(fields[200:206], int)
            assert set(flags.tolist()) <= {0, 1}
            seen += flags
            assert (points.min(axis=0) >= box[:2]).all() and (points.max(axis=0) <= box[2:]).all()
            height, width, _ = read_image(wflw / "WFLW_images" / fields[206]).shape
            assert height == SIZE and width in (SIZE, 2 * SIZE)
            assert points[:, 0].min() > -0.1 * SIZE and points[:, 0].max() < width + 0.1 * SIZE
        names = [line.rsplit(" ", 1)[1] for line in lines]
        assert max(names.count(name) for name in names) == 2, "some pictures show two faces"
        assert split == "train" or seen.all(), "every subset of the test has faces"


def test_attributes_are_as_frequent_as_asked():
    shares = (0.1, 0.5, 0.3, 0.05, 0.9, 0.0)
    found = [attributes(number, shares, "test") for number in range(400)]
    for name, share in zip(ATTRIBUTES, shares, strict=True):
        assert sum(name in each for each in found) / 400 == pytest.approx(share, abs=0.02)
    both = sum({"pose", "expression"} <= each for each in found) / 400
    assert both == pytest.approx(0.05, abs=0.03), "they do not go together"


def test_the_constants_are_what_is_written_by_default():
    assert (TRAIN, COMMON, CHALLENGING, TEST, SIZE) == (600, 120, 40, 60, 128)


# --- Deterministic, complete, careful --------------------------------------------------------------------------------


def test_the_seed_decides_every_byte(w300, wflw, tmp_path):
    write_300w(tmp_path / "again", seed=3, **COUNTS)
    assert contents(tmp_path / "again") == contents(w300)
    write_wflw(tmp_path / "wflw", seed=3, train=20, test=30)
    assert contents(tmp_path / "wflw") == contents(wflw)
    few = {"train": 6, "common": 3, "challenging": 1, "test": 2}
    write_300w(tmp_path / "fewer", seed=3, **few)
    write_300w(tmp_path / "other", seed=4, **few)
    ours, same, other = contents(w300), contents(tmp_path / "fewer"), contents(tmp_path / "other")
    faces = [name for name in same if name.endswith((".pts", ".jpg", ".png"))]
    assert len(faces) == 24
    assert all(ours[name] == same[name] for name in faces)
    assert not any(ours[name] == other[name] for name in faces)


def test_no_picture_occurs_twice(w300, wflw):
    files = [path for root in (w300, wflw) for path in root.rglob("*") if path.suffix in (".jpg", ".png")]
    pictures = [path.read_bytes() for path in files]
    assert len(set(pictures)) == len(pictures) > 80


def test_an_interrupted_twin_is_completed_and_other_data_is_left_alone(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 12:
            raise Stop

    few = {"train": 10, "common": 4, "challenging": 2, "test": 2}
    with pytest.raises(Stop):
        write_300w(tmp_path / "t", **few, progress=stop)
    steps = []
    write_300w(tmp_path / "t", **few, progress=lambda *step: steps.append(step))
    assert steps == [(done, 18) for done in range(1, 19)]
    with pytest.raises(UserError, match="another synthetic twin"):
        write_300w(tmp_path / "t", seed=1, **few)
    with pytest.raises(UserError, match="another synthetic twin"):
        write_wflw(tmp_path / "t")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "face.pts").write_text("real data")
    with pytest.raises(UserError, match="is not empty"):
        write_300w(tmp_path / "real", **few)
    for wrong in ({"size": 63}, {"train": -1}):
        with pytest.raises(UserError, match="size is at least"):
            write_300w(tmp_path / "wrong", **{**few, **wrong})
    assert not (tmp_path / "wrong").exists()


# --- Faces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [IBUG, WFLW])
def test_a_mirrored_face_is_the_face_that_looks_to_the_other_side(layout):
    turned = Face(centre=(64.0, 60.0), scale=40.0, yaw=0.4, roll=0.2, pitch=-0.1, opened=0.4, smile=0.5, skew=0.02)
    other = Face(centre=(63.0, 60.0), scale=40.0, yaw=-0.4, roll=-0.2, pitch=-0.1, opened=0.4, smile=0.5, skew=-0.02)
    mirrored = turned.landmarks(layout)[swaps(layout)] * [-1, 1] + [127, 0]
    assert np.abs(mirrored - other.landmarks(layout)).max() < 1e-6
    unswapped = turned.landmarks(layout) * [-1, 1] + [127, 0]
    assert np.abs(unswapped - other.landmarks(layout)).max() > 20


def test_names_and_sides_of_the_points():
    """Left and right are the picture's; indices as in the benchmarks."""
    ibug, wflw = CALM.landmarks(IBUG), CALM.landmarks(WFLW)
    assert ibug.shape == (68, 2) and wflw.shape == (98, 2)
    x, y = ibug.T
    assert x[0] == x.min() and x[16] == x.max() and y[8] == y.max()
    assert x[17] < x[21] < x[22] < x[26] and y[17:27].max() < y[36:48].min()
    assert x[36] < x[39] < x[42] < x[45] and x[48] < x[60] < x[64] < x[54]
    assert (y[37], y[38], y[43], y[44]) < (y[41], y[40], y[47], y[46])
    assert y[27] < y[30] < y[33] < y[51] < y[62] < y[66] < y[57] < y[8]
    both = {0: 0, 8: 16, 16: 32, 36: 60, 39: 64, 42: 68, 45: 72, 27: 51, 30: 54, 31: 55, 35: 59, 48: 76, 51: 79, 54: 82,
            57: 85, 60: 88, 62: 90, 64: 92, 66: 94}  # fmt: skip
    assert np.allclose(ibug[list(both)], wflw[list(both.values())]), "the same places in both layouts"
    for pupil, eye in ((96, slice(60, 68)), (97, slice(68, 76))):
        assert (wflw[eye].min(axis=0) < wflw[pupil]).all() and (wflw[pupil] < wflw[eye].max(axis=0)).all()


@pytest.mark.parametrize(
    ("change", "moved", "still"),
    [
        ({"opened": 0.8}, [8, 57, 66], [0, 27, 36, 45]),
        ({"smile": 1.0}, [48, 54], [0, 8, 27, 36]),
        ({"raised": 1.0}, [19, 24], [8, 27, 36, 48]),
        ({"lids": 0.2}, [37, 41, 43, 47], [8, 36, 39, 27]),
        ({"nose_length": 0.6}, [30, 33], [8, 27, 36, 48]),
        ({"brow_height": 0.36}, [19, 24], [8, 27, 36, 48]),
        ({"mouth_width": 0.45}, [48, 54], [8, 27, 51]),
    ],
)
def test_identity_and_expression_move_their_points_alone(change, moved, still):
    changed = Face(centre=(64.0, 64.0), scale=40.0, **change)
    shift = np.linalg.norm(changed.landmarks(IBUG) - CALM.landmarks(IBUG), axis=1)
    assert shift[moved].min() > 1.2
    assert shift[still].max() < 1e-9


def test_a_turn_brings_the_nose_towards_the_far_cheek():
    x = Face(centre=(64.0, 64.0), scale=40.0, yaw=0.6).landmarks(IBUG)[:, 0]
    assert (x[16] - x[30]) < 0.5 * (x[30] - x[0])
    assert (x[45] - x[42]) < 0.8 * (x[39] - x[36])


def brightness(image, point):
    x, y = np.round(point).astype(int)
    return image[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean()


def test_the_points_are_where_the_picture_shows_them():
    """Pupils are darker than what is below the eyes, lips redder than cheeks, and the contour is an edge."""
    dark = red = edge = faces = 0
    for number in range(60):
        portrait = draw(0, "plain", number, frozenset(), WFLW)
        image, points = portrait.image.astype(float), portrait.points
        eye = np.linalg.norm(points[72] - points[60])
        below = points[[66, 74]] + 0.16 * eye * (points[16] - points[51]) / np.linalg.norm(points[16] - points[51])
        dark += all(brightness(image, points[96 + i]) < brightness(image, below[i]) - 8 for i in (0, 1))
        colour = image / image.mean(axis=2, keepdims=True).clip(1)
        lip, cheek = points[[85, 94]].mean(axis=0), 0.5 * (points[57] + points[8])
        red += brightness(colour[..., :1], lip) > brightness(colour[..., :1], cheek)
        middle = points[:33].mean(axis=0)
        inner, outer = (middle + factor * (points[[12, 14, 16, 18, 20]] - middle) for factor in (0.9, 1.1))
        steps = [abs(brightness(image, a) - brightness(image, b)) for a, b in zip(inner, outer, strict=True)]
        edge += np.median(steps) > 6
        faces += 1
    assert dark > 0.75 * faces, "some eyes are nearly shut, or behind hair"
    assert red > 0.7 * faces
    assert edge > 0.75 * faces


def sharpness(image):
    grey = image.mean(axis=2)
    return np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()


def test_every_attribute_is_drawn():
    """Attributes that are said to be there change the picture, or the points, as their names say."""
    pairs = {
        name: [(draw(1, "a", n, frozenset()), draw(1, "a", n, frozenset({name}))) for n in range(24)]
        for name in ATTRIBUTES
    }

    def turn(portrait):
        x = portrait.points[:, 0]
        return abs(2 * x[30] - x[0] - x[16]) / (x[16] - x[0])

    def mouth(portrait):
        p = portrait.points
        return np.ptp(p[48:68, 1]) + np.ptp(p[48:68, 0])

    def mean(measure, pairs):
        return np.mean([[measure(before), measure(after)] for before, after in pairs], axis=0)

    plain, turned = mean(turn, pairs["pose"])
    assert turned > 2 * plain
    plain, moved = mean(mouth, pairs["expression"])
    assert moved > 1.1 * plain
    plain, blurred = mean(lambda p: sharpness(p.image.astype(float)), pairs["blur"])
    assert blurred < 0.95 * plain
    plain, dim = mean(lambda p: p.image.reshape(-1, 3).mean(axis=1).std(), pairs["illumination"])
    lights = [abs(np.log(after.image.mean() / before.image.mean())) for before, after in pairs["illumination"]]
    assert np.mean(lights) > 0.25 or dim > 1.2 * plain
    for name in ("make-up", "occlusion"):
        for before, after in pairs[name]:
            assert np.array_equal(before.points, after.points), "what covers a face does not move it"
            assert (np.abs(before.image.astype(int) - after.image).max(axis=2) > 40).mean() > 0.01


def nme(errors, points):
    return 100 * errors.mean() / np.linalg.norm(points[45] - points[36])


def test_the_mean_face_is_a_poor_guess_and_the_challenging_part_harder():
    """What the best fitting mean face leaves over, in percent of the distance of the eyes."""
    mean = CALM.landmarks(IBUG)

    def left_over(source):
        found = []
        for number in range(40):
            points = draw(0, source.folder, number, attributes(number, source.shares, source.folder)).points
            flat = np.concatenate([mean, np.ones((68, 1))], axis=1)
            fit = flat @ np.linalg.lstsq(flat, points, rcond=None)[0]
            found.append(nme(np.linalg.norm(fit - points, axis=1), points))
        return np.mean(found)

    common, challenging = left_over(SOURCES[3]), left_over(SOURCES[5])
    assert common > 4
    assert challenging > 1.3 * common


def test_faces_are_as_large_as_those_of_the_benchmarks_in_small_pictures():
    sizes = [np.ptp(draw(0, "sizes", n).points, axis=0).max() for n in range(40)]
    assert min(sizes) > 50 and max(sizes) < 118
    assert 65 < np.median(sizes) < 95
