"""mIoU and its relatives against mmsegmentation and structured distillation; Cityscapes against its own evaluation."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from kd_segmentation.classes import CITYSCAPES_CLASSES, CITYSCAPES_IDS
from kd_segmentation.metrics import (
    CITYSCAPES_LABELS,
    CityscapesMetric,
    SegmentationMetric,
    class_areas,
    evaluate_folder,
    joint_histogram,
    label_ids,
)
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS

from kd_tasks.errors import UserError
from kd_tasks.vision.images import read_labels, write_labels
from tests.benchmarks import metric as benchmark

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics"
CITYSCAPES = FIXTURES / "cityscapes"
CASES = sorted(path.stem for path in (FIXTURES / "miou").glob("*.npz"))
EVERY = ("mIoU", "mAcc", "aAcc", "mDice", "mFscore", "mPrecision", "mRecall")
MEANS = {"mIoU": "IoU", "mAcc": "Acc", "mDice": "Dice", "mFscore": "Fscore", "mPrecision": "Precision"}


def read_case(name: str) -> tuple[list[np.ndarray], list[np.ndarray], dict]:
    expected = json.loads((FIXTURES / "miou" / f"{name}.expected.json").read_text())
    data = np.load(FIXTURES / "miou" / f"{name}.npz")
    labels, predictions = ([data[f"{key}_{i}"] for i in range(expected["n"])] for key in ("gt", "pred"))
    if expected["reduce_zero_label"]:  # what the ADE20K data set does when it reads
        labels = [np.where(map_ == 0, 255, map_ - 1 + (map_ == 255)).astype(np.uint8) for map_ in labels]
    return labels, predictions, expected


def evaluated(metric, labels, predictions, classes, batch=1):
    metric.dataset_meta = {"classes": [f"class {i}" for i in range(classes)]}
    for i in range(0, len(labels), batch):
        masks = [torch.from_numpy(m) for m in labels[i : i + batch]]
        samples = [{"mask": torch.from_numpy(m)} for m in predictions[i : i + batch]]
        metric.process({"targets": {"mask": masks}, "meta": [{"path": "x.png"}] * len(masks)}, samples)
    return metric.evaluate(len(labels))


def close(actual, expected):
    """nan stands where the fixture has null."""
    wanted = [np.nan if value is None else 100 * value for value in expected]
    np.testing.assert_allclose(actual, wanted, rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_mmsegmentation(name):
    labels, predictions, expected = read_case(name)
    metric = SegmentationMetric(expected["ignore_index"], metrics=EVERY)
    numbers = evaluated(metric, labels, predictions, expected["num_classes"], batch=2)
    assert tuple(numbers) == EVERY
    means = expected["mmseg_mean_nan_ignored"]
    close([numbers["aAcc"]], [means["aAcc"]])
    for mean, measure in (MEANS | {"mRecall": "Recall"}).items():
        close([numbers[mean]], [means[measure]])
        close([row[measure] for row in metric.per_class.values()], expected["mmseg_per_class"][measure])


@pytest.mark.parametrize("name", CASES)
def test_counts_are_exact(name):
    labels, predictions, expected = read_case(name)
    classes, ignored = expected["num_classes"], expected["ignore_index"]
    areas = sum(class_areas(*pair, classes, ignored) for pair in zip(labels, predictions, strict=True))
    right, predicted, labelled = areas
    assert areas.dtype == np.int64
    assert right.tolist() == expected["area_intersect"]
    assert predicted.tolist() == expected["area_pred"]
    assert labelled.tolist() == expected["area_label"]
    assert (predicted + labelled - right).tolist() == expected["area_union"]


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("camvid_ignore11", "out_of_range_labels")])
def test_absent_classes_can_count_zero_as_in_structured_distillation(name):
    labels, predictions, expected = read_case(name)
    metric = SegmentationMetric(absent="zero")
    numbers = evaluated(metric, labels, predictions, expected["num_classes"])
    close([numbers["mIoU"]], [expected["skd_style"]["mean_IU"]])
    close([row["IoU"] for row in metric.per_class.values()], expected["skd_style"]["IU_array"])
    assert "count 0" in metric.rule
    assert "left out" in SegmentationMetric().rule


def test_counts_of_more_pixels_than_float32_can_hold(monkeypatch):
    labels, predictions = np.full((40, 50), 3, np.uint8), np.full((40, 50), 7, np.uint8)
    labels[0, 0] = 255
    whole = joint_histogram(labels, predictions)
    monkeypatch.setattr("kd_segmentation.metrics.PIXELS_AT_ONCE", 333)
    np.testing.assert_array_equal(joint_histogram(labels, predictions), whole)
    assert (whole[3, 7], whole[255, 7], whole.sum()) == (1999, 1, 2000)


def test_more_than_2_to_24_pixels_of_one_pair_are_counted_one_by_one():
    maps = np.zeros((4097, 4099), np.uint8)
    assert joint_histogram(maps, maps)[0, 0] == 4097 * 4099


def test_masks_need_not_be_contiguous_or_bytes():
    labels, predictions, expected = read_case("cityscapes19")
    classes = expected["num_classes"]
    plain = evaluated(SegmentationMetric(), labels, predictions, classes)
    wide = [map_.astype(np.int64) for map_ in labels]
    turned = [np.asfortranarray(map_) for map_ in predictions]
    assert evaluated(SegmentationMetric(), wide, turned, classes) == plain


def test_repeated_samples_of_a_distributed_sampler_are_cut_off():
    labels, predictions, expected = read_case("cityscapes19")
    metric = SegmentationMetric()
    metric.dataset_meta = {"classes": list(CITYSCAPES_CLASSES)}
    for label, prediction in zip([*labels, labels[0]], [*predictions, predictions[0]], strict=True):
        metric.process({"targets": {"mask": [label]}, "meta": [{}]}, [{"mask": prediction}])
    close([metric.evaluate(len(labels))["mIoU"]], [expected["mmseg_mean_nan_ignored"]["IoU"]])


def test_a_config_builds_the_metric_and_prefixes_its_names():
    labels, predictions, _ = read_case("perfect")
    metric = METRICS.build({"type": "SegmentationMetric", "prefix": "val", "metrics": ["aAcc", "mIoU"]})
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = {"classes": ["a", "b", "c", "d"]}
    for label, prediction in zip(labels, predictions, strict=True):
        batch = {"targets": {"mask": torch.from_numpy(label)[None]}, "meta": [{}]}
        evaluator.process(data_samples=[{"mask": torch.from_numpy(prediction)}], data_batch=batch)
    assert evaluator.evaluate(len(labels)) == {"val/aAcc": 100.0, "val/mIoU": 100.0}
    assert metric.per_class["a"] == {"IoU": 100.0}


def test_faults_of_the_data_are_named():
    labels = np.zeros((4, 5), np.uint8)
    with pytest.raises(UserError, match="Did you mean 'mIoU'"):
        SegmentationMetric(metrics=["mIou"])
    with pytest.raises(UserError, match="'skip' or 'zero'"):
        SegmentationMetric(absent="ignore")
    with pytest.raises(UserError, match=r"x\.png.*\(4, 5\).*\(5, 4\)"):
        evaluated(SegmentationMetric(), [labels], [labels.T], 3)
    with pytest.raises(UserError, match=r"x\.png.*from -1 to 0"):
        evaluated(
            SegmentationMetric(), [labels.astype(np.int64) - (labels == 0) * np.eye(4, 5, dtype=int)], [labels], 3
        )
    with pytest.raises(UserError, match="255 classes"):
        evaluated(SegmentationMetric(), [labels], [labels], 255)
    with pytest.raises(UserError, match="names no classes"):
        SegmentationMetric().process({"targets": {"mask": [labels]}, "meta": [{}]}, [{"mask": labels}])


def test_the_benchmark_compares_the_same_number():
    pairs = [benchmark.pair(number, 128, 256) for number in range(benchmark.MAPS)]
    assert benchmark.ours(pairs, 5)() == pytest.approx(benchmark.by_hand(pairs, 5)(), rel=1e-12)
    (row,) = benchmark.run(maps=2, height=32, width=64, rounds=1)
    assert row.ratio > 0


# --- Cityscapes ------------------------------------------------------------------------------------------------------


def expected_scores() -> dict:
    return json.loads((CITYSCAPES / "expected.json").read_text())


def assert_official(scores: dict, expected: dict) -> None:
    for name, wanted in expected.items():
        if name in ("pairs", "confusion_34x34_rows_gt"):
            continue
        if not isinstance(wanted, dict):
            assert scores[name] == pytest.approx(wanted, rel=1e-12), name
            continue
        assert list(scores[name]) == list(wanted), name
        values = [np.nan if value is None else value for value in wanted.values()]
        np.testing.assert_allclose(list(scores[name].values()), values, rtol=1e-12, err_msg=name)


def test_a_folder_of_results_gets_the_official_scores():
    assert_official(evaluate_folder(CITYSCAPES / "gtFine", CITYSCAPES / "results"), expected_scores())


def test_without_instances_there_is_no_iiou():
    scores = evaluate_folder(CITYSCAPES / "gtFine" / "val", CITYSCAPES / "results", instances=False)
    expected = expected_scores()
    assert scores["classScores"]["road"] == pytest.approx(expected["classScores"]["road"])
    assert scores["averageScoreCategories"] == pytest.approx(expected["averageScoreCategories"])


def cityscapes_batches():
    """Predictions in train ids, as a network gives them, and the meta of the data set."""
    train_ids = np.full(256, 255, np.uint8)
    train_ids[list(CITYSCAPES_IDS)] = range(len(CITYSCAPES_IDS))
    for truth, result in expected_scores()["pairs"]:
        image = truth.replace("gtFine/", "leftImg8bit/").replace("_gtFine_labelIds", "_leftImg8bit")
        yield train_ids[read_labels(CITYSCAPES / result)], {"path": image}


def test_the_metric_gives_the_official_scores_for_train_ids():
    metric = CityscapesMetric(str(CITYSCAPES))
    for prediction, meta in cityscapes_batches():
        metric.process({"meta": [meta]}, [{"mask": torch.from_numpy(prediction)}])
    numbers = metric.evaluate(4)
    expected = expected_scores()
    assert numbers == {
        "mIoU": pytest.approx(100 * expected["averageScoreClasses"]),
        "iIoU": pytest.approx(100 * expected["averageScoreInstClasses"]),
        "category_mIoU": pytest.approx(100 * expected["averageScoreCategories"]),
        "category_iIoU": pytest.approx(100 * expected["averageScoreInstCategories"]),
    }
    assert list(metric.per_class)[:2] == ["road", "sidewalk"]
    assert len(metric.per_class) == 19 + 7
    assert metric.per_class["car"]["iIoU"] == pytest.approx(100 * expected["classInstScores"]["car"])
    assert metric.per_class["category sky"]["IoU"] == pytest.approx(100 * expected["categoryScores"]["sky"])


def test_miou_on_train_ids_is_mmsegmentations_and_the_official_one():
    expected = json.loads((CITYSCAPES / "expected_mmseg_trainids.json").read_text())
    labels, predictions = [], []
    for prediction, meta in cityscapes_batches():
        name = meta["path"].replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_labelTrainIds")
        labels.append(read_labels(CITYSCAPES / name))
        predictions.append(prediction)
    numbers = evaluated(SegmentationMetric(), labels, predictions, 19)
    close([numbers[name] for name in ("mIoU", "mAcc", "aAcc")], [expected[n] for n in ("mIoU", "mAcc", "aAcc")])
    assert numbers["mIoU"] == pytest.approx(100 * expected_scores()["averageScoreClasses"])


def test_label_table():
    assert [label.id for label in CITYSCAPES_LABELS] == list(range(34))
    assert [label.name for label in CITYSCAPES_LABELS if label.evaluated] == list(CITYSCAPES_CLASSES)
    assert label_ids(np.array([0, 18, 255, 19], np.uint8)).tolist() == [7, 33, 0, 0]


def test_results_must_be_there_once(tmp_path):
    results = Path(shutil.copytree(CITYSCAPES / "results", tmp_path / "results"))
    name = "lindau_000000_000019_leftImg8bit_pred.png"
    deeper = results / "deeper" / "lindau_000000_000019.png"
    deeper.parent.mkdir()
    (results / name).rename(deeper)
    assert evaluate_folder(CITYSCAPES / "gtFine", results)["averageScoreClasses"] > 0.5
    shutil.copy(deeper, results / name)
    with pytest.raises(UserError, match=r"several predictions.*lindau"):
        evaluate_folder(CITYSCAPES / "gtFine", results)
    (results / name).unlink()
    deeper.unlink()
    with pytest.raises(UserError, match=r"no prediction lindau_000000_000019\*\.png"):
        evaluate_folder(CITYSCAPES / "gtFine", results)
    with pytest.raises(UserError, match="give a folder like gtFine/val"):
        evaluate_folder(results, results)


def test_results_that_do_not_fit_are_named(tmp_path):
    results = Path(shutil.copytree(CITYSCAPES / "results", tmp_path / "results"))
    file = results / "lindau_000000_000019_leftImg8bit_pred.png"
    ids = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    write_labels(file, ids[:-1])
    with pytest.raises(UserError, match=r"lindau.*pixels, the prediction"):
        evaluate_folder(CITYSCAPES / "gtFine", results)
    write_labels(file, np.where(ids == ids.max(), 255, ids).astype(np.uint8))
    with pytest.raises(UserError, match=r"lindau.*label ids 0 to 33"):
        evaluate_folder(CITYSCAPES / "gtFine", results)
    with pytest.raises(UserError, match="not named like an image of Cityscapes"):
        CityscapesMetric(str(CITYSCAPES)).process({"meta": [{"path": "a.png"}]}, [{"mask": ids}])
