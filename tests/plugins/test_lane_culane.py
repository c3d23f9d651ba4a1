"""CULane's evaluation against the official C++ evaluator's numbers, lines drawn one by one, and faulty files."""

import itertools
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from kd_lanes import culane
from kd_lanes.culane import CULaneCounts, evaluate_files, evaluate_lanes
from kd_lanes.lane_files import lines_path, read_lines, read_list, tidy, write_lines
from kd_lanes.metrics import CULaneMetric
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from scipy.interpolate import CubicSpline
from scipy.optimize import linear_sum_assignment

from kd_tasks.errors import UserError
from tests.benchmarks import lanes as benchmark

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics" / "culane"
PREDICTIONS, ANNOTATIONS = FIXTURES / "pred", FIXTURES / "CULane"
LISTS = ANNOTATIONS / "list"
THRESHOLDS = (0.5, 0.3, 0.75)


def expected(name):
    return json.loads((FIXTURES / name).read_text())


PICTURES = {picture["name"]: picture for picture in expected("expected_per_image.json")}


@pytest.fixture(scope="module")
def result():
    return evaluate_files(PREDICTIONS, ANNOTATIONS, LISTS / "test_split", odd="drop")


def lanes_of(root, name):
    path = lines_path(root, name)
    return read_lines(path, odd="drop") if path.is_file() else []


def as_counts(row):
    return CULaneCounts(int(row["tp"]), int(row["fp"]), int(row["fn"]))


def same_number(value, text):
    """Whether `value` is what the evaluator printed with six digits."""
    return math.isnan(value) if "nan" in text else f"{value:.6g}".replace("-0", "0") == text or f"{value:.6g}" == text


def straight(x, top=300.0, bottom=590.0, points=30):
    """A lane straight up."""
    return np.stack([np.full(points, x), np.linspace(bottom, top, points)], axis=1)


# --- the official numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iou", THRESHOLDS)
def test_counts_and_scores_of_every_category_are_the_official_ones(result, iou):
    wanted = expected("expected.json")[f"iou_{iou}"]
    counts = result.counts(iou)
    assert list(counts) == [*culane.CATEGORIES, "total"]
    for category, ours in counts.items():
        theirs = wanted["all_in_one_list" if category == "total" else category]
        assert ours == as_counts(theirs), category
        assert same_number(ours.precision, theirs["precision"]), category
        assert same_number(ours.recall, theirs["recall"]), category
        assert same_number(ours.f1, theirs["Fmeasure"]), category
    assert counts["total"].f1 == pytest.approx(wanted["total_calTotal"]["F1"], rel=1e-12)


def test_one_list_of_all_pictures_has_the_total(result):
    one = evaluate_files(PREDICTIONS, ANNOTATIONS, LISTS / "test.txt", odd="drop")
    for iou in THRESHOLDS:
        total = result.counts(iou)["total"]
        assert one.counts(iou) == {"test": total, "total": total}


def test_crossroads_have_false_lanes_only(result):
    counts = result.counts()
    assert counts["cross"].fp > 0
    assert (counts["cross"].tp, counts["cross"].fn, counts["cross"].score) == (0, 0, 0)
    rest = sum((c for name, c in counts.items() if name not in ("cross", "total")), CULaneCounts())
    assert counts["total"] == rest + CULaneCounts(fp=counts["cross"].fp)


@pytest.mark.parametrize("case", expected("expected_degenerate.json"))
def test_degenerate_lists_have_the_official_special_values(case):
    wanted = expected("expected_degenerate.json")[case]
    counts = evaluate_files(PREDICTIONS, ANNOTATIONS, LISTS / f"degenerate_{case}.txt").counts()["total"]
    assert counts == as_counts(wanted)
    for name, value in (("precision", counts.precision), ("recall", counts.recall), ("Fmeasure", counts.f1)):
        assert same_number(value, wanted[name]), name


@pytest.mark.parametrize("name", PICTURES)
def test_ious_matches_and_areas_of_each_picture_are_the_official_ones(name):
    wanted = PICTURES[name]
    annotated, predicted = lanes_of(ANNOTATIONS, name), lanes_of(PREDICTIONS, name)
    assert (len(annotated), len(predicted)) == (wanted["n_anno"], wanted["n_det"])
    counts = {iou: evaluate_lanes(predicted, annotated, iou=iou) for iou in THRESHOLDS}
    assert counts[0.5] == as_counts(wanted)
    assert (counts[0.3].tp, counts[0.75].tp) == (wanted["tp@0.3"], wanted["tp@0.75"])
    if not annotated or not predicted:
        return
    ious = culane.lane_ious(predicted, annotated)
    np.testing.assert_allclose(ious, np.array(wanted["iou"], float), rtol=0, atol=1e-12)
    pairs = [j if j >= 0 and ious[i, j] > 0.5 else -1 for i, j in enumerate(culane.match(ious))]
    assert pairs == wanted["match"]
    assert [int(culane.draw_lane(lane).sum()) for lane in annotated] == wanted["anno_area"]


@pytest.mark.parametrize("case", expected("spline.json"), ids=lambda case: f"{len(case['points'])}")
def test_spline_points_are_the_official_ones(case):
    ours = culane.spline(case["points"])
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, np.array(case["interp"], float), rtol=0, atol=6e-7)  # theirs have six places


# --- one picture ------------------------------------------------------------------------------------------------------


def test_spline_is_the_natural_one_over_the_length_of_chords():
    lane = np.random.default_rng(0).uniform(0, 600, (12, 2)).astype(np.float32)
    lengths = np.linalg.norm(np.diff(lane.astype(np.float64), axis=0), axis=1)
    places = np.append(0, np.cumsum(lengths))
    steps = (places[:-1, None] + lengths[:, None] * np.arange(10) / 10).ravel()
    wanted = CubicSpline(places, lane, bc_type="natural")(np.append(steps, places[-1]))
    np.testing.assert_allclose(culane.spline(lane, steps=10), wanted, rtol=0, atol=1e-3)


def wild_lanes():
    generator = np.random.default_rng(1)
    for number in range(24):
        points = (2, 3, 8, 25)[number % 4]
        yield generator.uniform(-300, 1900, (points, 2)) * (1, 0.5)
    curve = straight(700.0)
    yield curve + 0.5
    yield np.repeat(curve, 2, axis=0)
    yield np.array([[100.0, 500.0], [100.0, 500.0]])
    yield np.array([[1e9, 500.0], [300.0, 200.0]])
    yield np.array([[1e12, 500.0], [300.0, 200.0], [200.0, 100.0]])
    yield np.add(curve, [5000.0, 0.0])


@pytest.mark.parametrize("width", [30, 7, 1])
def test_a_lane_is_drawn_as_one_line_after_the_other(width):
    size = (820, 295)
    for lane in wild_lanes():
        points = culane.spline(lane) if len(lane) > 2 else lane.astype(np.float32)
        with np.errstate(invalid="ignore"):
            pixels = np.where(np.abs(points) < 2**31, np.rint(points), -(2**31)).astype(np.int64).tolist()
        wanted = np.zeros((295, 820), np.uint8)
        for start, end in itertools.pairwise(pixels):
            cv2.line(wanted, start, end, 1, width)
        np.testing.assert_array_equal(culane.draw_lane(lane, size, width), wanted)


def test_ious_are_those_of_whole_masks():
    lanes = list(wild_lanes())
    masks = [culane.draw_lane(lane) for lane in lanes]
    ious = culane.lane_ious(lanes[:20], lanes[10:])
    assert 0 < (ious > 0).sum() < ious.size
    for i, j in itertools.product(range(len(lanes) - 10), range(20)):
        union = (masks[10 + i] | masks[j]).sum()
        wanted = (masks[10 + i] & masks[j]).sum() / union if union else np.nan
        np.testing.assert_allclose(ious[i, j], wanted, rtol=1e-12)


def test_the_threshold_itself_is_not_above_it():
    annotated = [straight(700.0)]
    iou = float(culane.lane_ious([straight(706.0)], annotated)[0, 0])
    assert 0.5 < iou < 1
    assert evaluate_lanes([straight(706.0)], annotated, iou=iou) == CULaneCounts(0, 1, 1)
    assert evaluate_lanes([straight(706.0)], annotated, iou=iou - 1e-9) == CULaneCounts(1, 0, 0)


def test_the_width_of_lanes_and_the_size_of_the_picture_count():
    near = [straight(100.0)], [straight(108.0)]
    assert evaluate_lanes(*near, width=60).tp == 1
    assert evaluate_lanes(*near, width=10).tp == 0
    outside = [straight(900.0)]
    assert evaluate_lanes(outside, outside).tp == 1
    assert evaluate_lanes(outside, outside, size=(800, 590)).tp == 0


@pytest.mark.parametrize("lane", [[], [[700.0, 500.0]]])
def test_a_lane_of_fewer_than_two_points_counts_and_matches_none(lane):
    other = [straight(700.0)]
    assert evaluate_lanes([lane], other) == CULaneCounts(0, 1, 1)
    assert evaluate_lanes(other, [lane]) == CULaneCounts(0, 1, 1)
    assert evaluate_lanes([lane], []) == CULaneCounts(0, 1, 0)


def test_a_point_twice_in_a_row_spoils_a_lane_and_tidy_mends_it():
    lane = straight(700.0)
    spoilt = np.insert(lane, 5, lane[5], axis=0)
    assert evaluate_lanes([spoilt], [lane]) == CULaneCounts(0, 1, 1)
    assert evaluate_lanes(tidy([spoilt, lane[:1], []]), [lane]) == CULaneCounts(1, 0, 0)


@pytest.mark.parametrize(
    ("lane", "message"),
    [([1.0, 2.0], r"shape \(2,\)"), ([[1.0, math.nan]], "not finite"), ([[1.0, 1e39], [2.0, 3.0]], "not finite")],
)
def test_a_lane_that_is_no_points_is_refused(lane, message):
    with pytest.raises(UserError, match=message):
        evaluate_lanes([lane], [straight(100.0)])


# --- matching ---------------------------------------------------------------------------------------------------------


def test_matching_is_the_best_assignment_where_no_two_are_near():
    generator = np.random.default_rng(2)
    for shape in [(1, 1), (4, 4), (3, 6), (6, 3), (1, 5), (5, 1)] * 20:
        matrix = generator.permutation(np.arange(np.prod(shape)) * 0.37 % 50).reshape(shape)
        rows, columns = linear_sum_assignment(matrix, maximize=True)
        pairs = culane.match(matrix)
        assert sum(j >= 0 for j in pairs) == min(shape)
        found = sum(matrix[i, j] for i, j in enumerate(pairs) if j >= 0)
        assert matrix[rows, columns].sum() - 0.01 * min(shape) <= found <= matrix[rows, columns].sum() + 1e-9


def test_of_two_within_the_slack_the_first_listed_wins():
    assert culane.match([[0.498, 0.506]]) == culane.match([[0.506, 0.498]]) == [0]
    assert culane.match([[0.498, 0.509]]) == [1]
    assert culane.match([[0.498], [0.506]]) == culane.match([[0.506], [0.498]]) == [0, -1]
    assert culane.match([[0.498], [0.509]]) == [-1, 0]


def test_matching_of_nan_takes_no_such_pair():
    assert culane.match([[math.nan]]) == [-1]
    assert culane.match([[0.9, math.nan], [math.nan, 0.8]]) == [0, 1]
    assert culane.match(np.full((2, 3), math.nan)) == [-1, -1]


def test_mf1_is_the_mean_over_ten_thresholds():
    matches = [culane.Matches(3, 2, (0.72, 0.97)), culane.Matches(1, 2, (0.5,))]
    # Above 0.5 to 0.7 two of the pairs, above 0.75 to 0.95 one; each time 4 lanes on both sides.
    wanted = (5 * 2 * 2 / 8 + 5 * 2 * 1 / 8) / 10
    assert culane.mean_f1(matches) == pytest.approx(wanted, rel=1e-12)


def test_scores_of_no_lane_at_all_and_of_none_found():
    assert math.isnan(CULaneCounts().score) and CULaneCounts().f1 == -1
    assert CULaneCounts(0, 3, 2).score == 0 and math.isnan(CULaneCounts(0, 3, 2).f1)
    some = CULaneCounts(3, 2, 1)
    assert some.score == pytest.approx(some.f1, rel=1e-12)


# --- files ------------------------------------------------------------------------------------------------------------


def test_several_processes_give_the_same(result):
    assert evaluate_files(PREDICTIONS, ANNOTATIONS, LISTS / "test_split", odd="drop", workers=2) == result


def test_what_the_official_evaluator_takes_in_silence_is_noted(result):
    silent = {
        "prediction file missing": "no file of predictions",
        "GT file missing: prediction is FP": "no file of annotations",
        "blank line in the prediction counts as a predicted lane (FP)": "fewer than two points",
        "one-point GT lane: FN": "fewer than two points",
    }
    for name, picture in PICTURES.items():
        notes = [note for note in result.notes if lines_path("", name).as_posix() in note]
        if picture["note"] in silent:
            assert any(silent[picture["note"]] in note for note in notes), name
        elif picture["note"] == "random":
            assert not notes


def test_an_odd_count_of_numbers_is_refused_unless_told_otherwise():
    name = next(name for name, picture in PICTURES.items() if picture["note"].startswith("odd number of values"))
    with pytest.raises(UserError, match=r"lines\.txt, line \d+: \d+ numbers.*odd='drop'") as error:
        evaluate_files(PREDICTIONS, ANNOTATIONS, LISTS / "test_split")
    assert str(lines_path(PREDICTIONS, name)) in str(error.value)


def test_a_point_twice_in_a_row_is_noted_and_counts_as_officially(tmp_path):
    lane = straight(700.0)
    row = " ".join(f"{x:g} {y:.3f}" for x, y in np.insert(lane, 5, lane[5], axis=0))
    written(tmp_path / "pred", f"{row}\n")
    write_lines(tmp_path / "true" / "a.lines.txt", [lane])
    written(tmp_path, "/a.jpg\n", "list.txt")
    result = evaluate_files(tmp_path / "pred", tmp_path / "true", tmp_path / "list.txt")
    assert result.counts()["total"] == CULaneCounts(0, 1, 1)
    assert [note.partition(": ")[2] for note in result.notes] == [
        "a point stands twice in a row; the spline of that lane is nan."
    ]
    assert "a.lines.txt, line 1" in result.notes[0]


def test_a_fault_is_named_from_another_process_too(tmp_path):
    for folder in ("pred", "true"):
        written(tmp_path / folder, "1 2 3\n")
    written(tmp_path, "a.jpg\n", "list.txt")
    with pytest.raises(UserError, match=r"pred/a\.lines\.txt, line 1: 3 numbers"):
        evaluate_files(tmp_path / "pred", tmp_path / "true", tmp_path / "list.txt", workers=2)


def written(folder, text, name="a.lines.txt"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 4\n1 2 3\n", "line 2: 3 numbers"),
        ("1 2 x 4\n", "line 1: 'x' is no number"),
        ("\n1 2 3,5 4\n", "line 2: '3,5' is no number"),
        ("1 2\n3 nan\n", "line 2: nan is no place"),
        ("1 2 inf 4\n", "line 1: inf is no place"),
        ("1 2 1e300 4\n", "line 1: 1e[+]300 is no place"),
        (b"\xff\xfe1", "cannot be read as text"),
    ],
)
def test_faulty_lines_are_named(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        read_lines(path)
    assert str(path) in str(error.value)


def test_lines_are_read_whatever_their_ends_and_blanks(tmp_path):
    lanes = read_lines(written(tmp_path, "1 2\t3.5  4 \r\n\n \r\n5 6 -7 8e1"))
    assert [lane.tolist() for lane in lanes] == [[[1, 2], [3.5, 4]], [], [], [[5, 6], [-7, 80]]]
    assert read_lines(written(tmp_path, "")) == []
    assert read_lines(written(tmp_path, "1 2 3 4 5\n"), odd="drop")[0].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(UserError, match="Did you mean 'drop'"):
        read_lines(tmp_path / "a.lines.txt", odd="drob")
    with pytest.raises(UserError, match="no such file"):
        read_lines(tmp_path / "b.lines.txt")


def test_lists_lose_the_slash_in_front_and_further_columns(tmp_path):
    path = written(tmp_path, "/driver/00000.jpg /laneseg/00000.png 1 1 0 0\r\n\ndriver/00030.jpg\n", "list.txt")
    assert read_list(path) == ["driver/00000.jpg", "driver/00030.jpg"]
    assert lines_path("root", "/driver/a.b.jpg") == Path("root/driver/a.b.lines.txt")


def test_written_lanes_are_read_again_without_a_loss(tmp_path):
    lanes = [
        np.random.default_rng(3).uniform(-50, 1700, (9, 2)).astype(np.float32),
        np.float32([[0.1, 590], [1e-3, 3]]),
    ]
    path = tmp_path / "new" / "a.lines.txt"
    write_lines(path, [np.repeat(lanes[0], 2, axis=0), lanes[1][:1], [], lanes[1]])
    again = read_lines(path)
    assert len(again) == 2
    for ours, lane in zip(again, lanes, strict=True):
        np.testing.assert_array_equal(ours, lane)
    write_lines(path, [])
    assert read_lines(path) == []
    with pytest.raises(UserError, match=r"a\.lines\.txt: lanes cannot be written"):
        write_lines(path / "a.lines.txt", lanes)


def test_missing_folders_lists_and_annotations_are_named(tmp_path):
    some = LISTS / "degenerate_all_wrong.txt"
    with pytest.raises(UserError, match="nowhere: there is no such folder of predictions"):
        evaluate_files(tmp_path / "nowhere", ANNOTATIONS, some)
    with pytest.raises(UserError, match="nowhere: there is no such folder of annotations"):
        evaluate_files(PREDICTIONS, tmp_path / "nowhere", some)
    with pytest.raises(UserError, match=r"nowhere\.txt: there is no such file"):
        evaluate_files(PREDICTIONS, ANNOTATIONS, tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"none of its 2 pictures has a file of annotations, such as .*00870\.lines"):
        evaluate_files(PREDICTIONS, tmp_path, some)
    shutil.copytree(LISTS / "test_split", tmp_path / "lists")
    (tmp_path / "lists" / "test7_cross.txt").rename(tmp_path / "lists" / "test7_crossing.txt")
    with pytest.raises(UserError, match=r"test7_cross\.txt are missing.*'test7_crossing\.txt'"):
        evaluate_files(PREDICTIONS, ANNOTATIONS, tmp_path / "lists")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"width": 0}, "0 pixels wide"),
        ({"size": (1640, 0)}, r"\(1640, 0\)"),
        ({"odd": "drpo"}, "'drop'"),
    ],
)
def test_impossible_options_of_an_evaluation_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        evaluate_files(PREDICTIONS, ANNOTATIONS, LISTS / "degenerate_all_wrong.txt", **options)


# --- the metric -------------------------------------------------------------------------------------------------------


def batches(annotated_in_meta=True):
    """What loader and decoder give of the fixture's pictures, one a batch."""
    for category in culane.CATEGORIES:
        for name in read_list(LISTS / "test_split" / culane.category_file(category)):
            meta = {"path": name, "original_size": (590, 1640), "category": category}
            if annotated_in_meta:
                meta["lanes"] = [lane.tolist() for lane in lanes_of(ANNOTATIONS, name)]
            yield {"meta": [meta]}, [{"lanes": lanes_of(PREDICTIONS, name), "scores": []}]


def judged(metric, pairs):
    evaluator = Evaluator(metric)
    pairs = list(pairs)
    for batch, samples in pairs:
        evaluator.process(samples, batch)
    return evaluator.evaluate(len(pairs))


def without_short(counts):
    """The fixture has two predicted lanes of fewer than two points, which the metric does not pass on."""
    return CULaneCounts(counts.tp, counts.fp - 2, counts.fn)


def test_the_metric_gives_percent_by_category_and_its_files_the_same(result, tmp_path):
    metric = METRICS.build({"type": "CULaneMetric", "write_to": str(tmp_path), "more_ious": [0.3, 0.75]})
    numbers = judged(metric, batches())
    assert list(numbers) == ["F1", "Precision", "Recall", "F1@0.3", "F1@0.75", "mF1", "cross_FP"]
    total = without_short(result.counts()["total"])
    assert numbers["F1"] == pytest.approx(100 * total.f1, rel=1e-12)
    assert numbers["Precision"] == pytest.approx(100 * total.precision, rel=1e-12)
    assert numbers["Recall"] == pytest.approx(100 * total.recall, rel=1e-12)
    for iou in (0.3, 0.75):
        assert numbers[f"F1@{iou}"] == pytest.approx(100 * without_short(result.counts(iou)["total"]).f1, rel=1e-12)
    again = evaluate_files(tmp_path, ANNOTATIONS, LISTS / "test_split")
    assert again.mf1 * 100 == pytest.approx(numbers["mF1"], rel=1e-12)
    assert list(metric.per_class) == list(culane.CATEGORIES)
    for category, counts in again.counts().items():
        if category != "total":
            row = metric.per_class[category]
            assert CULaneCounts(row["TP"], row["FP"], row["FN"]) == counts
    assert numbers["cross_FP"] == again.counts()["cross"].fp > 0
    assert math.isnan(metric.per_class["cross"]["F1"])


def test_the_metric_reads_annotations_from_files():
    options = {"annotations": str(ANNOTATIONS), "size": (1640, 590)}
    in_files = CULaneMetric(**options)
    in_meta = CULaneMetric()
    assert judged(in_files, batches(annotated_in_meta=False)) == judged(in_meta, batches())
    assert in_files.matches == in_meta.matches


def test_the_metric_of_pictures_without_categories_and_without_hits():
    meta = {"path": "a.jpg", "original_size": (590, 1640), "lanes": [straight(100.0).tolist()]}
    metric = CULaneMetric()
    numbers = judged(metric, [({"meta": [meta]}, [{"lanes": [straight(900.0)]}])])
    assert numbers["F1"] == numbers["mF1"] == 0
    assert metric.per_class == {} and "cross_FP" not in numbers
    nothing = judged(CULaneMetric(), [({"meta": [meta | {"lanes": []}]}, [{"lanes": []}])])
    assert all(math.isnan(value) for value in nothing.values())


def test_the_metric_draws_in_the_picture_of_its_own_size():
    meta = {"path": "a.jpg", "original_size": (64, 160), "lanes": [straight(150.0, 10, 63)]}
    samples = [{"lanes": [straight(156.0, 10, 63)]}]
    options = {"iou": 0.6, "width": 20}  # the border of the small picture cuts off what the lanes do not share
    small = judged(CULaneMetric(**options), [({"meta": [meta]}, samples)])
    large = judged(CULaneMetric(**options, size=(1640, 590)), [({"meta": [meta]}, samples)])
    assert small["F1"] == 100 and large["F1"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou": 1.0}, "IoU 1"),
        ({"more_ious": [-0.1]}, "IoU -0.1"),
        ({"width": -3}, "-3 pixels wide"),
        ({"size": [100]}, r"\(100,\)"),
    ],
)
def test_impossible_options_of_the_metric_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        CULaneMetric(**options)


def test_the_metric_names_what_is_missing():
    meta = {"path": "a.jpg", "original_size": (590, 1640), "lanes": []}
    with pytest.raises(UserError, match="no 'lanes', but mask"):
        CULaneMetric().process({"meta": [meta]}, [{"mask": None}])
    with pytest.raises(UserError, match=r"a\.jpg has no 'lanes' in its meta"):
        CULaneMetric().process({"meta": [{"path": "a.jpg", "original_size": (1, 1)}]}, [{"lanes": []}])
    with pytest.raises(UserError, match=r"a\.jpg, predicted: a lane has values that are not finite"):
        CULaneMetric().process({"meta": [meta]}, [{"lanes": [[[math.nan, 1.0]]]}])


# --- the benchmark ----------------------------------------------------------------------------------------------------


def test_both_sides_of_the_benchmark_count_alike(tmp_path):
    made = benchmark.random_pictures(3)
    benchmark.write_culane(tmp_path, made)
    ours = benchmark.culane_ours(made)()
    assert ours == benchmark.culane_by_pair(made)() == benchmark.culane_files(tmp_path)()["total"]
    assert ours.tp > 6
