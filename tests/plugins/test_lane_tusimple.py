"""The evaluation of TuSimple against the official one, file by file, lane by lane, and through the metric."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from kd_lanes import tusimple
from kd_lanes.metrics import TuSimpleMetric
from kd_lanes.tusimple import (
    evaluate_files,
    lane_at_rows,
    point_thresholds,
    prediction_record,
    read_records,
    score_pictures,
    write_records,
)
from mmengine.evaluator import Evaluator
from sklearn.linear_model import LinearRegression

from kd_tasks.errors import UserError
from tests.benchmarks import lanes as benchmark

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDER = FIXTURES / "metrics" / "tusimple"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
OFFICIAL = {row["name"]: row["value"] for row in EXPECTED["official"]}


def records(name):
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]


def by_picture():
    """(label, prediction, expected) of each picture."""
    labels, predictions = ({r["raw_file"]: r for r in records(name)} for name in ("gt.json", "pred.json"))
    return [(labels[row["raw_file"]], predictions[row["raw_file"]], row) for row in EXPECTED["per_image"]]


def arrays(record, rows=56):
    return np.array(record["lanes"], np.float64).reshape(-1, rows)


def scored(pairs):
    """`score_pictures` of (label, prediction)."""
    labels, predictions = zip(*pairs, strict=True)
    return score_pictures(
        [arrays(p) for p in predictions],
        [arrays(label) for label in labels],
        [label["h_samples"] for label in labels],
        [p["run_time"] for p in predictions],
    )


def changed(tmp_path, change, labels=False):
    """Both files with one of them changed, a list of records, by `change`."""
    sides = [records("pred.json"), records("gt.json")]
    change(sides[labels])
    paths = tmp_path / "pred.json", tmp_path / "gt.json"
    for path, side in zip(paths, sides, strict=True):
        path.write_text("".join(json.dumps(r) + "\n" for r in side))
    return paths


def test_files_give_the_official_numbers():
    result = evaluate_files(FOLDER / "pred.json", FOLDER / "gt.json")
    assert list(result) == ["Accuracy", "FP", "FN", "F1"]
    for name, value in OFFICIAL.items():
        assert result[name] == pytest.approx(value, abs=1e-12)
    false, missed = OFFICIAL["FP"], OFFICIAL["FN"]
    assert result["F1"] == pytest.approx(2 * (1 - false) * (1 - missed) / (2 - false - missed))


@pytest.mark.parametrize(("label", "prediction", "row"), by_picture(), ids=lambda v: v.get("note", ""))
def test_each_picture_has_the_official_scores(label, prediction, row):
    alone = scored([(label, prediction)])[0]
    np.testing.assert_allclose(alone, [row["acc"], row["fp"], row["fn"]], rtol=0, atol=1e-12)
    lanes = arrays(label)
    thresholds = point_thresholds(lanes, np.broadcast_to(label["h_samples"], lanes.shape))
    np.testing.assert_allclose(thresholds, row["angle_thresholds"], rtol=1e-12)


def test_pictures_do_not_touch_each_other_whatever_stands_in_a_block(monkeypatch):
    pairs = [(label, prediction) for label, prediction, _ in by_picture()]
    assert len(pairs) == 59
    together = scored(pairs)
    for size in (1, 7):
        monkeypatch.setattr(tusimple, "PICTURES_AT_ONCE", size)
        assert np.array_equal(scored(pairs), together)


def test_the_second_fixture_of_one_picture():
    data = np.load(FIXTURES / "losses" / "lane_tusimple_metric.npz")
    result = score_pictures([data["in_pred"]], [data["in_gt"]], [data["in_h"]])
    np.testing.assert_allclose(result[0], [data["out"], data["out_fp"], data["out_fn"]], rtol=1e-12)


def test_slopes_are_those_of_a_linear_regression():
    generator = np.random.default_rng(0)
    rows = np.arange(240.0, 711, 10)
    lanes = 600 + generator.uniform(-8, 8, (30, 1)) * (rows - 400) + generator.normal(0, 20, (30, len(rows)))
    lanes[generator.random(lanes.shape) < 0.3] = -2
    for lane, threshold in zip(lanes, point_thresholds(lanes, np.broadcast_to(rows, lanes.shape)), strict=True):
        there = lane >= 0
        slope = LinearRegression().fit(rows[there, None], lane[there]).coef_[0]
        assert threshold == pytest.approx(20 / np.cos(np.arctan(slope)), rel=1e-10)


def test_pictures_may_have_different_rows():
    pairs = [(label, prediction) for label, prediction, _ in by_picture()[:3]]
    whole = scored(pairs)
    # Eight rows above all lanes, absent on both sides, as the label files with 56 and with 48 rows differ.
    lanes, found = ([arrays(r) for r in side] for side in zip(*pairs, strict=True))
    rows = [np.array(label["h_samples"]) for label, _ in pairs]
    lanes[1], found[1], rows[1] = lanes[1][:, 8:], found[1][:, 8:], rows[1][8:]
    mixed = score_pictures(found, lanes, rows)
    assert np.array_equal(mixed[[0, 2]], whole[[0, 2]])
    assert np.array_equal(mixed[1:2], score_pictures(found[1:2], lanes[1:2], rows[1:2]))
    with pytest.raises(ValueError, match="picture 1"):
        score_pictures(found, lanes, [rows[0]] * 3)


# --- Errors of the official evaluation --------------------------------------------------------------------------------


def test_a_missing_prediction_is_named(tmp_path):
    paths = changed(tmp_path, lambda side: side.pop(5))
    with pytest.raises(UserError, match=f"58 predictions for 59 .* {records('pred.json')[5]['raw_file']}"):
        evaluate_files(*paths)


def test_an_unknown_picture_is_named_with_its_line_and_the_nearest(tmp_path):
    known = records("pred.json")[3]["raw_file"]
    paths = changed(tmp_path, lambda side: side[3].update(raw_file=known + "x"))
    with pytest.raises(UserError, match=rf"pred\.json: line 4: .*Did you mean '{known}'"):
        evaluate_files(*paths)


@pytest.mark.parametrize("key", ["run_time", "lanes", "raw_file"])
def test_a_missing_key_is_named_with_its_line(tmp_path, key):
    paths = changed(tmp_path, lambda side: side[1].pop(key))
    with pytest.raises(UserError, match=f"line 2: has no '{key}'"):
        evaluate_files(*paths)


@pytest.mark.parametrize("labels", [False, True])
def test_a_lane_of_wrong_length_is_named_with_its_line(tmp_path, labels):
    def shorten(side):
        number = next(i for i, r in enumerate(side) if len(r["lanes"]) == 4)
        side[number]["lanes"][2].pop()
        places.append(number + 1)

    places = []
    paths = changed(tmp_path, shorten, labels)
    name = "gt" if labels else "pred"
    with pytest.raises(UserError, match=rf"{name}\.json: line .*: lane 3 has 55 values, .* 56 h_samples") as error:
        evaluate_files(*paths)
    assert f"line {places[0]}:" in str(error.value)


def test_a_picture_predicted_twice_counts_twice_and_is_reported(tmp_path, monkeypatch):
    def twice(side):
        side[side.index(missing)] = first

    # The fixture replaced one prediction by another; which, follows from the sums of the scores.
    wanted = {row["name"]: row["value"] for row in EXPECTED["errors"]["duplicate_raw_file_counts_twice"]}
    first, missing = _replaced(wanted)
    said = []
    monkeypatch.setattr(tusimple, "log_once", lambda text, level: said.append((text, level)))
    result = evaluate_files(*changed(tmp_path, twice))
    for name, value in wanted.items():
        assert result[name] == pytest.approx(value, abs=1e-12)
    (text, level) = said[0]
    assert missing["raw_file"] in text
    assert first["raw_file"] in text
    assert level == logging.WARNING


def _replaced(wanted):
    scores = {row["raw_file"]: np.array([row["acc"], row["fp"], row["fn"]]) for row in EXPECTED["per_image"]}
    change = 59 * np.array([wanted[name] - OFFICIAL[name] for name in ("Accuracy", "FP", "FN")])
    found = records("pred.json")
    return next(
        (a, b)
        for a in found
        for b in found
        if a is not b and np.allclose(scores[a["raw_file"]] - scores[b["raw_file"]], change, atol=1e-9)
    )


# --- Files ------------------------------------------------------------------------------------------------------------


def test_wrong_h_samples_of_a_prediction_are_named(tmp_path):
    paths = changed(tmp_path, lambda side: side[6].update(h_samples=list(range(150, 701, 10))))
    with pytest.raises(UserError, match="line 7: its h_samples are not the 56 of the annotation, 160 to 710"):
        evaluate_files(*paths)
    right = changed(tmp_path, lambda side: side[6].update(h_samples=list(range(160, 711, 10))))
    assert evaluate_files(*right)["Accuracy"] == pytest.approx(OFFICIAL["Accuracy"])


@pytest.mark.parametrize("value", [[], 5, None, ["a"]])
def test_impossible_h_samples_of_a_label_are_named(tmp_path, value):
    paths = changed(tmp_path, lambda side: side[2].update(h_samples=value), labels=True)
    with pytest.raises(UserError, match=r"gt\.json: line 3: 'h_samples' must be a list"):
        evaluate_files(*paths)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"lanes": [["x"] * 56]}, "line 1: 'lanes' holds values that are no numbers"),
        ({"lanes": None}, "line 1: 'lanes' must be a list"),
        ({"lanes": [3]}, "line 1: 'lanes' must be a list"),
        ({"run_time": "fast"}, "line 1: run_time is 'fast'"),
    ],
)
def test_values_that_are_none_are_named(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        evaluate_files(*changed(tmp_path, lambda side: side[0].update(value)))


def test_broken_lines_and_missing_files_are_named(tmp_path):
    path = tmp_path / "pred.json"
    with pytest.raises(UserError, match=r"pred\.json: no such file"):
        evaluate_files(path, FOLDER / "gt.json")
    path.write_text((FOLDER / "pred.json").read_text() + '{"raw_file": \n')
    with pytest.raises(UserError, match="line 60: is not JSON"):
        evaluate_files(path, FOLDER / "gt.json")
    path.write_text("[1, 2]\n")
    with pytest.raises(UserError, match="line 1: is a list"):
        read_records(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no annotation"):
        evaluate_files(FOLDER / "pred.json", path)


def test_lanes_of_points_are_written_and_evaluated_as_the_official_lines(tmp_path):
    labels = {r["raw_file"]: r for r in records("gt.json")}
    written = []
    for record in records("pred.json"):
        rows = labels[record["raw_file"]]["h_samples"]
        lanes = [[(x, y) for x, y in zip(lane, rows, strict=True) if x >= 0][::-1] for lane in record["lanes"]]
        written.append(prediction_record(record["raw_file"], lanes, rows, record["run_time"]))
    write_records(tmp_path / "out" / "pred.json", written)
    line = json.loads((tmp_path / "out" / "pred.json").read_text().splitlines()[0])
    assert set(line) == {"raw_file", "lanes", "run_time"}
    result = evaluate_files(tmp_path / "out" / "pred.json", FOLDER / "gt.json")
    for name, value in OFFICIAL.items():
        assert result[name] == pytest.approx(value, abs=1e-12)


def test_lanes_at_rows():
    lane = [[10, 300], [30, 260], [20, 280], [-5, 240]]
    assert lane_at_rows(lane, [250, 260, 270, 280, 300, 310]).tolist() == [-2, 30, -2, 20, 10, -2]
    assert lane_at_rows(lane, [250, 265, 270, 280, 300, 310]).tolist() == [-2, 27.5, 25, 20, 10, -2]
    assert lane_at_rows([], [250, 260]).tolist() == [-2, -2]
    assert tusimple.lanes_at_rows([], [250, 260]).shape == (0, 2)


# --- The metric -------------------------------------------------------------------------------------------------------


def points(record, rows):
    return [
        np.array([(x, y) for x, y in zip(lane, rows, strict=True) if x >= 0][::-1], np.float32).reshape(-1, 2)
        for lane in record["lanes"]
    ]


def test_the_metric_gives_percent_and_names_its_rule():
    pairs = [(label, p, row) for label, p, row in by_picture() if p["run_time"] <= 200]
    evaluator = Evaluator({"type": "TuSimpleMetric"})
    for start in range(0, len(pairs), 4):
        batch = pairs[start : start + 4]
        metas = [
            {"path": label["raw_file"], "h_samples": label["h_samples"], "lanes": points(label, label["h_samples"])}
            for label, _, _ in batch
        ]
        found = [{"lanes": points(p, label["h_samples"])} for label, p, _ in batch]
        evaluator.process(found, {"meta": metas})
    result = evaluator.evaluate(len(pairs))
    rows = [row for _, _, row in pairs]
    assert list(result) == ["Accuracy", "FP", "FN", "F1"]
    for name, key in (("Accuracy", "acc"), ("FP", "fp"), ("FN", "fn")):
        assert result[name] == pytest.approx(100 * np.mean([row[key] for row in rows]))
    assert set(TuSimpleMetric.lower_is_better) == {"FP", "FN"}
    assert "20 px" in TuSimpleMetric.rule


def test_the_metric_names_what_is_missing():
    meta = {"path": "a.jpg", "h_samples": [160, 170], "lanes": []}
    with pytest.raises(UserError, match=r"a\.jpg: the prediction has no 'lanes', but mask"):
        TuSimpleMetric().process({"meta": [meta]}, [{"mask": 0}])
    with pytest.raises(UserError, match=r"a\.jpg: 'h_samples' must be a list"):
        TuSimpleMetric().process({"meta": [{**meta, "h_samples": None}]}, [{"lanes": []}])


def test_the_benchmark_compares_the_same_numbers():
    few = benchmark.random_records(30)
    for ours, other in zip(
        benchmark.tusimple_ours(*few)().values(), benchmark.tusimple_by_lane(*few)().values(), strict=True
    ):
        assert ours == pytest.approx(other, rel=1e-12)
    assert 0.3 < benchmark.tusimple_ours(*few)()["Accuracy"] < 0.99
    rows = benchmark.tusimple_rows(rounds=1, pictures=60, by_lane=6)
    assert rows and all(row.ratio > 0 for row in rows)
