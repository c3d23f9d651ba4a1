"""Lane markings of BDD100K against the official evaluation, dilations by definition, and the rule of the papers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kd_lanes import bdd
from kd_lanes.bdd import bits_of, boundary_scores, byte_scores, class_table, evaluate_folder, lane_scores, spreads
from kd_lanes.metrics import BDDLaneMetric
from mmengine.evaluator import Evaluator

from kd_tasks.errors import UserError
from kd_tasks.vision.images import read_labels, write_labels
from tests.benchmarks import lanes as benchmark

FOLDER = Path(__file__).parents[1] / "fixtures" / "metrics" / "bdd_lane"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
PAPER = json.loads((FOLDER / "expected_enet_sad.json").read_text())
FRAMES = sorted(path.name for path in (FOLDER / "gt").glob("*.png"))


def pair(name):
    return read_labels(FOLDER / "gt" / name), read_labels(FOLDER / "pred" / name)


def official(row):
    return np.array([scores for task in bdd.TASKS for scores in row[task]])


def test_the_classes_are_the_official_ones():
    assert {task: list(names) for task, names in bdd.TASKS.items()} == EXPECTED["categories"]
    assert list(bdd.THRESHOLDS) == EXPECTED["thresholds"]


@pytest.mark.parametrize("number", range(12))
def test_each_frame_has_the_official_scores_in_each_class(number):
    scores = byte_scores(*pair(FRAMES[number]))
    assert np.array_equal(scores, official(EXPECTED["per_frame"][number]))


def test_a_folder_gives_the_official_numbers_and_those_of_the_papers():
    result = evaluate_folder(FOLDER / "gt", FOLDER / "pred")
    for name, groups in EXPECTED["result"].items():
        wanted = {key: value for group in groups for key, value in group.items()}
        assert list(result[name]) == list(wanted)
        assert list(result[name].values()) == pytest.approx(list(wanted.values()), abs=1e-10)
    assert result["lane"]["Accuracy"] == pytest.approx(PAPER["accuracy"], abs=1e-10)
    assert result["lane"]["IoU"] == pytest.approx(PAPER["lane_IoU"], abs=1e-10)


@pytest.mark.parametrize("number", range(12))
def test_each_frame_has_the_accuracy_and_iou_of_the_papers(number):
    accuracy, iou = lane_scores(*(bdd.is_marking(mask) for mask in pair(FRAMES[number])))
    assert accuracy == pytest.approx(PAPER["per_image_acc"][number], abs=1e-12)
    assert iou == pytest.approx(PAPER["per_image_iou"][number], abs=1e-12)


@pytest.mark.parametrize("shape", [(23, 17), (1, 40), (40, 1), (6, 5)])
@pytest.mark.parametrize("density", [0.01, 0.3])
def test_spreading_is_dilation_by_a_disk_for_every_class_and_radius(shape, density):
    """By definition, pixel by pixel: a class is within `r` of a pixel if one of its own pixels is at most r away."""
    generator = np.random.default_rng(0)
    chosen = generator.random((12, *shape)) < density
    chosen[3, 0, 0] = chosen[4, -1, -1] = chosen[5, 0, -1] = True
    bits = sum(one.astype(np.uint16) << k for k, one in enumerate(chosen)).astype(np.uint16)
    radii = (0, 1, 2, 3, 5, 10)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for radius, found in zip(radii, spreads(bits, radii), strict=True):
        for k, one in enumerate(chosen):
            wanted = np.zeros(shape, bool)
            for row, column in np.argwhere(one):
                wanted |= (y - row) ** 2 + (x - column) ** 2 <= radius**2
            assert np.array_equal((found >> k & 1).astype(bool), wanted), (radius, k)


def test_thresholds_can_be_others_in_any_order():
    labels, predictions = pair(FRAMES[6])
    one, five, ten = byte_scores(labels, predictions, (1, 5, 10)).T
    assert np.array_equal(byte_scores(labels, predictions, (10, 1, 5)).T, [ten, one, five])
    assert (ten >= five).all()
    assert ten.sum() > five.sum() > one.sum()


def test_a_class_on_one_side_alone_has_0_and_on_none_1():
    labels, predictions = np.zeros((2, 8, 9), np.uint8)
    labels[2, 3] = 1
    predictions[5, 5] = 2
    scores = boundary_scores(*(bits_of(m, class_table(3)) for m in (labels, predictions)), 3, (1, 5))
    assert scores.tolist() == [[0, 0], [0, 0], [1, 1]]
    empty = np.zeros((4, 4), np.uint16)
    assert boundary_scores(empty, empty, 2, (1,)).tolist() == [[1], [1]]


def test_precision_and_recall_by_hand():
    labels, predictions = np.zeros((2, 5, 20), np.uint8)
    labels[2, 4:10] = 1  # six pixels, predicted two too far to the right and one row lower, four of them
    predictions[3, 8:12] = 1
    scores = boundary_scores(*(bits_of(m, class_table(1)) for m in (labels, predictions)), 1, (1, 2))
    # radius 1: columns 8, 9 on both sides; radius 2, which reaches one column over a row: 7 to 9, and 8 to 10.
    precision, recall = np.array([2 / 4, 3 / 4]), np.array([2 / 6, 3 / 6])
    np.testing.assert_allclose(scores[0], 2 * precision * recall / (precision + recall), rtol=1e-12)


# --- Files ------------------------------------------------------------------------------------------------------------


def copied(tmp_path, change=None, skip=None):
    for name in FRAMES[:4]:
        for side, mask in zip(("gt", "pred"), pair(name), strict=True):
            if (side, name) == skip:
                continue
            write_labels(
                tmp_path / side / name, change(mask) if change and (side, name) == ("pred", FRAMES[2]) else mask
            )
    return tmp_path / "gt", tmp_path / "pred"


def test_faults_of_files_are_named(tmp_path):
    with pytest.raises(UserError, match="there are no PNG files"):
        evaluate_folder(tmp_path, FOLDER / "pred")
    with pytest.raises(UserError, match=r"pred.0001\.png: no such file"):
        evaluate_folder(*copied(tmp_path / "a", skip=("pred", FRAMES[1])))
    with pytest.raises(UserError, match=r"0002\.png: has \(179, 320\) pixels, its label \(180, 320\)"):
        evaluate_folder(*copied(tmp_path / "b", change=lambda mask: mask[1:]))
    with pytest.raises(UserError, match=r"0002\.png: holds the value 77, which is no lane marking"):
        evaluate_folder(*copied(tmp_path / "c", change=lambda mask: np.full_like(mask, 77)))
    with pytest.raises(UserError, match=r"0002\.png: holds numbers of 16 bits"):
        evaluate_folder(*copied(tmp_path / "d", change=lambda mask: mask.astype(np.uint16)))
    with pytest.raises(UserError, match="whole numbers of pixels"):
        evaluate_folder(FOLDER / "gt", FOLDER / "pred", thresholds=(0.5,))


# --- The metric -------------------------------------------------------------------------------------------------------


def evaluated(config, pairs, classes, batch=5):
    evaluator = Evaluator({"type": "BDDLaneMetric", **config})
    evaluator.dataset_meta = {"classes": classes}
    for start in range(0, len(pairs), batch):
        some = pairs[start : start + batch]
        masks = [torch.from_numpy(labels) for labels, _ in some]
        samples = [{"mask": torch.from_numpy(mask)} for _, mask in some]
        evaluator.process(samples, {"targets": {"mask": masks}, "meta": [{"path": "a.png"}] * len(some)})
    return evaluator.evaluate(len(pairs)), evaluator.metrics[0]


def test_the_metric_on_official_bytes():
    result, metric = evaluated({"encoding": "bytes"}, [pair(name) for name in FRAMES], [])
    assert list(result) == ["Accuracy", "IoU", "F1_pix1", "F1_pix2", "F1_pix5"]
    averages = [EXPECTED["result"][name][-1]["AVERAGE"] for name in ("F1_pix1", "F1_pix2", "F1_pix5")]
    assert list(result.values()) == pytest.approx([PAPER["accuracy"], PAPER["lane_IoU"], *averages])
    assert metric.per_class["single white"]["F1_pix5"] == pytest.approx(
        EXPECTED["result"]["F1_pix5"][2]["single white"]
    )
    assert "bytes of BDD100K" in metric.rule


def test_the_metric_on_binary_lanes_leaves_ignored_pixels_out():
    binary = [tuple(bdd.is_marking(mask).astype(np.uint8) for mask in pair(name)) for name in FRAMES]
    result, metric = evaluated({}, binary, ["background", "lane"])
    assert result["Accuracy"] == pytest.approx(PAPER["accuracy"])
    assert result["IoU"] == pytest.approx(PAPER["lane_IoU"])
    wanted = [[benchmark.f1_by_hand(a > 0, b > 0, radius) for radius in (1, 2, 5)] for a, b in binary]
    assert [result[f"F1_pix{r}"] for r in (1, 2, 5)] == pytest.approx(list(100 * np.mean(wanted, axis=0)))
    assert metric.per_class == {"lane": {f"F1_pix{r}": pytest.approx(result[f"F1_pix{r}"]) for r in (1, 2, 5)}}

    ignored = [(np.where(np.arange(320) < 160, np.uint8(255), labels), mask) for labels, mask in binary]
    halves = [(labels[:, 160:].copy(), mask[:, 160:].copy()) for labels, mask in binary]
    assert evaluated({}, ignored, ["background", "lane"])[0] == evaluated({}, halves, ["background", "lane"])[0]
    assert list(evaluated({"thresholds": ()}, binary, ["background", "lane"])[0]) == ["Accuracy", "IoU"]


def test_faults_of_the_metric_are_named():
    with pytest.raises(UserError, match=r"no encoding 'byte'\. Did you mean 'bytes'"):
        BDDLaneMetric(encoding="byte")
    with pytest.raises(UserError, match="boundary thresholds"):
        BDDLaneMetric(thresholds=(-1,))
    mask = np.zeros((4, 4), np.uint8)
    with pytest.raises(UserError, match="names 0 classes"):
        evaluated({}, [(mask, mask)], ["background"])
    with pytest.raises(UserError, match=r"a\.png: the label has \(4, 4\) pixels, the prediction \(2, 4\)"):
        evaluated({}, [(mask, mask[:2])], ["background", "lane"])
    with pytest.raises(UserError, match=r"the prediction for a\.png: holds the value 100"):
        evaluated({"encoding": "bytes"}, [(mask, mask + 100)], [])
    with pytest.raises(UserError, match="0 to 255"):
        evaluated({}, [(mask.astype(np.int64) - 1, mask)], ["background", "lane"])
    with pytest.raises(UserError, match="gives no 'mask'"):
        BDDLaneMetric().process({"targets": {"mask": [mask]}, "meta": [{}]}, [{"lanes": []}])


def test_the_benchmark_compares_the_same_numbers():
    masks = [(benchmark.random_mask(i, 90, 160), benchmark.random_mask(i + 1, 90, 160)) for i in range(2)]
    ours, by_hand = (side(masks)() for side in (benchmark.bdd_ours, benchmark.bdd_by_dilation))
    for name, row in by_hand.items():
        assert ours[name] == pytest.approx(row, rel=1e-12)
    rows = benchmark.bdd_rows(rounds=1, frames=1)
    assert rows and all(row.ratio > 0 for row in rows)
