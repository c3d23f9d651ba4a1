"""Facial landmark data: loaders against the official ones, exact crops and affines, labelled parts, faults."""

import json
import pickle
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from kd_landmarks.datasets import AFLW19, COFW, WFLW, Faces300W, FacesFolder
from kd_landmarks.markup import MARKUPS
from mmengine.registry import DATASETS
from scipy.io import loadmat, savemat
from torch.utils.data import DataLoader

from kd_tasks.engine.config_schema import arguments_of
from kd_tasks.engine.randomness import EpochIndex, seed_worker
from kd_tasks.errors import UserError
from kd_tasks.task import collate_samples
from kd_tasks.vision.cards import check_dataset, read_card
from kd_tasks.vision.images import read_image, write_image

FIXTURES = Path(__file__).parents[1] / "fixtures"
LOADERS = FIXTURES / "loaders"
COMMON = {"data_root", "split", "transforms", "test_mode", "size", "expand", "margin", "labelled", "labelled_seed"}
RECIPE = [
    {"type": "HorizontalFlip", "p": 0.5},
    {"type": "Affine", "rotate": (-30, 30), "scale": (0.9, 1.1), "translate_percent": (-0.05, 0.05), "p": 0.9},
    {"type": "RandomRotate90", "p": 0.2},
    {"type": "Transpose", "p": 0.2},
    {"type": "VerticalFlip", "p": 0.2},
]
SPLITS_300W = {"train": "train", "common": "common", "challenging": "challenge", "test": "test300w"}


def expected(name, file="expected.json"):
    return json.loads((LOADERS / name / file).read_text())


def raw(dataset):
    """The items in the coordinates of the pictures."""
    return [dataset[i] for i in range(len(dataset))]


def points_of(item):
    return item["targets"]["points"].numpy()


def through(affine, points):
    affine = np.asarray(affine, np.float64)
    return points @ affine[:, :2].T + affine[:, 2]


def write_pts(path, points, head="version: 1\nn_points:  {n}\n{{\n", tail="}\n", line="{x:.6f} {y:.6f}\n"):
    """Points that count pixels from 0, in a file that counts from 1."""
    body = "".join(line.format(x=x + 1, y=y + 1) for x, y in points)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head.format(n=len(points)) + body + tail)


def own(root, number=6, points=68, size=(90, 120), split="train", start=0):
    """Pictures of noise with points in their middle."""
    rng = np.random.default_rng(start)
    for i in range(start, start + number):
        write_image(root / split / f"face {i:03}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        write_pts(root / split / f"face {i:03}.pts", rng.uniform(0.25, 0.75, (points, 2)) * (size[1], size[0]))
    return root


# --- The benchmarks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [*SPLITS_300W, "full"])
def test_300w_reads_what_the_official_loader_reads(split):
    table = {k: v for k, v in expected("300w").items() if "/" in k}
    wanted_roles = [SPLITS_300W[s] for s in (("common", "challenging") if split == "full" else (split,))]
    wanted = {name for name, entry in table.items() if entry["split"] in wanted_roles}
    items = raw(Faces300W(LOADERS / "300w", split, test_mode=True))
    assert {item["meta"]["path"] for item in items} == wanted
    for item in items:
        entry = table[item["meta"]["path"]]
        assert np.allclose(points_of(item), np.array(entry["points"]) - 1, atol=1e-4)
        x1, y1, x2, y2 = np.array(entry["box_from_points"]) - 1
        assert np.allclose(item["targets"]["box"], [x1, y1, x2 - x1, y2 - y1], atol=1e-4)
        assert item["targets"]["visible"].all() and not item["targets"]["occluded"].any()
        role, source = item["meta"]["subsets"]
        assert SPLITS_300W[role] == entry["split"]
        assert source in item["meta"]["path"].lower()


@pytest.mark.parametrize(("box", "column"), [("detector", 1), ("ground_truth", 2)])
def test_300w_boxes_are_found_although_a_name_has_a_blank(box, column):
    listed = {Path(name).name: corners for entries in expected("300w")["boxes"].values() for name, *corners in entries}
    found = 0
    for split in ("train", "full"):
        for item in raw(Faces300W(LOADERS / "300w", split, test_mode=True, box=box)):
            if Path(item["meta"]["path"]).stem not in listed:
                continue
            x1, y1, x2, y2 = listed[Path(item["meta"]["path"]).stem][column - 1]
            assert item["targets"]["box"].tolist() == [x1 - 1, y1 - 1, x2 - x1, y2 - y1]
            found += 1
    assert found == len(listed)


def test_300w_matches_boxes_whose_names_leave_the_blank_out(tmp_path):
    root = shutil.copytree(LOADERS / "300w", tmp_path / "300w")
    path = root / "Bounding_Boxes" / "bounding_boxes_ibug.mat"
    boxes = np.atleast_1d(loadmat(path, squeeze_me=True, struct_as_record=False)["bounding_boxes"])
    stored = np.empty((1, len(boxes)), object)
    for place, box in enumerate(boxes):
        stored[0, place] = {
            "imgName": str(box.imgName).replace(" ", ""),
            "bb_detector": box.bb_detector,
            "bb_ground_truth": box.bb_ground_truth,
        }
    savemat(path, {"bounding_boxes": stored})
    again = np.atleast_1d(loadmat(path, squeeze_me=True, struct_as_record=False)["bounding_boxes"])
    names = [str(box.imgName) for box in again]
    assert names == ["image_003_1.jpg", "image_01001.jpg"]
    items = {i["meta"]["path"]: i for i in raw(Faces300W(root, "challenging", test_mode=True, box="detector"))}
    assert items["ibug/image_010 01.jpg"]["targets"]["box"].tolist() == [10, 10, 39, 41]


def test_300w_folders_may_be_spelt_otherwise(tmp_path):
    root = tmp_path / "data"
    shutil.copytree(LOADERS / "300w", root / "images")
    (root / "images" / "300W").rename(root / "images" / "Test")
    (root / "images" / "lfpw").rename(root / "images" / "LFPW")
    assert [i["meta"]["path"] for i in raw(Faces300W(root, "test"))] == [
        "images/Test/01_Indoor/indoor_001.png",
        "images/Test/02_Outdoor/outdoor_001.png",
    ]
    assert [i["meta"]["subsets"][1] for i in raw(Faces300W(root, "train"))] == ["afw", "helen", "lfpw"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_wflw_reads_what_the_official_loader_reads(split):
    wanted = expected("wflw")[split]
    items = raw(WFLW(LOADERS / "wflw", split, test_mode=True, box="annotated"))
    assert [item["meta"]["path"] for item in items] == [f"WFLW_images/{entry['image']}" for entry in wanted]
    for item, entry in zip(items, wanted, strict=True):
        assert np.allclose(points_of(item), entry["points"], atol=1e-4)
        x1, y1, x2, y2 = entry["box"]
        assert item["targets"]["box"].tolist() == [x1, y1, x2 - x1, y2 - y1]
        assert item["meta"]["subsets"] == [name for name, bit in entry["attributes"].items() if bit]


def test_several_faces_of_a_picture_are_samples_of_their_own(tmp_path):
    root = shutil.copytree(LOADERS / "wflw", tmp_path / "wflw")
    path = root / "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt"
    lines = path.read_text().splitlines()
    fields = lines[0].split()
    moved = [str(float(value) + 3) for value in fields[:196]]
    path.write_text("\n".join([*lines, " ".join([*moved, *fields[196:]])]) + "\n")
    first, _, last = raw(WFLW(root, "train", test_mode=True))
    assert first["meta"]["path"] == last["meta"]["path"]
    assert first["meta"]["index"] != last["meta"]["index"]
    assert np.allclose(points_of(first) + 3, points_of(last), atol=1e-4)
    # whole pictures are labelled or not
    for seed in range(8):
        dataset = WFLW(root, "train", labelled=1, labelled_seed=seed)
        chosen = {dataset[i]["meta"]["path"] for i in np.flatnonzero(dataset.is_labelled)}
        assert len(chosen) == 1
        assert dataset.is_labelled.sum() == (2 if first["meta"]["path"] in chosen else 1)


def test_aflw_reads_what_the_official_loader_reads(monkeypatch):
    table = expected("aflw")
    faces, order = table["faces"], table["order_ra_0based"]
    items = raw(AFLW19(LOADERS / "aflw", "train", test_mode=True))
    assert [item["meta"]["path"] for item in items] == [f"flickr/{faces[i]['image']}" for i in order]
    for item, place in zip(items, order, strict=True):
        entry = faces[place]
        visible = np.array(entry["visible"], bool)
        assert np.array_equal(item["targets"]["visible"], visible)
        assert np.allclose(points_of(item)[visible], np.array(entry["points"])[visible], atol=1e-4)
        x, y, w, h = item["targets"]["box"].tolist()
        assert [x, y, x + w, y + h] == entry["box_x1y1x2y2"]
        assert np.sqrt(w * h) == pytest.approx(entry["face_size_GTB_sqrt_wh"])
        assert max(w, h) == entry["hrnet_box_size_max_side"]
    by_points = raw(AFLW19(LOADERS / "aflw", "train", test_mode=True, box="points"))
    for item, place in zip(by_points, order, strict=True):
        # SAN lets the extent of the points begin and end a pixel further out
        size = np.sqrt((item["targets"]["box"][2:].numpy() + 2).prod())
        assert size == pytest.approx(faces[place]["face_size_GTL"], abs=1e-3)

    monkeypatch.setattr(AFLW19, "training_faces", 1)
    assert len(AFLW19(LOADERS / "aflw", "train")) == 1
    test = raw(AFLW19(LOADERS / "aflw", "test", test_mode=True))
    frontal = [f"flickr/{faces[i]['image']}" for i in order[1:] if faces[i]["frontal"]]
    assert [item["meta"]["path"] for item in test if item["meta"]["subsets"] == ["frontal"]] == frontal
    assert [i["meta"]["path"] for i in raw(AFLW19(LOADERS / "aflw", "frontal", test_mode=True))] == frontal
    assert len(test) == 4


def test_aflw_finds_pictures_that_are_called_png_and_are_jpg(tmp_path):
    root = shutil.copytree(LOADERS / "aflw", tmp_path / "aflw")
    table = loadmat(root / "AFLWinfo_release.mat")
    table["nameList"][0, 0] = np.array([str(table["nameList"][0, 0][0]).replace(".jpg", ".png")])
    savemat(root / "AFLWinfo_release.mat", {k: v for k, v in table.items() if not k.startswith("_")})
    paths = [item["meta"]["path"] for item in raw(AFLW19(root, "train", test_mode=True))]
    assert "flickr/0/image00000.jpg" in paths
    assert not any(path.endswith(".png") for path in paths)


@pytest.mark.parametrize("split", ["train", "test"])
def test_cofw_reads_its_pictures_and_points(split):
    wanted = expected("cofw", f"COFW_{split}_color.expected.json")
    dataset = COFW(LOADERS / "cofw", split, test_mode=True, box="annotated")
    with h5py.File(LOADERS / "cofw" / f"COFW_{split}_color.mat") as file:
        stored = [file[ref][()] for ref in file["IsTr" if split == "train" else "IsT"][0]]
    assert {array.ndim for array in stored} == {2, 3}
    for item, entry, pixels in zip(raw(dataset), wanted, stored, strict=True):
        assert np.allclose(points_of(item), entry["points_mmpose_0based"], atol=1e-4)
        assert np.array_equal(item["targets"]["occluded"], np.array(entry["occluded"], bool))
        assert item["targets"]["visible"].all()
        x, y, w, h = entry["bbox_xywh"]
        assert item["targets"]["box"].tolist() == [x - 1, y - 1, w, h]
        assert list(item["meta"]["original_size"]) == entry["image_shape_hw"]
        image = dataset.load(item["meta"]["index"])["image"]
        for y, x in ((3, 5), (20, 31)):
            assert np.array_equal(image[y, x], np.broadcast_to(pixels[..., x, y], 3))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_cofw_can_be_read_by_worker_processes(context):
    dataset = COFW(LOADERS / "cofw", "train", size=32)
    assert len(pickle.loads(pickle.dumps(dataset))) == 3
    alone = [item["inputs"] for item in raw(dataset)]
    loader = DataLoader(dataset, 1, num_workers=2, multiprocessing_context=context, collate_fn=collate_samples)
    assert all(torch.equal(batch["inputs"][0], one) for batch, one in zip(loader, alone, strict=True))


def test_mirror_partners_are_those_of_the_official_table():
    for entry in json.loads((FIXTURES / "metrics/landmarks/flip.json").read_text()).values():
        points = np.array(entry["points"])
        mirrored = np.stack([entry["width"] - points[:, 0], points[:, 1]], axis=-1)
        swaps = MARKUPS[len(points)].swaps
        assert np.allclose(mirrored[swaps], entry["hrnet_flipped"])
        assert all(swaps[swaps[i]] == i for i in range(len(points)))


def test_metainfo_names_the_norms():
    info = Faces300W(LOADERS / "300w", "common").metainfo
    assert (info["points"], info["default_norm"], info["classes"]) == (68, "inter_ocular", [])
    assert info["norms"]["inter_ocular"] == ((36,), (45,))
    assert info["norms"]["inter_pupil"] == (tuple(range(36, 42)), tuple(range(42, 48)))
    assert WFLW(LOADERS / "wflw", "test").metainfo["norms"]["inter_ocular"] == ((60,), (72,))
    assert COFW(LOADERS / "cofw", "test").metainfo["norms"]["inter_ocular"] == ((8,), (9,))
    assert AFLW19(LOADERS / "aflw", "train").metainfo["default_norm"] == "box"
    for markup in MARKUPS.values():
        drawn = [point for contour in markup.contours for point in contour]
        assert set(drawn) == set(range(markup.points))


def test_classes_are_registered_with_arguments_that_a_config_can_be_checked_by():
    for cls in (Faces300W, WFLW, AFLW19, COFW, FacesFolder):
        assert DATASETS.get(cls.__name__) is cls
        arguments = arguments_of(cls)
        assert not arguments.open
        assert set(arguments.required) >= COMMON


# --- Geometry --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    """A picture for each of three spots, whose middle is one of 19 points at the same place."""
    root = tmp_path_factory.mktemp("spots")
    rng = np.random.default_rng(3)
    ys, xs = np.mgrid[:140, :160]
    for i in range(6):
        points = rng.uniform((50, 40), (110, 100), (19, 2))
        x, y = points[i * 3]
        spot = 250 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 2.5**2))
        write_image(root / "train" / f"{i}.png", np.repeat(spot.round().astype(np.uint8)[..., None], 3, axis=2))
        write_pts(root / "train" / f"{i}.pts", points)
    return root


@pytest.mark.parametrize("margin", [0.0, 0.25])
@pytest.mark.parametrize("size", [96, (128, 96), 33])
def test_the_affine_leads_from_the_original_picture_to_the_input(spots, size, margin):
    original = FacesFolder(spots, "train", test_mode=True)
    square = not isinstance(size, tuple)
    recipe = RECIPE if square else [RECIPE[0], RECIPE[1], RECIPE[4]]
    dataset = FacesFolder(spots, "train", recipe, size=size, margin=margin, expand=0.6)
    mirrored = 0
    for epoch in range(12):
        for i in range(len(dataset)):
            item = dataset[EpochIndex(i, epoch)]
            affine, points = item["targets"]["to_input"].numpy(), points_of(item)
            assert np.allclose(affine, item["meta"]["to_input"], atol=1e-4)
            flipped = np.linalg.det(affine[:, :2]) < 0
            mirrored += flipped
            before = points_of(original[i])
            order = MARKUPS[19].swaps if flipped else range(19)
            assert np.abs(through(affine, before)[list(order)] - points).max() < 1e-3
            shown = item["inputs"][0].numpy().astype(float)
            assert item["inputs"].shape[1:] == ((size, size) if square else size)
            x, y = through(affine, before[i * 3])
            if not (6 < x < shown.shape[1] - 7 and 6 < y < shown.shape[0] - 7):
                continue
            shown[shown < 8] = 0
            ys, xs = np.mgrid[: shown.shape[0], : shown.shape[1]]
            middle = np.array([(shown * xs).sum(), (shown * ys).sum()]) / shown.sum()
            assert np.abs(middle - (x, y)).max() < (0.15 if size != 33 else 0.3)
    assert 20 < mirrored < 52


def test_large_faces_are_averaged_and_stay_in_place(tmp_path):
    ys, xs = np.mgrid[:700, :900]
    for factor in (2, 3, 7):
        folder = tmp_path / str(factor)
        points = np.array([[301.5, 200.0], [301.5 + 64 * factor, 200.0 + 64 * factor], [401.0, 277.0]])
        spot = 250 * np.exp(-((xs - 401) ** 2 + (ys - 277) ** 2) / (2 * (2.5 * factor) ** 2))
        noise = np.where((xs + ys) % 2, 4, 0)
        write_image(folder / "train/a.png", np.repeat((spot + noise).astype(np.uint8)[..., None], 3, axis=2))
        write_pts(folder / "train/a.pts", points)
        item = FacesFolder(folder, "train", size=64, expand=0.0)[0]
        shown = item["inputs"][0].numpy().astype(float)
        assert shown[:6, :6].std() < 0.6  # a pattern finer than the pixels comes out even
        shown[shown < 15] = 0
        gy, gx = np.mgrid[:64, :64]
        middle = np.array([(shown * gx).sum(), (shown * gy).sum()]) / shown.sum()
        assert np.abs(middle - points_of(item)[2]).max() < 0.1


def test_the_box_fills_the_input_by_expand(tmp_path):
    write_image(tmp_path / "train/a.png", np.zeros((200, 300, 3), np.uint8))
    write_pts(tmp_path / "train/a.pts", [(100, 50), (140, 130), (120, 90)])
    for size, expand in ((64, 0.0), (64, 0.25), ((128, 64), 0.5)):
        item = FacesFolder(tmp_path, "train", size=size, expand=expand, test_mode=True)[0]
        height, width = (size, size) if isinstance(size, int) else size
        assert item["targets"]["box"].tolist() == [100, 50, 40, 80]
        affine = np.array(item["meta"]["to_input"])
        scale = min(height / 80, width / 40) / (1 + expand)
        assert np.allclose(affine[:, :2], np.eye(2) * scale)
        assert np.allclose(through(affine, np.array([120.0, 90.0])), [(width - 1) / 2, (height - 1) / 2])
        assert points_of(item).tolist() == [[100, 50], [140, 130], [120, 90]]


def test_a_margin_fills_the_corners_of_a_rotated_face(tmp_path):
    write_image(tmp_path / "train/a.png", np.full((200, 200, 3), 200, np.uint8))
    write_pts(tmp_path / "train/a.pts", [(70, 70), (130, 130), (100, 110)])
    turn = [{"type": "Affine", "rotate": (30, 30), "p": 1.0}]
    without = FacesFolder(tmp_path, "train", turn, size=64)[0]
    with_margin = FacesFolder(tmp_path, "train", turn, size=64, margin=0.25)[0]
    assert (without["inputs"] == 0).any()
    assert (with_margin["inputs"] == 200).all()
    assert np.allclose(points_of(without), points_of(with_margin), atol=0.02)
    plain = FacesFolder(tmp_path, "train", size=64)[0]
    assert torch.equal(plain["inputs"], FacesFolder(tmp_path, "train", size=64, margin=0.25)[0]["inputs"])


def test_visibility_and_occlusion_change_places_with_the_points():
    flip = [{"type": "HorizontalFlip", "p": 1.0}]
    for cls, name in ((AFLW19, "aflw"), (COFW, "cofw")):
        straight, mirrored = raw(cls(LOADERS / name, "train")), raw(cls(LOADERS / name, "train", flip))
        swaps = list(cls.markup.swaps)
        changed = 0
        for before, after in zip(straight, mirrored, strict=True):
            for key in ("visible", "occluded"):
                assert torch.equal(before["targets"][key][swaps], after["targets"][key])
                changed += not torch.equal(before["targets"][key], after["targets"][key])
            visible = after["targets"]["visible"].numpy()
            there = points_of(before)[swaps]
            there[:, 0] = 255 - there[:, 0]
            assert np.abs(there - points_of(after))[visible].max() < 1e-3
        assert changed


def test_the_same_sample_comes_with_any_number_of_workers(tmp_path):
    dataset = FacesFolder(own(tmp_path), "train", RECIPE, size=48, margin=0.2, labelled=0.5)
    order = [EpochIndex(i, epoch, 5) for epoch in range(2) for i in range(6)]
    runs = []
    for workers in (0, 2):
        loader = DataLoader(
            dataset, 3, sampler=order, num_workers=workers, collate_fn=collate_samples, worker_init_fn=seed_worker
        )
        runs.append(list(loader))
    for one, other in zip(*runs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one["inputs"], other["inputs"], strict=True))
        assert torch.equal(one["targets"]["to_input"], other["targets"]["to_input"])
    assert not torch.equal(runs[0][0]["targets"]["to_input"], runs[0][2]["targets"]["to_input"])
    targets = runs[0][0]["targets"]
    assert {key: (value.dtype, tuple(value.shape)) for key, value in targets.items()} == {
        "points": (torch.float32, (3, 68, 2)),
        "visible": (torch.bool, (3, 68)),
        "occluded": (torch.bool, (3, 68)),
        "labelled": (torch.bool, (3,)),
        "box": (torch.float32, (3, 4)),
        "to_input": (torch.float32, (3, 2, 3)),
    }


def test_plain_samples_are_framed_as_in_training_without_augmentation(tmp_path):
    dataset = FacesFolder(own(tmp_path), "train", RECIPE, size=48, margin=0.2)
    plain = dataset.plain()
    assert torch.equal(plain[2]["inputs"], FacesFolder(tmp_path, "train", size=48)[2]["inputs"])
    assert torch.equal(plain[2]["targets"]["points"], FacesFolder(tmp_path, "train", size=48)[2]["targets"]["points"])


# --- Labelled parts --------------------------------------------------------------------------------------------------


def labelled_names(dataset):
    return {dataset[i]["meta"]["path"] for i in range(len(dataset)) if dataset[i]["targets"]["labelled"]}


def test_labelled_parts_are_nested_and_belong_to_their_seed_alone(tmp_path):
    root = own(tmp_path, 20, points=5, size=(40, 40))
    parts = {}
    for share in (0.1, 0.2, 0.5, 1.0):
        dataset = FacesFolder(root, "train", labelled=share, labelled_seed=3, size=16)
        parts[share] = labelled_names(dataset)
        assert len(parts[share]) == round(20 * share)
        assert len(dataset) == 20
        assert dataset.is_labelled.tolist() == [bool(dataset[i]["targets"]["labelled"]) for i in range(20)]
        alone = FacesFolder(root, "train", labelled=share, labelled_seed=3, size=16, keep_unlabelled=False)
        assert alone.is_labelled.all()
        # labelled samples come first, so that their indices and with them their augmentations are the same in both
        assert [alone[i]["meta"]["path"] for i in range(len(alone))] == [
            dataset[i]["meta"]["path"] for i in range(len(alone))
        ]
        assert labelled_names(alone) == parts[share]
    assert parts[0.1] < parts[0.2] < parts[0.5] < parts[1.0]
    torch.manual_seed(99)
    np.random.seed(99)

    def drawn(seed):
        return frozenset(labelled_names(FacesFolder(root, "train", labelled=4, labelled_seed=seed, size=16)))

    assert drawn(3) == parts[0.2]
    assert len({drawn(seed) for seed in range(6)}) == 6


def test_points_of_unlabelled_samples_stay_for_the_analysis(tmp_path):
    root = own(tmp_path, 10, points=5, size=(40, 40))
    everything = {i["meta"]["path"]: i for i in raw(FacesFolder(root, "train", size=16))}
    for item in raw(FacesFolder(root, "train", labelled=0.2, size=16)):
        assert torch.equal(item["targets"]["points"], everything[item["meta"]["path"]]["targets"]["points"])
    assert all(item["targets"]["labelled"] for item in everything.values())


@pytest.mark.parametrize("labelled", [0, 0.0, 1.5, -1, 7, True])
def test_a_labelled_part_that_cannot_be_is_refused(tmp_path, labelled):
    with pytest.raises(UserError, match=r"labelled=.*0\.2, or a number from 1 to 6"):
        FacesFolder(own(tmp_path), "train", labelled=labelled)


def test_pictures_that_nobody_annotated_join_as_unlabelled(tmp_path):
    root = own(tmp_path, 4)
    for i, size in enumerate(((60, 60), (50, 100))):
        write_image(root / "unlabelled" / f"{i}.png", np.full((*size, 3), 90, np.uint8))
    dataset = FacesFolder(root, "train", size=48, labelled=0.5, unlabelled="unlabelled")
    assert dataset.is_labelled.tolist() == [True] * 2 + [False] * 4
    last = dataset[5]
    assert not last["targets"]["visible"].any()
    assert last["targets"]["points"].shape == (68, 2)
    assert last["meta"]["subsets"] == ["unlabelled"]
    assert (dataset[4]["inputs"] == 90).all()  # a square picture is used whole
    assert torch.equal((last["inputs"] == 90).all(0).sum(0), torch.full((48,), 24))  # and any other entirely
    assert len(FacesFolder(root, "train", unlabelled="unlabelled", keep_unlabelled=False)) == 4
    with pytest.raises(UserError, match=r"no folder 'unlabeled'.*'unlabelled'"):
        FacesFolder(root, "train", unlabelled="unlabeled")


# --- Files of one's own ----------------------------------------------------------------------------------------------


def test_pts_may_be_written_loosely(tmp_path):
    points = np.random.default_rng(0).uniform(5, 30, (68, 2))
    write_image(tmp_path / "train/a b.jpg", np.zeros((40, 40, 3), np.uint8))
    write_pts(
        tmp_path / "train/a b.pts",
        points,
        head="version: 1 \r\nn_points:  {n}  \r\n\r\n{{ \r\n",
        line="  {x:.6f}   {y:.6f}  \r\n",
        tail="\r\n } \r\n\r\n",
    )
    item = FacesFolder(tmp_path, "train", test_mode=True)[0]
    assert item["meta"]["path"] == "train/a b.jpg"
    assert np.allclose(points_of(item), points, atol=1e-5)


def test_schemes_of_ones_own(tmp_path):
    root = own(tmp_path, points=5)
    flip = [{"type": "HorizontalFlip", "p": 1.0}]
    with pytest.raises(UserError, match=r"mirrored.*FacesFolder\(swaps="):
        FacesFolder(root, "train", flip)[0]
    options = {"swaps": [1, 0, 2, 4, 3], "norms": {"eyes": ((0,), (1,))}, "contours": [[3, 2, 4]]}
    dataset = FacesFolder(root, "train", flip, size=64, **options)
    info = dataset.metainfo
    assert (info["points"], info["swaps"], info["default_norm"]) == (5, [1, 0, 2, 4, 3], "eyes")
    assert (info["norms"], info["contours"]) == ({"eyes": ((0,), (1,))}, [[3, 2, 4]])
    straight = points_of(FacesFolder(root, "train", size=64)[1])
    assert np.allclose(points_of(dataset[1])[:, 0], 63 - straight[[1, 0, 2, 4, 3], 0], atol=1e-3)
    assert FacesFolder(own(tmp_path / "known", 1), "train").metainfo["swaps"] == MARKUPS[68].swaps
    with pytest.raises(UserError, match=r"swaps=.*0 to 4 once"):
        FacesFolder(root, "train", swaps=[1, 2, 0, 3, 4])
    with pytest.raises(UserError, match=r"norms\['eyes'\].*0 to 4"):
        FacesFolder(root, "train", norms={"eyes": ((0,), (5,))})
    with pytest.raises(UserError, match=r"default_norm is 'eye'.*'eyes'"):
        FacesFolder(root, "train", **options, default_norm="eye")


# --- Faults ----------------------------------------------------------------------------------------------------------

GOOD = np.random.default_rng(1).uniform(10, 50, (68, 2))


def with_line(path, number, line):
    """Good points, with another text in a line; the points begin in line 4."""
    write_pts(path, GOOD)
    lines = path.read_text().split("\n")
    lines[number - 1] = line
    path.write_text("\n".join(lines))


BAD_PTS = {
    "count": ("n_points: 68, but holds 67", lambda p: write_pts(p, GOOD[:67], head="version: 1\nn_points: 68\n{{\n")),
    "other": ("holds 67 points; it should hold 68", lambda p: write_pts(p, GOOD[:67])),
    "braces": ("lacks the braces", lambda p: write_pts(p, GOOD, tail="")),
    "nan": (":6: point 3 .*'nan 4'", lambda p: with_line(p, 6, "nan 4")),
    "infinite": (":6: point 3 .*'3 inf'", lambda p: with_line(p, 6, "3 inf")),
    "word": (":4: point 1 .*'1.0 x'", lambda p: with_line(p, 4, "1.0 x")),
    "three": (":4: point 1 .*'1 2 3'", lambda p: with_line(p, 4, "1 2 3")),
    "far": (
        r"point 5 of 68 lies at \(400.0, 20.0\).*100x60",
        lambda p: write_pts(p, [*GOOD[:4], (400, 20), *GOOD[5:]]),
    ),
    "flat": ("extent of its points has no area", lambda p: write_pts(p, [(20, 20)] * 68)),
    "empty": ("lacks the braces", lambda p: p.write_text("")),
    "missing": ("there is no b.pts beside it", lambda p: p.unlink()),
}


@pytest.mark.parametrize("kind", BAD_PTS)
def test_a_faulty_annotation_is_named_with_its_file(tmp_path, kind):
    for name in ("a", "b"):
        write_image(tmp_path / f"train/{name}.jpg", np.zeros((60, 100, 3), np.uint8))
        write_pts(tmp_path / f"train/{name}.pts", GOOD)
    reason, spoil = BAD_PTS[kind]
    spoil(tmp_path / "train/b.pts")
    with pytest.raises(UserError, match=reason) as fault:
        FacesFolder(tmp_path, "train")[1]
    assert "train/b." in str(fault.value)
    assert "\n" not in str(fault.value)
    report = FacesFolder.survey(tmp_path, "train")
    assert [f for f in report.faults if "train/b." in f] == report.faults
    assert len(report.faults) == 1


def test_a_missing_or_broken_picture_is_named(tmp_path):
    root = own(tmp_path, 2)
    (root / "train/face 001.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(UserError, match=r"face 001.png"):
        FacesFolder(root, "train")[1]
    (root / "train/face 001.png").unlink()
    with pytest.raises(UserError, match=r"face 001.pts: there is no picture"):
        FacesFolder(root, "train")

    wflw = shutil.copytree(LOADERS / "wflw", tmp_path / "wflw")
    (wflw / "WFLW_images/36--Football/36_Football_americanfootball_ball_36_415.jpg").unlink()
    with pytest.raises(UserError, match="1 are missing: WFLW_images/36--Football"):
        WFLW(wflw, "test")
    assert WFLW.survey(wflw, "test").missing == [
        "WFLW_images/36--Football/36_Football_americanfootball_ball_36_415.jpg"
    ]


def test_the_distance_of_the_eyes_may_be_zero(tmp_path):
    points = GOOD.copy()
    points[45] = points[36]
    write_image(tmp_path / "train/a.jpg", np.zeros((60, 100, 3), np.uint8))
    write_pts(tmp_path / "train/a.pts", points)
    assert FacesFolder(tmp_path, "train")[0]["targets"]["visible"].all()


def test_lines_of_wflw_are_checked(tmp_path):
    wflw = shutil.copytree(LOADERS / "wflw", tmp_path / "wflw")
    path = wflw / "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt"
    lines = path.read_text().splitlines()
    for line, reason in (
        (lines[1].split(maxsplit=1)[1], "has 206 fields"),
        (f"x {lines[1].split(maxsplit=1)[1]}", "not a number"),
        (f"nan {lines[1].split(maxsplit=1)[1]}", "point 1 of 98"),
    ):
        path.write_text(f"{lines[0]}\n{line}\n")
        with pytest.raises(UserError, match=f"train.txt:2: .*{reason}"):
            WFLW(wflw, "train")


def test_a_box_without_area_or_outside_is_refused(tmp_path):
    aflw = shutil.copytree(LOADERS / "aflw", tmp_path / "aflw")
    table = {k: v for k, v in loadmat(aflw / "AFLWinfo_release.mat").items() if not k.startswith("_")}
    for box, reason in (([10, 10, 5, 40], "face 1 .*box has no area"), ([300, 340, 5, 40], "lies outside")):
        table["bbox"][0] = box
        savemat(aflw / "AFLWinfo_release.mat", table)
        with pytest.raises(UserError, match=reason):
            raw(AFLW19(aflw, "train"))


def test_files_that_are_not_what_they_should_be(tmp_path):
    (tmp_path / "COFW_train_color.mat").write_bytes(b"MATLAB 5.0 " * 30)
    with pytest.raises(UserError, match=r"is not a MATLAB file of version 7\.3"):
        COFW(tmp_path, "train")
    with h5py.File(tmp_path / "COFW_test_color.mat", "w") as file:
        file["other"] = 1
    with pytest.raises(UserError, match=r"lacks the tables IsTr, phisTr, bboxesTr or .* holds other"):
        COFW(tmp_path, "test")
    (tmp_path / "AFLWinfo_release.mat").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be read as a MATLAB file"):
        AFLW19(tmp_path, "train")
    for cls, split in ((Faces300W, "train"), (WFLW, "train")):
        with pytest.raises(UserError, match="Expected there"):
            cls(tmp_path, split)
    with pytest.raises(UserError, match="no boxes for the split 'test'; use box='points'"):
        Faces300W(LOADERS / "300w", "test", box="detector")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"transforms": [{"type": "Resize", "height": 64, "width": 64}]}, r"transforms\[0\].*half a pixel"),
        ({"size": 0}, "size=0"),
        ({"size": (1, 2, 3)}, "size="),
        ({"margin": -0.1}, "margin=-0.1"),
        ({"expand": -1}, "expand=-1"),
        ({"transforms": [{"type": "OneOf", "transforms": [{"type": "RandomScale"}]}]}, "half a pixel"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, reason):
    with pytest.raises(UserError, match=reason):
        FacesFolder(own(tmp_path, 1), "train", **options)
    with pytest.raises(UserError, match=r"box is 'detecter'.*'detector'"):
        Faces300W(LOADERS / "300w", "train", box="detecter")


def test_transforms_that_are_not_affine_or_change_the_size_are_refused(tmp_path):
    root = own(tmp_path, 1)
    for bent in ("Perspective", "GridDistortion", "ElasticTransform"):
        with pytest.raises(UserError, match="bends the picture"):
            FacesFolder(root, "train", [{"type": bent, "p": 1.0}])[0]
    with pytest.raises(UserError, match="with 'margin' they must leave it"):
        FacesFolder(root, "train", [{"type": "CenterCrop", "height": 100, "width": 100}], margin=0.1)[0]
    smaller = FacesFolder(root, "train", [{"type": "CenterCrop", "height": 99, "width": 80}])[0]
    assert smaller["inputs"].shape[1:] == (99, 80)


# --- Cards -----------------------------------------------------------------------------------------------------------


def test_cards_name_the_official_counts():
    assert read_card("300w").splits == {"train": 3148, "common": 554, "challenging": 135, "full": 689, "test": 600}
    assert read_card("wflw").splits == {"train": 7500, "test": 2500}
    assert read_card("aflw").splits == {"train": 20000, "test": 4386, "frontal": 1314}
    assert read_card("cofw").splits == {"train": 1345, "test": 507}


def test_a_data_set_is_held_against_its_card(tmp_path):
    report = check_dataset("300w", LOADERS / "300w")
    assert not report.ok
    assert {name: split.found for name, split in report.splits.items()} == {
        "train": 3, "common": 2, "challenging": 2, "full": 4, "test": 2
    }  # fmt: skip
    assert all(not split.faults and not split.missing for split in report.splits.values())
    assert report.splits["full"].sizes == {(64, 64): 4}
    assert check_dataset("cofw", LOADERS / "cofw").splits["train"].sizes == {(30, 40): 3}
    assert check_dataset("aflw", LOADERS / "aflw").splits["train"].found == 5
    assert check_dataset("wflw", LOADERS / "wflw").splits["test"].found == 3
    root = own(tmp_path, 3)
    assert check_dataset("faces_folder", root).ok
    shutil.copy(root / "train/face 000.png", root / "train/face 001.png")
    report = check_dataset("faces_folder", root)
    assert report.duplicates == [["train/face 000.png", "train/face 001.png"]]


def test_pixels_are_those_of_the_file_where_nothing_is_scaled(tmp_path):
    rng = np.random.default_rng(0)
    write_image(tmp_path / "train/a.png", rng.integers(0, 256, (80, 80, 3), dtype=np.uint8))
    write_pts(tmp_path / "train/a.pts", [(9.5, 19.5), (41.5, 51.5), (30, 30)])
    item = FacesFolder(tmp_path, "train", size=32, expand=0.0)[0]
    image = read_image(tmp_path / "train/a.png")
    assert np.array_equal(item["inputs"].permute(1, 2, 0).numpy(), image[20:52, 10:42])
    assert points_of(item)[0].tolist() == [-0.5, -0.5]
    assert cv2.imread(str(tmp_path / "train/a.png"))[20, 10, ::-1].tolist() == item["inputs"][:, 0, 0].tolist()
