"""Lane data: loaders against the fixtures, exact sizes, mirrored slots, faults by name, metrics on their items."""

import itertools
import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from kd_lanes.bdd import FIRST_BIT, TASKS
from kd_lanes.culane import CATEGORIES
from kd_lanes.datasets import BDD100KLanes, CULane, TuSimple
from kd_lanes.metrics import BDDLaneMetric, CULaneMetric, TuSimpleMetric
from kd_lanes.synthetic import write_culane, write_tusimple
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from kd_tasks.errors import UserError
from kd_tasks.evaluation.testing import PredictionWriter
from kd_tasks.task import collate_samples
from kd_tasks.vision.cards import check_dataset, read_card
from kd_tasks.vision.images import read_image, read_labels, write_image

LOADERS = Path(__file__).parents[1] / "fixtures" / "loaders"
FLIP = {"type": "HorizontalFlip", "p": 1.0}
SIZE = (60, 160)  # of pictures drawn here
PICTURE = "driver_23_30frame/a.MP4/{:05}.jpg"
ROWS = list(range(10, 60, 5))


def expected(name):
    return json.loads((LOADERS / name / "expected.json").read_text())


def items(dataset):
    return [dataset[i] for i in range(len(dataset))]


def culane_frame(root, number, split="train", bits="1 1 1 1", category="normal", lines=None):
    """A picture with an upright lane of each slot that `bits` names, 8 px wide, at x = 20, 60, 100, 140."""
    name = PICTURE.format(number)
    rng = np.random.default_rng(number)
    write_image(root / name, rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    mask = np.zeros(SIZE, np.uint8)
    shown = [slot for slot, bit in enumerate(bits.split(), 1) if bit == "1"]
    for slot in shown:
        mask[20:, 40 * slot - 24 : 40 * slot - 16] = slot
    written = "".join(" ".join(f"{40 * s - 20} {y}" for y in range(60, 15, -5)) + " \n" for s in shown)
    path = root / Path(name).with_suffix(".lines.txt")
    path.write_text(written if lines is None else lines)
    lists = root / "list" / "test_split"
    lists.mkdir(parents=True, exist_ok=True)
    if split == "test":
        append(root / "list/test.txt", f"/{name}\n")
        for place, known in enumerate(CATEGORIES):
            append(lists / f"test{place}_{known}.txt", f"{name} \n" if known == category else "")
        return root
    png = f"laneseg_label_w16/{Path(name).with_suffix('.png')}"
    write_image(root / png, mask)
    append(root / f"list/{split}_gt.txt", f"/{name} /{png} {bits}\n")
    return root


def append(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def tusimple_frame(root, number, lanes, rows=ROWS, label="label_data_0313.json", folder=""):
    """A picture with lanes given by x at each of the rows."""
    name = f"clips/0313-1/{number}/20.jpg"
    rng = np.random.default_rng(number)
    write_image(root / folder / name, rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    append(root / label, json.dumps({"lanes": lanes, "h_samples": rows, "raw_file": name}) + "\n")
    return root


def leaning(bottom, top, rows=ROWS):
    """x of a straight lane at each row, from its x at the last and the first row."""
    return np.interp(rows, [rows[0], rows[-1]], [top, bottom]).round().astype(int).tolist()


def bdd_frame(root, name, mask, split="val"):
    write_image(root / f"images/100k/{split}/{name}.jpg", np.full((*mask.shape, 3), 90, np.uint8))
    write_image(root / f"labels/lane/masks/{split}/{name}.png", mask)
    return root


def bdd_byte(direction, style, category):
    names = (direction, style, category)
    return sum(TASKS[t].index(name) << FIRST_BIT[t] for t, name in zip(TASKS, names, strict=True))


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins")
    write_culane(root / "culane", train=12, val=3, test=18)
    write_tusimple(root / "tusimple", train=9, val=2, test=9)
    return root


# --- What the benchmarks' own loaders read ---------------------------------------------------------------------------


@pytest.mark.parametrize("test_mode", [False, True])
def test_culane_reads_the_fixture(test_mode):
    dataset = CULane(LOADERS / "culane", "train", test_mode=test_mode)
    wanted = expected("culane")["items"]
    assert len(dataset) == len(wanted) == 3
    for item, entry in zip(items(dataset), wanted, strict=True):
        assert item["meta"]["path"] == entry["img"]
        assert item["targets"]["exist"].tolist() == entry["exist"]
        assert item["targets"]["mask"].unique().tolist() == entry["seg_values"]
        assert item["inputs"].shape[1:] == item["targets"]["mask"].shape == (590, 1640)
        lanes = item["meta"]["lanes"]
        assert len(lanes) == entry["n_lanes_in_file"]
        inside = [sorted((p for p in lane if p[0] >= 0 and p[1] >= 0), key=lambda p: p[1]) for lane in lanes]
        assert inside == entry["lanedet_lanes"]


def test_culane_keeps_the_points_beside_the_picture_in_the_order_of_the_file():
    item = CULane(LOADERS / "culane", "train", test_mode=True)[0]
    text = (LOADERS / "culane" / Path(item["meta"]["path"]).with_suffix(".lines.txt")).read_text()
    numbers = [[float(word) for word in line.split()] for line in text.splitlines()]
    assert [np.ravel(lane).tolist() for lane in item["meta"]["lanes"]] == numbers
    assert min(min(row[::2]) for row in numbers) < 0


@pytest.mark.parametrize("split", ["train", "val", "test", "trainval"])
def test_tusimple_reads_the_fixture(split):
    files = {
        "train": ["label_data_0313.json", "label_data_0601.json"],
        "val": ["label_data_0531.json"],
        "test": ["test_label.json"],
        "trainval": ["label_data_0313.json", "label_data_0531.json", "label_data_0601.json"],
    }[split]
    wanted = [entry for file in files for entry in expected("tusimple")["items"][file]]
    dataset = TuSimple(LOADERS / "tusimple", split, test_mode=True)
    assert len(dataset) == len(wanted)
    for item, entry in zip(items(dataset), wanted, strict=True):
        meta = item["meta"]
        assert meta["path"] == entry["raw_file"]
        assert [lane[::-1] for lane in meta["lanes"]] == entry["lanes"]
        assert len(meta["h_samples"]) in (48, 56)
        assert {y for lane in meta["lanes"] for _, y in lane} <= set(meta["h_samples"])
        assert item["targets"]["exist"].sum() == len(entry["lanes"])


@pytest.mark.parametrize("folders", [("", ""), ("train_set", ""), ("train_set", "test_set")])
def test_tusimple_finds_the_folders_of_copies(tmp_path, folders):
    names = [("train", folders[0], "label_data_0313.json"), ("test", folders[1], "test_label.json")]
    for number, (_, folder, label) in enumerate(names):
        tusimple_frame(tmp_path, number, [leaning(20, 70)], label=Path(folder) / label, folder=folder)
    (tmp_path / folders[0] / "label_data_0601.json").write_text("")
    for number, (split, _, _) in enumerate(names):
        assert items(TuSimple(tmp_path, split))[0]["meta"]["path"] == f"clips/0313-1/{number}/20.jpg"


def test_tusimple_finds_pictures_of_the_test_below_labels_at_the_root(tmp_path):
    tusimple_frame(tmp_path, 1, [leaning(20, 70)], label="test_label.json", folder="test_set")
    assert items(TuSimple(tmp_path, "test"))[0]["meta"]["path"] == "clips/0313-1/1/20.jpg"


def test_data_sets_and_their_cards_are_registered():
    counts = {
        "culane": (88880, 9675, 34680),
        "tusimple": (3268, 358, 2782),
        "bdd100k_lanes": (70000, 10000),
    }
    for name, numbers in counts.items():
        card = read_card(name)
        cls = DATASETS.get(card.dataset.partition(":")[2])
        assert cls is {"culane": CULane, "tusimple": TuSimple, "bdd100k_lanes": BDD100KLanes}[name]
        assert tuple(card.splits.values()) == numbers
        assert set(card.splits) <= set(cls.splits)


# --- Slots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lanes", "slots"),
    [
        ([(20, 70), (60, 78), (100, 82), (140, 90)], {2: 20, 3: 60, 4: 100, 5: 140}),
        ([(140, 90), (60, 78), (20, 70), (100, 82)], {2: 20, 3: 60, 4: 100, 5: 140}),
        ([(60, 78)], {3: 60}),
        ([(100, 82)], {4: 100}),
        ([(80, 80)], {3: 80}),
        ([(10, 70), (30, 72), (50, 76), (70, 79), (100, 82)], {1: 30, 2: 50, 3: 70, 4: 100}),
        ([], {}),
    ],
)
def test_tusimple_gives_slots_by_angle(tmp_path, lanes, slots):
    root = tusimple_frame(tmp_path, 1, [leaning(bottom, top) for bottom, top in lanes])
    (root / "label_data_0601.json").write_text("")
    item = TuSimple(root, "train", lane_width=1)[0]
    assert item["targets"]["exist"].tolist() == [int(slot in slots) for slot in range(1, 7)]
    last = item["targets"]["mask"][ROWS[-1]]
    assert {int(last[x]): x for x in last.nonzero().flatten().tolist()} == slots


def test_drawn_lanes_are_lines_of_the_stated_width_from_point_to_point(tmp_path):
    lane = [-2, -2, 60, 63, 65, 66, 65, 63, 60, 55]
    root = tusimple_frame(tmp_path, 1, [lane])
    (root / "label_data_0601.json").write_text("")
    mask = TuSimple(root, "train", lane_width=7)[0]["targets"]["mask"].numpy()
    points = itertools.islice(zip(lane, ROWS, strict=True), 2, None)
    wanted = np.zeros(SIZE, np.uint8)
    for first, second in itertools.pairwise(points):
        cv2.line(wanted, first, second, 3, 7)
    assert np.array_equal(mask, wanted)


def test_tusimple_keeps_lanes_without_points_for_the_official_count(tmp_path):
    root = tusimple_frame(tmp_path, 1, [[-2] * len(ROWS), leaning(60, 78), [0, *[-2] * (len(ROWS) - 1)]])
    (root / "label_data_0601.json").write_text("")
    item = TuSimple(root, "train")[0]
    assert item["meta"]["lanes"][0] == []
    assert item["meta"]["lanes"][2] == [[0.0, 10.0]]
    assert item["targets"]["exist"].tolist() == [0, 0, 1, 0, 0, 0]


def test_tusimple_reads_masks_made_beforehand(tmp_path):
    root = tusimple_frame(tmp_path, 1, [leaning(60, 78)])
    (root / "label_data_0601.json").write_text("")
    mask = np.zeros(SIZE, np.uint8)
    mask[:, 30:40] = 2
    write_image(root / "seg_label/0313-1/1/20.png", mask)
    item = TuSimple(root, "train", masks="seg_label")[0]
    assert np.array_equal(item["targets"]["mask"], mask)
    assert item["targets"]["exist"].tolist() == [0, 1, 0, 0, 0, 0]
    write_image(root / "segGT6/clips/0313-1/1/20.png", np.where(mask, 5, 0).astype(np.uint8))
    assert TuSimple(root, "train", masks="segGT6")[0]["targets"]["mask"].unique().tolist() == [0, 5]
    with pytest.raises(UserError, match=r"seg_labels: no such folder of masks"):
        TuSimple(root, "train", masks="seg_labels")
    (root / "seg_label/0313-1/1/20.png").unlink()
    with pytest.raises(UserError, match=r"the mask of 1 is missing .*seg_label/0313-1/1/20.png"):
        TuSimple(root, "train", masks="seg_label")


# --- Sizes -----------------------------------------------------------------------------------------------------------


def test_the_sky_goes_first_and_labels_take_the_value_at_the_middle_of_a_pixel(tmp_path):
    root = culane_frame(tmp_path, 1)
    path = root / "laneseg_label_w16" / Path(PICTURE.format(1)).with_suffix(".png")
    stored = np.random.default_rng(0).integers(0, 5, SIZE, dtype=np.uint8)
    write_image(path, stored)
    for size in ((20, 40), (24, 96), (80, 320)):  # of which no middle falls between two pixels
        item = CULane(root, "train", size=size, crop_top=20)[0]
        rows, columns = (
            np.floor((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, (40, 160), strict=True)
        )
        assert np.array_equal(item["targets"]["mask"], stored[20:][rows][:, columns])
        assert item["inputs"].shape[1:] == size == item["meta"]["input_size"]
        assert item["meta"]["original_size"] == SIZE
        assert item["meta"]["crop_top"] == 20


@pytest.mark.parametrize("size", [(24, 96), (16, 64), (20, 64), (40, 200)])
@pytest.mark.parametrize("test_mode", [False, True])
def test_pictures_are_resized_without_a_shift(tmp_path, size, test_mode):
    root = culane_frame(tmp_path, 1)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    ramp = np.stack([x, 4 * y, 0 * x], axis=-1).astype(np.uint8)
    name = root / PICTURE.format(1)
    name.write_bytes(cv2.imencode(".png", ramp[..., ::-1])[1].tobytes())
    item = CULane(root, "train", size=size, crop_top=20, test_mode=test_mode)[0]
    rows, columns = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(size, (40, 160), strict=True))
    inner = (slice(2, -2), slice(2, -2))
    found = item["inputs"].numpy().astype(float)
    for wrong, most in ((found[0] - columns[None], 0.15), (found[1] - 4 * (rows[:, None] + 20), 0.6)):
        assert np.abs(wrong[inner]).max() <= 1
        assert abs(wrong[inner].mean()) <= most


def test_in_testing_the_targets_stay_in_the_original_picture(tmp_path):
    root = culane_frame(tmp_path, 1, bits="0 1 1 1", lines="-20.5 60 10 40 33 20 \n")
    stored = read_labels(root / "laneseg_label_w16" / Path(PICTURE.format(1)).with_suffix(".png"))
    item = CULane(root, "train", size=(20, 80), crop_top=20, transforms=[FLIP], test_mode=True)[0]
    assert np.array_equal(item["targets"]["mask"], stored)
    assert item["targets"]["exist"].tolist() == [0, 1, 1, 1]
    assert item["meta"]["lanes"] == [[[-20.5, 60.0], [10.0, 40.0], [33.0, 20.0]]]


# --- Transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["culane", "tusimple"])
def test_a_mirrored_picture_has_its_slots_exchanged(tmp_path, kind):
    if kind == "culane":
        dataset = {"cls": CULane, "root": culane_frame(tmp_path, 1, bits="1 1 0 0")}
    else:
        dataset = {"cls": TuSimple, "root": tusimple_frame(tmp_path, 1, [leaning(20, 70), leaning(60, 78)])}
        (tmp_path / "label_data_0601.json").write_text("")
    plain, flipped = (
        dataset["cls"](dataset["root"], "train", size=(30, 80), transforms=transforms)[0] for transforms in ([], [FLIP])
    )
    count = len(plain["targets"]["exist"])
    assert torch.equal(flipped["inputs"], plain["inputs"].flip(-1))
    mask = plain["targets"]["mask"].flip(-1)
    wanted = torch.where(mask > 0, count + 1 - mask.int(), 0)
    assert torch.equal(flipped["targets"]["mask"].int(), wanted)
    assert mask.any()
    assert flipped["targets"]["exist"].tolist() == plain["targets"]["exist"].tolist()[::-1]
    assert plain["targets"]["exist"].sum() == 2
    assert flipped["meta"]["lanes"] == plain["meta"]["lanes"]


@pytest.mark.parametrize(
    ("transforms", "exchanged"),
    [
        ([FLIP, FLIP], False),
        ([{"type": "VerticalFlip", "p": 1.0}], False),
        ([{"type": "Rotate", "limit": (180, 180), "p": 1.0}], True),
        ([{"type": "Affine", "rotate": (5, 5), "p": 1.0}], False),
        ([{"type": "OneOf", "transforms": [FLIP], "p": 1.0}], True),
        ([FLIP, {"type": "Affine", "rotate": (5, 5), "p": 1.0}], True),
    ],
)
def test_slots_change_places_where_left_and_right_do(tmp_path, transforms, exchanged):
    root = culane_frame(tmp_path, 1, bits="1 1 0 0")
    item = CULane(root, "train", transforms=transforms)[0]
    assert item["targets"]["exist"].tolist() == ([0, 0, 1, 1] if exchanged else [1, 1, 0, 0])
    known = item["targets"]["mask"].unique().tolist()
    assert [value for value in known if value != 255] == ([0, 3, 4] if exchanged else [0, 1, 2])


def test_flips_at_random_keep_slots_left_to_right(twins):
    recipe = [{"type": "HorizontalFlip", "p": 0.5}, {"type": "Affine", "rotate": (-2, 2), "p": 0.5}]
    dataset = CULane(twins / "culane", "train", transforms=recipe, size=(72, 208), crop_top=60)
    plain = CULane(twins / "culane", "train", size=(72, 208), crop_top=60)
    mirrored = 0
    for item, before in zip(items(dataset), items(plain), strict=True):
        mask = item["targets"]["mask"].numpy()
        means = [np.nonzero(mask[-20:] == slot)[1].mean() for slot in range(1, 5) if (mask[-20:] == slot).any()]
        assert means == sorted(means)
        bits = before["targets"]["exist"].tolist()
        mirrored += item["targets"]["exist"].tolist() != bits
        assert item["targets"]["exist"].tolist() in (bits, bits[::-1])
    assert mirrored


def test_what_lies_beyond_the_picture_is_ignored_and_a_lane_that_left_does_not_exist(tmp_path):
    root = culane_frame(tmp_path, 1)
    shift = [{"type": "Affine", "translate_px": {"x": (50, 50), "y": (0, 0)}, "p": 1.0}]
    targets = CULane(root, "train", transforms=shift)[0]["targets"]
    assert (targets["mask"][:, :49] == 255).all()
    assert targets["exist"].tolist() == [1, 1, 1, 0]
    assert CULane(root, "train", transforms=shift, exist_pixels=0)[0]["targets"]["exist"].tolist() == [1, 1, 1, 1]
    pixels = int((targets["mask"] == 1).sum())
    for least, bit in ((pixels, 1), (pixels + 1, 0)):
        assert CULane(root, "train", transforms=shift, exist_pixels=least)[0]["targets"]["exist"][0] == bit


def test_a_lane_that_the_list_denies_does_not_exist(tmp_path):
    root = culane_frame(tmp_path, 1)
    path = root / "list/train_gt.txt"
    path.write_text(path.read_text().replace("1 1 1 1", "0 1 1 1"))
    assert CULane(root, "train")[0]["targets"]["exist"].tolist() == [0, 1, 1, 1]


def test_plain_samples_have_the_size_but_no_chance(twins):
    dataset = CULane(twins / "culane", "train", transforms=[FLIP], size=(72, 208), crop_top=60, test_mode=True)
    plain, wanted = dataset.plain()[0], CULane(twins / "culane", "train", size=(72, 208), crop_top=60)[0]
    assert torch.equal(plain["inputs"], wanted["inputs"])
    assert torch.equal(plain["targets"]["mask"], wanted["targets"]["mask"])


# --- BDD100K ---------------------------------------------------------------------------------------------------------


def bdd_mask():
    mask = np.full(SIZE, 255, np.uint8)
    mask[:, 20:24] = bdd_byte("parallel", "dashed", "single white")
    mask[:, 60:64] = bdd_byte("vertical", "solid", "crosswalk")
    return mask


@pytest.mark.parametrize(
    ("task", "at"),
    [("lane", (1, 1)), ("direction", (1, 2)), ("style", (2, 1)), ("category", (7, 1))],
)
def test_bdd_masks_become_the_classes_of_a_task(tmp_path, task, at):
    root = bdd_frame(tmp_path, "a", bdd_mask())
    dataset = BDD100KLanes(root, "val", task=task, transforms=[FLIP])
    mask = dataset[0]["targets"]["mask"].flip(-1)
    assert (int(mask[5, 21]), int(mask[5, 61])) == at
    assert set(mask.unique().tolist()) == {0, *at}
    exist = [int(number + 1 in at) for number in range(len(dataset.classes) - 1)]
    assert dataset[0]["targets"]["exist"].tolist() == exist
    assert dataset.metainfo["lanes"] == len(exist)
    assert dataset.classes[at[0]] in {"lane", "parallel", "dashed", "single white"}
    assert "lanes" not in dataset[0]["meta"]


def test_bdd_keeps_bytes_for_the_official_scores(tmp_path):
    root = bdd_frame(tmp_path, "a", bdd_mask())
    item = BDD100KLanes(root, "val", encoding="bytes", test_mode=True, size=(30, 80))[0]
    assert np.array_equal(item["targets"]["mask"], bdd_mask())
    assert item["targets"]["exist"].tolist() == [1]


def test_bdd_reads_the_lists_of_papers(tmp_path):
    for name, value in (("a", 255), ("b", 1)):
        mask = np.zeros(SIZE, np.uint8)
        mask[:, 30:32] = value
        write_image(tmp_path / f"val_img/val/{name}.jpg", np.full((*SIZE, 3), 90, np.uint8))
        write_image(tmp_path / f"val_label/final_val/{name}.png", mask)
        append(tmp_path / "list/val.txt", f"/val_img/val/{name}.jpg /val_label/final_val/{name}.png 1 1 1 1\n")
    dataset = BDD100KLanes(tmp_path, "val", list_file="list/val.txt", test_mode=True)
    for item, name in zip(items(dataset), "ab", strict=True):
        assert item["meta"]["path"] == f"val_img/val/{name}.jpg"
        assert item["targets"]["mask"].sum() == 2 * SIZE[0]
        assert item["targets"]["exist"].tolist() == [1]
    with pytest.raises(UserError, match="masks of a list are binary"):
        BDD100KLanes(tmp_path, "val", list_file="list/val.txt", task="style")


# --- Through loader and metric ---------------------------------------------------------------------------------------


def evaluated(dataset, metric, predict, workers=0):
    """The metric where `predict` makes a prediction of each sample of a batch."""
    metric.dataset_meta = dataset.metainfo
    for batch in DataLoader(dataset, batch_size=4, collate_fn=collate_samples, num_workers=workers):
        samples = [
            predict(meta, {name: value[i] for name, value in batch["targets"].items()})
            for i, meta in enumerate(batch["meta"])
        ]
        metric.process(batch, samples)
    return metric.evaluate(len(dataset))


def own_lanes(meta, _):
    return {"lanes": [np.array(lane, np.float32).reshape(-1, 2) for lane in meta["lanes"]]}


def fewer_lanes(meta, _):
    return {"lanes": own_lanes(meta, _)["lanes"][1:]}


@pytest.mark.parametrize("workers", [0, 1])
def test_culane_scores_its_own_lanes_with_100(twins, workers):
    dataset = CULane(twins / "culane", "test", test_mode=True, size=(72, 208), crop_top=60)
    metric = CULaneMetric()
    found = evaluated(dataset, metric, own_lanes, workers)
    assert found["F1"] == found["F1@0.75"] == 100
    assert list(metric.per_class) == list(CATEGORIES)
    assert found["cross_FP"] == 0
    assert evaluated(dataset, CULaneMetric(), fewer_lanes)["F1"] < 95


def test_culane_lanes_in_meta_count_as_those_of_the_files(twins):
    dataset = CULane(twins / "culane", "test", test_mode=True, size=(72, 208), crop_top=60)

    def shifted(meta, _):
        return {"lanes": [lane + np.float32([4, 0]) for lane in own_lanes(meta, _)["lanes"]]}

    own, files = CULaneMetric(width=8), CULaneMetric(width=8, annotations=str(twins / "culane"))
    results = [evaluated(dataset, metric, shifted) for metric in (own, files)]
    assert results[0] == results[1]
    assert own.matches == files.matches
    assert 0 < results[0]["mF1"] < 80


def test_tusimple_scores_its_own_lanes_with_100(twins):
    dataset = TuSimple(twins / "tusimple", "test", test_mode=True, size=(72, 128), crop_top=80)
    found = evaluated(dataset, TuSimpleMetric(), own_lanes)
    assert found == {"Accuracy": 100, "FP": 0, "FN": 0, "F1": 100}
    assert evaluated(dataset, TuSimpleMetric(), fewer_lanes)["Accuracy"] < 95
    assert {len(item["meta"]["h_samples"]) for item in items(dataset)} == {48, 56}


@pytest.mark.parametrize("encoding", ["classes", "bytes"])
def test_bdd_scores_its_own_masks_with_100(tmp_path, encoding):
    for name in "ab":
        bdd_frame(tmp_path, name, bdd_mask())
    dataset = BDD100KLanes(tmp_path, "val", encoding=encoding, test_mode=True, size=(30, 80), crop_top=10)
    found = evaluated(dataset, BDDLaneMetric(encoding=encoding), lambda _, targets: {"mask": targets["mask"]})
    assert found == pytest.approx(dict.fromkeys(("Accuracy", "IoU", "F1_pix1", "F1_pix2", "F1_pix5"), 100))
    shifted = evaluated(
        dataset, BDDLaneMetric(encoding=encoding), lambda _, targets: {"mask": targets["mask"].roll(3, 1)}
    )
    assert shifted["Accuracy"] == pytest.approx(25)


def test_predicted_lanes_are_saved_with_the_predictions(tmp_path):
    prediction = {
        "lanes": [np.array([[1.5, 9], [2, 8]], np.float32), np.zeros((0, 2), np.float32)],
        "scores": torch.tensor([0.5, 0.25]),
        "more": {"pair": (np.float32(2), "a")},
    }
    with PredictionWriter(tmp_path) as writer:
        writer({"meta": [{"path": "a.jpg"}]}, [prediction])
    assert json.loads((tmp_path / "predictions.jsonl").read_text()) == {
        "path": "a.jpg",
        "lanes": [[[1.5, 9.0], [2.0, 8.0]], []],
        "scores": [0.5, 0.25],
        "more": {"pair": [2.0, "a"]},
    }


# --- Splits, items, reports ------------------------------------------------------------------------------------------


def test_the_test_split_has_categories_and_no_masks(twins):
    dataset = CULane(twins / "culane", "test", test_mode=True)
    assert sorted({item["meta"]["category"] for item in items(dataset)}) == sorted(CATEGORIES)
    assert dataset[0]["targets"] == {}
    listed = (twins / "culane/list/test_split/test5_arrow.txt").read_text().split()
    assert [item["meta"]["path"] for item in items(dataset) if item["meta"]["category"] == "arrow"] == listed


def test_metainfo_names_slots_and_their_exchange(twins):
    info = CULane(twins / "culane", "train").metainfo
    assert info["classes"] == ["background", "lane 1", "lane 2", "lane 3", "lane 4"]
    assert info["swaps"] == [0, 4, 3, 2, 1]
    assert info["lanes"] == 4
    assert len(info["palette"]) == 5
    six = TuSimple(twins / "tusimple", "train").metainfo
    assert six["swaps"] == [0, 6, 5, 4, 3, 2, 1]
    assert len(six["palette"]) == len(set(map(tuple, six["palette"]))) == 7


def test_samples_and_data_sets_travel_between_processes(twins):
    dataset = TuSimple(twins / "tusimple", "train", transforms=[FLIP], size=(72, 128))
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[1]["targets"]["mask"], dataset[1]["targets"]["mask"])


def test_part_is_spread_over_the_split(twins):
    dataset = CULane(twins / "culane", "test", test_mode=True)
    assert dataset.part(3) == [0, 8, 17]
    assert dataset.part(100) == list(range(18))


@pytest.mark.parametrize("name", ["culane", "tusimple"])
def test_twins_are_as_their_cards_say(twins, name):
    report = check_dataset(name, twins / name)
    assert report.ok, report.lines()
    assert [split.found for split in report.splits.values()] == ([12, 3, 18] if name == "culane" else [9, 2, 9])
    if name == "culane":
        assert set(report.splits["train"].values) == {0, 1, 2, 3, 4}


def test_the_report_tells_all_faults_of_a_split(tmp_path):
    for number in range(8):
        culane_frame(tmp_path, number)
    frames = [tmp_path / PICTURE.format(number) for number in range(8)]
    masks = [tmp_path / "laneseg_label_w16" / frame.relative_to(tmp_path).with_suffix(".png") for frame in frames]
    listed = (tmp_path / "list/train_gt.txt").read_text().splitlines()
    frames[0].unlink()
    masks[1].unlink()
    frames[2].with_suffix(".lines.txt").unlink()
    frames[3].with_suffix(".lines.txt").write_text("1 2 3\n")
    write_image(masks[4], np.where(read_labels(masks[4]) == 2, 0, read_labels(masks[4])))
    listed[5] = listed[5].replace("1 1 1 1", "1 1 1 0")
    listed[6] = listed[6].replace("1 1 1 1", "1 1 1")
    write_image(masks[7], np.full(SIZE, 7, np.uint8))
    (tmp_path / "list/train_gt.txt").write_text("\n".join(listed) + "\n")
    report = CULane.survey(tmp_path, "train")
    assert report.found == 6
    assert len(report.missing) == 3
    assert {Path(path).suffix for path in report.missing} == {".jpg", ".png", ".txt"}
    faults = "\n".join(report.faults)
    assert "00003.lines.txt, line 1: 3 numbers" in faults
    assert "train_gt.txt, line 5: says that slot 2 has a lane, but" in faults
    assert "train_gt.txt, line 6: says that slot 4 has no lane, but" in faults
    assert "train_gt.txt, line 7: has 3 existence bits for 4 lane slots" in faults
    assert len(report.faults) == 4
    assert [Path(path).name for path in report.out_of_range[7]] == ["00007.png"]


# --- Faults by name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("10 60 20 40 \n10 60 20 \n", r"00001.lines.txt, line 2: 3 numbers, but a lane is pairs"),
        ("10 60 20 40 \n\n30 60 30 40 \n", r"00001.lines.txt, line 2: is blank, which counts as a lane"),
        ("10 60 20 40 20 40 30 20 \n", r"00001.lines.txt, line 1: has the point \(20, 40\) twice in a row"),
        ("10 60 x 40 \n", r"00001.lines.txt, line 1: 'x' is no number"),
        ("10 590 20 580 \n", r"lane 1: has a point at y = 590, but .*00001.jpg has 60 rows"),
    ],
)
def test_faulty_lines_files(tmp_path, lines, message):
    root = culane_frame(tmp_path, 1, lines=lines)
    with pytest.raises(UserError, match=message):
        CULane(root, "train", test_mode=True)[0]


def test_faulty_lines_as_the_official_evaluator_takes_them(tmp_path):
    root = culane_frame(tmp_path, 1, lines="10 60 20 40 5 \n\n10 60 20 40 20 40 30 20 \n")
    lanes = CULane(root, "train", test_mode=True, faults="official")[0]["meta"]["lanes"]
    assert [len(lane) for lane in lanes] == [2, 0, 4]
    with pytest.raises(UserError, match=r"faults is 'oficial'.*'official'"):
        CULane(root, "train", faults="oficial")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("/{p} /{m} 1 1 1", r"train_gt.txt, line 2: has 3 existence bits for 4 lane slots"),
        ("/{p} /{m} 1 1 1 1 1 1", r"line 2: has 6 existence bits for 4"),
        ("/{p}", r"line 2: has 0 existence bits"),
        ("/{p} /{m} 1 1 2 1", r"line 2: '2' is no existence bit"),
    ],
)
def test_faulty_lists(tmp_path, words, message):
    root = culane_frame(tmp_path, 1)
    picture = PICTURE.format(1)
    line = words.format(p=picture, m="laneseg_label_w16/a.png")
    append(root / "list/train_gt.txt", line + "\n")
    with pytest.raises(UserError, match=message):
        CULane(root, "train")


def test_a_list_works_with_and_without_slashes_blank_lines_and_foreign_line_ends(tmp_path):
    root = culane_frame(tmp_path, 1)
    path = root / "list/train_gt.txt"
    text = path.read_text().strip()
    path.write_bytes(f"{text}\r\n\r\n{text.replace(' /', ' ').lstrip('/')} \r\n".encode())
    first, second = items(CULane(root, "train"))
    assert first["meta"]["path"] == second["meta"]["path"] == PICTURE.format(1)
    assert torch.equal(first["targets"]["mask"], second["targets"]["mask"])


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("picture", ".jpg"), ("mask", ".png"), ("lines file", ".lines.txt")],
)
def test_missing_files_are_counted_by_kind(tmp_path, kind, suffix):
    for number in range(3):
        culane_frame(tmp_path, number)
    folder = tmp_path / "laneseg_label_w16" if suffix == ".png" else tmp_path
    for number in (1, 2):
        (folder / Path(PICTURE.format(number)).with_suffix(suffix)).unlink()
    with pytest.raises(UserError) as caught:
        CULane(tmp_path, "train")
    text = str(caught.value)
    assert f"of 3 samples of the split 'train', the {kind} of 2 is missing" in text
    assert f"00001{suffix} and 1 more" in text
    assert "laneseg_label_w16/<the same path>.png" in text
    assert "kd-tasks data synth culane" in text


def test_missing_lists_and_folders_show_the_tree(tmp_path):
    culane_frame(tmp_path, 1, split="test")
    with pytest.raises(UserError, match=r"train_gt.txt: there is no such list. Expected there:\nculane/"):
        CULane(tmp_path, "train")
    (tmp_path / "list/test_split/test8_night.txt").unlink()
    with pytest.raises(UserError, match=r"test8_night.txt: there is no such list"):
        CULane(tmp_path, "test")
    with pytest.raises(
        UserError, match=r"label_data_0313.json: there is no such label file. Expected there:\ntusimple/"
    ):
        TuSimple(tmp_path, "train")
    with pytest.raises(UserError, match=r"images/100k/val: no such folder. Expected there:\nbdd100k/"):
        BDD100KLanes(tmp_path, "val")
    with pytest.raises(UserError, match=r"no such folder. Expected"):
        CULane(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"no split 'tset'.*'test'"):
        CULane(tmp_path, "tset")


def test_pictures_belong_to_one_category(tmp_path):
    root = culane_frame(tmp_path, 1, split="test")
    append(root / "list/test_split/test8_night.txt", PICTURE.format(1) + "\n")
    with pytest.raises(UserError, match=r"test8_night.txt, line 1: .*00001.jpg is in the list of 'normal', too"):
        CULane(root, "test")
    append(root / "list/test.txt", PICTURE.format(2) + "\n")
    (root / "list/test_split/test8_night.txt").write_text("")
    with pytest.raises(UserError, match=r"test.txt, line 2: .*00002.jpg is in none of the nine lists"):
        CULane(root, "test")


@pytest.mark.parametrize(("value", "kind"), [(5, "culane"), (128, "culane"), (7, "tusimple"), (64, "bdd"), (2, "list")])
def test_masks_with_unknown_values(tmp_path, value, kind):
    mask = np.zeros(SIZE, np.uint8)
    mask[12, 34] = value
    if kind == "culane":
        culane_frame(tmp_path, 1)
        path = tmp_path / "laneseg_label_w16" / Path(PICTURE.format(1)).with_suffix(".png")
        dataset = CULane(tmp_path, "train")
    elif kind == "tusimple":
        tusimple_frame(tmp_path, 1, [], label="test_label.json")
        path = tmp_path / "seg_label/0313-1/1/20.png"
        write_image(path, mask)
        dataset = TuSimple(tmp_path, "test", masks="seg_label")
    else:
        bdd_frame(tmp_path, "a", mask)
        path = tmp_path / "labels/lane/masks/val/a.png"
        append(tmp_path / "list.txt", "images/100k/val/a.jpg labels/lane/masks/val/a.png 1 1 1 1\n")
        dataset = BDD100KLanes(tmp_path, "val", list_file="list.txt" if kind == "list" else None)
    write_image(path, mask)
    with pytest.raises(UserError, match=rf"{path.name}: value {value} \(row 12, column 34\) is not one of"):
        dataset[0]


def test_masks_of_another_size(tmp_path):
    culane_frame(tmp_path, 1)
    path = tmp_path / "laneseg_label_w16" / Path(PICTURE.format(1)).with_suffix(".png")
    write_image(path, np.zeros((30, 80), np.uint8))
    with pytest.raises(UserError, match=r"00001.jpg has 60x160 pixels, but its mask .*00001.png has 30x80"):
        CULane(tmp_path, "train")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("h_samples"), r"test_label.json: line 2: has no 'h_samples'"),
        (lambda r: r.update(h_samples=[]), r"line 2: 'h_samples' must be a list"),
        (lambda r: r.update(h_samples=r["h_samples"][1:]), r"line 2: lane 1 has 10 values, .* has 9 h_samples"),
        (lambda r: r.update(h_samples=[*r["h_samples"], 55]), r"line 2: lane 1 has 10 values, .* has 11 h_samples"),
        (lambda r: r["lanes"][0].pop(), r"line 2: lane 1 has 9 values"),
        (lambda r: r.update(lanes=[["a"] * 10]), r"line 2: 'lanes' holds values that are no numbers"),
        (lambda r: r.pop("raw_file"), r"line 2: has no 'raw_file'"),
    ],
)
def test_faulty_label_files(tmp_path, change, message):
    record = {"lanes": [leaning(60, 78)], "h_samples": list(ROWS), "raw_file": "clips/0313-1/1/20.jpg"}
    tusimple_frame(tmp_path, 1, [])
    change(record)
    (tmp_path / "test_label.json").write_text("\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError, match=message):
        TuSimple(tmp_path, "test")


def test_labels_of_pictures_that_somebody_resized(tmp_path):
    tusimple_frame(tmp_path, 1, [[5] * 56], rows=list(range(160, 711, 10)), label="test_label.json")
    dataset = TuSimple(tmp_path, "test")
    with pytest.raises(UserError, match=r"line 1: h_samples go down to 710, but .*20.jpg has 60 rows"):
        dataset[0]
    assert any("h_samples go down" in fault for fault in TuSimple.survey(tmp_path, "test").faults)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (20,)}, "size is"),
        ({"size": (20, 0)}, "size is"),
        ({"crop_top": -1}, "crop_top -1"),
        ({"exist_pixels": -1}, "exist_pixels -1"),
    ],
)
def test_faulty_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        CULane(tmp_path, "train", **options)


def test_more_sky_than_picture(tmp_path):
    dataset = CULane(culane_frame(tmp_path, 1), "train", crop_top=60)
    with pytest.raises(UserError, match=r"00001.jpg: has 60 rows, but crop_top=60"):
        dataset[0]


def test_options_of_the_other_data_sets(tmp_path):
    with pytest.raises(UserError, match="lane_width is 0"):
        TuSimple(tmp_path, "train", lane_width=0)
    with pytest.raises(UserError, match=r"task is 'styl'.*'style'"):
        BDD100KLanes(tmp_path, "val", task="styl")
    with pytest.raises(UserError, match=r"encoding is 'byte'.*'bytes'"):
        BDD100KLanes(tmp_path, "val", encoding="byte")


def test_pictures_are_those_of_the_file(tmp_path):
    root = shutil.copytree(LOADERS / "culane", tmp_path / "culane")
    item = CULane(root, "train", crop_top=240)[1]
    picture = read_image(root / item["meta"]["path"])
    assert np.array_equal(item["inputs"].permute(1, 2, 0), picture[240:])
