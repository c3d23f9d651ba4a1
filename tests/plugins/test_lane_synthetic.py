"""Synthetic roads: the benchmarks' formats, lanes where the paint is, the same bytes for the same seed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from kd_lanes import culane, tusimple
from kd_lanes.culane import CATEGORIES
from kd_lanes.datasets import CULane, TuSimple
from kd_lanes.synthetic import CULANE_SIZE, draw, write_culane, write_tusimple

from kd_tasks.errors import UserError

COUNTS = {"train": 24, "val": 5, "test": 18}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins") / "culane"
    write_culane(root, seed=3, **COUNTS)
    return root


@pytest.fixture(scope="module")
def motorways(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins") / "tusimple"
    write_tusimple(root, seed=3, train=12, val=3, test=10)
    return root


def test_the_ordinary_loader_reads_culane(roads):
    for split, count in COUNTS.items():
        dataset = CULane(roads, split, test_mode=True)
        assert len(dataset) == count
        report = CULane.survey(roads, split)
        assert not report.faults and not report.missing and not report.out_of_range
        for sample in dataset:
            assert sample["inputs"].shape == (3, *CULANE_SIZE)
            if split == "test":
                assert not sample["targets"]
                continue
            slots = set(sample["targets"]["mask"].unique().tolist()) - {0}
            exist = sample["targets"]["exist"].tolist()
            assert slots == {slot for slot, bit in enumerate(exist, start=1) if bit}
            assert sum(exist) == len(sample["meta"]["lanes"])


def test_every_category_has_its_pictures_and_crossroads_have_no_lanes(roads):
    samples = list(CULane(roads, "test", test_mode=True))
    found = [sample["meta"]["category"] for sample in samples]
    assert {category: found.count(category) for category in CATEGORIES} == dict.fromkeys(CATEGORIES, 2)
    for sample in samples:
        lanes = len(sample["meta"]["lanes"])
        assert lanes == 0 if sample["meta"]["category"] == "cross" else 2 <= lanes <= 4
    listed = (roads / "list" / "test_split" / "test7_cross.txt").read_text().split()
    assert all((roads / name).with_suffix(".lines.txt").read_text() == "" for name in listed)


def test_lanes_are_annotated_as_in_culane(roads):
    height, width = CULANE_SIZE
    step = height / 59
    beyond = 0
    for sample in CULane(roads, "train", test_mode=True):
        mask = sample["targets"]["mask"].numpy()
        lowest = []
        present = np.flatnonzero(sample["targets"]["exist"]) + 1
        for slot, lane in zip(present, sample["meta"]["lanes"], strict=True):
            x, y = np.array(lane).T
            assert np.allclose(np.diff(y), -step, atol=1e-2), "from the bottom upward, a row every 10 px of CULane"
            assert np.allclose(np.mod(height - y + 1e-2, step), 0, atol=2e-2)
            inside = (x >= 1) & (x < width - 1) & (y < height - 1)
            assert (~((x >= 0) & (x < width))).sum() <= 2
            beyond += int((x < 0).sum())
            assert (mask[np.rint(y[inside]).astype(int), np.rint(x[inside]).astype(int)] == slot).mean() > 0.9
            lowest.append(x[0] + (height - y[0]) * (x[0] - x[1]) / step)
        assert lowest == sorted(lowest), "slots from left to right"
    assert beyond > 0, "lanes leave the picture at x < 0"


def test_masks_are_a_quarter_as_wide_as_in_culane(roads):
    widths = []
    for sample in CULane(roads, "train", test_mode=True):
        mask = sample["targets"]["mask"].numpy()
        for slot, lane in zip(np.flatnonzero(sample["targets"]["exist"]) + 1, sample["meta"]["lanes"], strict=True):
            length = np.hypot(*np.diff(np.array(lane), axis=0).T).sum()
            widths.append((mask == slot).sum() / length)
    assert np.median(widths) == pytest.approx(4, abs=1)


def test_the_annotations_are_a_perfect_prediction(roads, motorways):
    result = culane.evaluate_files(roads, roads, roads / "list" / "test_split", size=(410, 148), width=8)
    counts = result.counts(0.9)
    assert counts["total"].fp == counts["total"].fn == 0
    assert counts["total"].tp > 40
    labels = motorways / "test_label.json"
    records = [json.loads(line) for line in labels.read_text().splitlines()]
    predictions = motorways.parent / "predictions.json"
    tusimple.write_records(predictions, [{**record, "run_time": 1} for record in records])
    found = tusimple.evaluate_files(predictions, labels)
    assert (found["Accuracy"], found["FN"]) == (1.0, 0.0)


def test_the_ordinary_loader_reads_tusimple(motorways):
    rows, lanes = set(), set()
    for split, count in (("train", 12), ("val", 3), ("test", 10), ("trainval", 15)):
        dataset = TuSimple(motorways, split, test_mode=True)
        assert len(dataset) == count
        assert not TuSimple.survey(motorways, split).faults
        for sample in dataset:
            assert sample["inputs"].shape == (3, 360, 640)
            rows.add(len(sample["meta"]["h_samples"]))
            lanes.add(len(sample["meta"]["lanes"]))
            assert int(sample["targets"]["exist"].sum()) == min(len(sample["meta"]["lanes"]), 6)
    assert rows == {48, 56}
    assert lanes <= {2, 3, 4, 5} and len(lanes) > 1
    tasks = [json.loads(line) for line in (motorways / "test_set" / "test_tasks_0627.json").read_text().splitlines()]
    assert [task["raw_file"] for task in tasks] == [item.name for item in TuSimple(motorways, "test").items]


def contrast(category: str, count: int = 24) -> float:
    """How much brighter the annotated lanes are than the road half a lane beside them, on average."""
    differences = []
    for number in range(count):
        frame = draw(1000 + number, category)
        grey = frame.image.mean(axis=2)
        rows = np.arange(100, 140, dtype=np.float64)
        for offset in frame.lanes.values():
            on, beside = (frame.course.columns(offset + shift, rows) for shift in (0.0, -1.75))
            good = (on >= 1) & (on < 409) & (beside >= 1) & (beside < 409)
            if good.sum() > 10:
                values = [grey[rows[good].astype(int), np.rint(x[good]).astype(int)].mean() for x in (on, beside)]
                differences.append(values[0] - values[1])
    return float(np.mean(differences))


def test_paint_is_where_lanes_are_annotated_except_on_roads_without():
    assert contrast("normal") > 20
    assert abs(contrast("noline")) < 8


def test_categories_look_like_what_they_are_called():
    brightness = {c: np.mean([draw(n, c).image.mean() for n in range(12)]) for c in ("normal", "night", "hlight")}
    assert brightness["night"] < 0.5 * brightness["normal"] < 0.5 * brightness["hlight"]
    bends = {c: np.mean([abs(draw(n, c).course.bend) for n in range(12)]) for c in ("normal", "curve")}
    assert bends["curve"] > 3 * bends["normal"]
    assert not draw(0, "cross").lanes


def test_the_seed_decides_every_byte(roads, motorways, tmp_path):
    write_culane(tmp_path / "again", seed=3, **COUNTS)
    assert contents(tmp_path / "again") == contents(roads)
    write_culane(tmp_path / "fewer", seed=3, train=4, val=2, test=3)
    write_culane(tmp_path / "other", seed=4, train=4, val=2, test=3)
    ours, fewer, other = contents(roads), contents(tmp_path / "fewer"), contents(tmp_path / "other")
    pictures = [name for name in fewer if name.endswith(".jpg")]
    assert len(pictures) == 9
    assert all(ours[name] == fewer[name] != other[name] for name in pictures)
    write_tusimple(tmp_path / "t", seed=3, train=12, val=3, test=10)
    assert contents(tmp_path / "t") == contents(motorways)


def test_no_picture_occurs_twice(roads, motorways):
    pictures = [path.read_bytes() for root in (roads, motorways) for path in root.rglob("*.jpg")]
    assert len(set(pictures)) == len(pictures) == sum(COUNTS.values()) + 25


def test_an_interrupted_twin_is_completed_and_other_data_is_left_alone(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 3:
            raise Stop

    few = {"train": 3, "val": 1, "test": 2}
    with pytest.raises(Stop):
        write_culane(tmp_path / "t", **few, progress=stop)
    steps = []
    write_culane(tmp_path / "t", **few, progress=lambda *step: steps.append(step))
    assert steps == [(done, 6) for done in range(1, 7)]
    assert len(CULane(tmp_path / "t", "test", test_mode=True)) == 2
    described = yaml.safe_load((tmp_path / "t" / "synthetic.yaml").read_text())
    assert (described["twin"], described["splits"]) == ("culane", few)
    with pytest.raises(UserError, match="another synthetic twin"):
        write_culane(tmp_path / "t", seed=1, **few)
    with pytest.raises(UserError, match="another synthetic twin"):
        write_tusimple(tmp_path / "t")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_text("real data")
    with pytest.raises(UserError, match="is not empty"):
        write_culane(tmp_path / "real", **few)
    for write, wrong in (
        (write_culane, {"size": (63, 410)}),
        (write_tusimple, {"size": (360,)}),
        (write_culane, {"test": -1}),
    ):
        with pytest.raises(UserError, match="size is"):
            write(tmp_path / "wrong", **{**few, **wrong})


def test_other_sizes_are_drawn(tmp_path):
    write_culane(tmp_path, train=2, val=0, test=9, size=(72, 200))
    sample = CULane(tmp_path, "train", test_mode=True)[0]
    assert sample["inputs"].shape == (3, 72, 200)
    assert int(torch.count_nonzero(sample["targets"]["exist"])) == len(sample["meta"]["lanes"])
