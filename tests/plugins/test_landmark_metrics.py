"""NME, failure rates and areas against HRNet, D-X-Y landmark detection and mmpose; subsets, files, bad input."""

import json
import logging
import multiprocessing
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from kd_landmarks import metrics
from kd_landmarks.ced import ced_curve, ced_figure, write_ced
from kd_landmarks.metrics import LandmarkMetric, evaluate_predictions
from kd_landmarks.nme import Norm, area_under_curve, norm_of
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, METRICS
from rich.console import Console
from torch import nn

from kd_tasks.errors import UserError
from kd_tasks.registry import NETWORKS
from tests.benchmarks import landmarks as benchmark

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics" / "landmarks"
EYES_68 = {"inter_ocular": ((36,), (45,)), "inter_pupil": (tuple(range(36, 42)), tuple(range(42, 48)))}
NORMS = {
    "300w": EYES_68,
    "wflw": {"inter_ocular": ((60,), (72,))},
    "cofw": {"inter_ocular": ((8,), (9,))},
    "aflw": {},
    "thresholds": EYES_68,
    "zero_interocular": EYES_68,
    "occluded_brows": EYES_68,
}
CASES = tuple(NORMS)
DXY = {"300w": "dxy_face68", "wflw": "dxy_face98", "aflw": "dxy_face19"}
OFFSET = np.array([3.0, 4.0])
EXACT = {"rel": 1e-9, "abs": 1e-9}


def read_case(name):
    with np.load(FIXTURES / f"{name}.npz") as data:
        return dict(data), json.loads((FIXTURES / f"{name}.expected.json").read_text())


def metainfo(norms, default="inter_ocular", **more):
    return {"classes": [], "norms": norms, "default_norm": default, **more}


def evaluated(metric, pred, points, visible=None, boxes=None, subsets=None, info=None, batch=7):
    """The metric's numbers, from batches as a loader gives them."""
    judge = Evaluator(metric)
    judge.dataset_meta = info or metainfo(EYES_68)
    for start in range(0, len(pred), batch):
        part = slice(start, start + batch)
        targets = {"points": torch.as_tensor(points[part])}
        if visible is not None:
            targets["visible"] = torch.as_tensor(visible[part] > 0)
        if boxes is not None:
            targets["box"] = torch.as_tensor(boxes[part])
        meta = [{"path": f"{place}.jpg"} for place in range(len(pred))[part]]
        if subsets is not None:
            meta = [{**m, "subsets": names} for m, names in zip(meta, subsets[part], strict=True)]
        judge.process(
            data_samples=[{"points": torch.as_tensor(p)} for p in pred[part]],
            data_batch={"targets": targets, "meta": meta},
        )
    return judge.evaluate(len(pred))


def of_case(name, **options):
    """A metric and its numbers for a fixture."""
    data, _ = read_case(name)
    boxes = None
    if "box_size" in data:
        shorter = 0.5 * data["box_size"]
        boxes = np.stack([0 * shorter, 0 * shorter, shorter, data["box_size"]], axis=1)
        options.setdefault("norm", "face_size")
    metric = LandmarkMetric(**{"thresholds": (0.07, 0.08, 0.1), **options})
    return metric, evaluated(metric, data["pred"], data["gt"], data["vis"], boxes, info=metainfo(NORMS[name]))


def known(values):
    return [float(value) for value in values]


# --- against other toolboxes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_counting_all_points_is_hrnet(name):
    wanted = read_case(name)[1]["hrnet"]
    metric, numbers = of_case(name, missing="all", zero_norm="inf")
    np.testing.assert_allclose(metric.errors, known(wanted["per_image"]), rtol=1e-9)
    assert numbers["NME"] == pytest.approx(100 * float(wanted["nme"]), **EXACT)
    assert numbers["FR@0.08"] == pytest.approx(100 * wanted["FR_008"], **EXACT)
    assert numbers["FR@0.1"] == pytest.approx(100 * wanted["FR_010"], **EXACT)


@pytest.mark.parametrize("name", [name for name in CASES if name != "cofw"])
def test_means_over_annotated_points_are_those_of_dxy(name):
    wanted = read_case(name)[1][DXY.get(name, "dxy_face68")]
    metric, numbers = of_case(name, zero_norm="inf", accuracy=True)
    np.testing.assert_allclose(metric.errors, known(wanted["per_image"]), rtol=1e-9)
    assert numbers["NME"] == pytest.approx(100 * float(wanted["nme"]), **EXACT)
    assert numbers["ACC@0.08"] == pytest.approx(wanted["accuracy_under_0_08_percent"], **EXACT)
    for ours, theirs in (("AUC@0.07", "auc@0.07"), ("AUC@0.08", "auc@0.08"), ("AUC@0.1", "auc@0.10")):
        assert numbers[ours] == pytest.approx(100 * wanted[theirs], **EXACT)


def test_the_norm_between_the_pupils_is_that_of_dxy():
    wanted = read_case("300w")[1]["dxy_face68_pupil"]
    metric, numbers = of_case("300w", norm="inter_pupil")
    np.testing.assert_allclose(metric.errors, wanted["per_image"], rtol=1e-9)
    assert numbers["NME"] == pytest.approx(100 * wanted["nme"], **EXACT)
    assert numbers["AUC@0.1"] == pytest.approx(100 * wanted["auc@0.10"], **EXACT)


@pytest.mark.parametrize("name", CASES)
def test_pooled_points_are_those_of_mmpose_which_leaves_out_faces_without_a_norm(name):
    expected = read_case(name)[1]
    _, numbers = of_case(name, missing="pooled")
    assert numbers["NME"] == pytest.approx(100 * expected["mmpose_NME"], rel=1e-5)  # theirs is float32


@pytest.mark.parametrize("name", CASES)
def test_the_exact_area(name):
    wanted = read_case(name)[1]["exact_area"]
    _, numbers = of_case(name, missing="all", auc="area", zero_norm="inf")
    assert [numbers[f"AUC@{t}"] for t in (0.07, 0.08, 0.1)] == pytest.approx(
        [100 * v for v in wanted.values()], **EXACT
    )


def test_the_three_rules_for_missing_points_differ():
    numbers = [of_case("aflw", missing=rule)[1]["NME"] for rule in ("per_face", "all", "pooled")]
    assert len({round(number, 3) for number in numbers}) == 3


def test_norms_of_the_box():
    points = np.zeros((1, 3, 2))
    pred = points + OFFSET
    boxes = np.array([[7.0, 7.0, 40.0, 10.0]])
    for name, length in (("box", 20), ("face_size", 40)):
        numbers = evaluated(LandmarkMetric(norm=name), pred, points, boxes=boxes)
        assert numbers["NME"] == pytest.approx(100 * 5 / length)


@pytest.mark.parametrize("name", ["300w", "wflw", "thresholds"])
def test_curves_are_those_of_dxy(name):
    wanted = read_case(name)[1][DXY.get(name, "dxy_face68")]["curve_at"]
    metric, _ = of_case(name)
    thresholds, shares = ced_curve(metric.errors, limit=0.2, steps=2000)
    assert thresholds[[0, 700, 2000]] == pytest.approx([0, 0.07, 0.2])
    for place, share in wanted.items():
        assert shares[int(place)] == pytest.approx(share), place


def test_areas_by_both_rules_against_a_count_of_faces():
    errors = np.random.default_rng(0).exponential(0.05, 500)
    counted = [np.mean([error < t for error in errors]) for t in np.linspace(0, 0.08, 2000)]
    assert area_under_curve(errors, 0.08) == pytest.approx(np.trapezoid(counted, dx=0.08 / 1999) / 0.08, rel=1e-9)
    assert area_under_curve(errors, 0.08, "area") == pytest.approx(np.mean(np.maximum(0, 1 - errors / 0.08)), rel=1e-12)
    assert area_under_curve(errors, 0.08) == pytest.approx(area_under_curve(errors, 0.08, "area"), abs=1e-3)


# --- what is left out -------------------------------------------------------------------------------------------------


@pytest.fixture
def logged(monkeypatch):
    """What is logged: pairs of level and text."""
    lines = []
    monkeypatch.setattr(metrics, "log_once", lambda text, level=logging.INFO: lines.append((level, text)))
    return lines


def test_a_face_without_a_norm_is_left_out_and_named(logged):
    data, expected = read_case("zero_interocular")
    metric, numbers = of_case("zero_interocular")
    kept = [float(value) for value in expected["hrnet"]["per_image"] if value != "inf"]
    assert numbers["NME"] == pytest.approx(100 * np.mean(kept), **EXACT)
    assert numbers["FR@0.1"] == 0
    assert np.flatnonzero(np.isnan(metric.errors)).tolist() == [2]
    assert metric.per_class["full"]["faces"] == len(data["pred"]) - 1
    (_, rule), (level, warning) = logged
    assert rule == "LandmarkMetric: NME is normalised by the inter-ocular distance (points 36 and 45)."
    assert level == logging.WARNING
    assert "1 of 6 faces have no inter-ocular distance above zero and are left out: 2.jpg." in warning


def test_many_faces_without_a_norm_are_counted(logged):
    points = np.random.default_rng(0).uniform(0, 50, (9, 68, 2))
    points[1:, 45] = points[1:, 36]
    evaluated(LandmarkMetric(), points + 1, points)
    assert "8 of 9 faces" in logged[1][1]
    assert "1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg and 3 more" in logged[1][1]


def test_faces_without_annotated_points_or_with_a_hidden_end_of_the_norm(logged):
    points = np.random.default_rng(0).uniform(0, 50, (4, 68, 2))
    visible = np.ones((4, 68), int)
    visible[1, 36] = 0
    metric = LandmarkMetric()
    evaluated(metric, points + OFFSET, points, visible)
    assert np.isnan(metric.errors).tolist() == [False, True, False, False]
    visible[2] = 0
    boxes = np.full((4, 4), 100.0)
    metric = LandmarkMetric(norm="box")
    numbers = evaluated(metric, points + OFFSET, points, visible, boxes)
    assert numbers["NME"] == pytest.approx(5)
    assert np.isnan(metric.errors).tolist() == [False, False, True, False]
    assert "1 of 4 faces have no annotated point and are left out: 2.jpg" in logged[-1][1]


def test_without_any_norm_there_is_no_number():
    points = np.ones((2, 68, 2))
    with pytest.raises(UserError, match=r"of 2 faces, none has a norm \(inter-ocular distance\).*0\.jpg"):
        evaluated(LandmarkMetric(), points, points)


# --- names, order, subsets --------------------------------------------------------------------------------------------


def scene(count=6):
    """Faces whose NME is 1 %, 2 %, ... of the inter-ocular distance of 100 pixels."""
    points = np.random.default_rng(0).uniform(0, 100, (count, 68, 2))
    points[:, 36], points[:, 45] = [0, 0], [100, 0]
    return points + np.arange(1, count + 1)[:, None, None] * [0.6, 0.8], points


def test_names_order_and_the_main_number():
    metric = LandmarkMetric()
    numbers = evaluated(metric, *scene())
    assert list(numbers) == ["NME", "FR@0.08", "FR@0.1", "AUC@0.08", "AUC@0.1"]
    assert numbers["NME"] == pytest.approx(3.5)
    assert "NME" in LandmarkMetric.lower_is_better
    assert metric.paths == [f"{place}.jpg" for place in range(6)]
    numbers = evaluated(LandmarkMetric(thresholds=[0.03], accuracy=True, prefix="a"), *scene())
    assert list(numbers) == ["a/NME", "a/FR@0.03", "a/AUC@0.03", "a/ACC@0.03"]
    assert numbers["a/FR@0.03"] == pytest.approx(50)


def test_subsets_and_the_whole_of_300w():
    subsets = [
        ("common", "helen"),
        ("common", "lfpw"),
        ("common", "helen"),
        ("challenging",),
        ("challenging",),
        ("common",),
    ]
    metric = LandmarkMetric()
    numbers = evaluated(metric, *scene(), subsets=subsets)
    assert list(metric.per_class) == ["full", "common", "helen", "lfpw", "challenging"]
    assert metric.per_class["full"] == {**numbers, "faces": 6}
    assert metric.per_class["common"]["NME"] == pytest.approx((1 + 2 + 3 + 6) / 4)
    assert metric.per_class["challenging"]["NME"] == pytest.approx(4.5)
    assert [row["faces"] for row in metric.per_class.values()] == [6, 4, 2, 1, 2]
    assert metric.per_class["full"]["NME"] != pytest.approx((3 + 4.5) / 2)  # pooled, no mean of two means


def test_attributes_of_wflw():
    subsets = [("pose", "blur"), (), ("blur",), (), ("make-up",), ()]
    metric = LandmarkMetric()
    evaluated(metric, *scene(), subsets=subsets, info=metainfo(EYES_68, whole="test"))
    assert {name: row["NME"] for name, row in metric.per_class.items()} == pytest.approx(
        {"test": 3.5, "pose": 1, "blur": 2, "make-up": 5}
    )


def test_a_subset_of_all_faces_stands_for_the_whole():
    metric = LandmarkMetric()
    evaluated(metric, *scene(), subsets=[("test", "indoor")] * 3 + [("test", "outdoor")] * 3)
    assert list(metric.per_class) == ["test", "indoor", "outdoor"]


def test_a_subset_whose_faces_have_no_norm():
    pred, points = scene()
    points[0, 45] = points[0, 36]
    metric = LandmarkMetric()
    evaluated(metric, pred, points, subsets=[("blur",)] + [()] * 5)
    assert metric.per_class["blur"]["faces"] == 0
    assert np.isnan(metric.per_class["blur"]["NME"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "NME is normalised by the inter-ocular distance (points 36 and 45)."),
        (
            {"norm": "inter_pupil", "missing": "pooled"},
            "NME is normalised by the inter-pupil distance (means of points 36-41 and 42-47); the mean is over all "
            "annotated points of all faces together.",
        ),
        ({"norm": "face_size"}, "NME is normalised by the face size (longer side of the box)."),
        ({"norm": "box", "auc": "area"}, "NME is normalised by the size of the box (square root of its area); AUC is "),
        ({"zero_norm": "inf"}, "a face without a norm has an infinite error."),
    ],
)
def test_the_note_names_the_norm_and_unusual_rules(options, words):
    metric = METRICS.build({"type": "LandmarkMetric", **options})
    metric.dataset_meta = metainfo(EYES_68)
    assert words in metric.note


def test_points_of_a_norm_that_are_not_in_a_row_are_listed():
    assert Norm("x", ((1, 3), (7,))).words == "the x distance (means of points 1 + 3 and 7)"
    assert norm_of(None, metainfo(EYES_68, "face_size")).name == "face_size"


def test_batches_change_nothing():
    pred, points = scene(11)
    assert evaluated(LandmarkMetric(), pred, points, batch=3) == evaluated(LandmarkMetric(), pred, points, batch=11)


def test_a_metric_can_be_used_again():
    metric = LandmarkMetric()
    first = evaluated(metric, *scene())
    assert evaluated(metric, *scene()) == first


# --- several processes ------------------------------------------------------------------------------------------------


def on_rank(rank, size, port, results):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    pred, points = scene(7)
    places = [*range(7), *range(7)][: 7 + -7 % size][rank::size]
    metric = LandmarkMetric()
    metric.dataset_meta = metainfo(EYES_68)
    meta = [{"path": f"{place}.jpg", "subsets": ["odd"] if place % 2 else []} for place in places]
    batch = {"targets": {"points": torch.as_tensor(points[places])}, "meta": meta}
    metric.process(batch, [{"points": torch.as_tensor(pred[place])} for place in places])
    numbers = metric.evaluate(7)
    results.put((rank, (numbers, metric.errors.tolist(), metric.paths, metric.per_class)))
    torch.distributed.destroy_process_group()


def test_three_processes_give_the_numbers_of_one():
    metric = LandmarkMetric()
    numbers = evaluated(metric, *scene(7), subsets=[("odd",) * (place % 2) for place in range(7)])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=on_rank, args=(rank, 3, port, results)) for rank in range(3)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert [found[rank][0] for rank in range(3)] == [numbers] * 3
    assert found[0] == (numbers, metric.errors.tolist(), metric.paths, metric.per_class)


# --- speed ------------------------------------------------------------------------------------------------------------


def test_the_benchmark_compares_the_same_numbers():
    faces = benchmark.random_faces(50, 98)
    assert benchmark.ours(*faces)() == pytest.approx(benchmark.by_face(*faces)(), rel=1e-9)
    (row,) = benchmark.run(faces=20, rounds=1)
    assert row.ratio > 0


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing": "per_image"}, "missing is 'per_image'. Did you mean 'per_face'"),
        ({"auc": "grids"}, "auc is 'grids'. Did you mean 'grid'"),
        ({"zero_norm": "drop"}, "zero_norm is 'drop'.*left_out, inf"),
        ({"thresholds": (8,)}, "fractions between 0 and 1"),
        ({"ced": "ced.gif"}, r"ced\.gif.*\.png, \.svg, \.pdf"),
    ],
)
def test_impossible_options_are_refused_at_once(options, message):
    with pytest.raises(UserError, match=message):
        LandmarkMetric(**options)


@pytest.mark.parametrize(
    ("options", "info", "message"),
    [
        ({"norm": "inter_occular"}, metainfo(EYES_68), "no norm 'inter_occular'.*Did you mean 'inter_ocular'"),
        ({}, {"classes": []}, "names no norm of its own.*box, face_size"),
        (
            {},
            metainfo(NORMS["wflw"]) | {"norms": {"inter_ocular": ((60,), (72,))}},
            "needs point 72, and faces have 68",
        ),
        ({"norm": "box"}, metainfo(EYES_68), "no 'box', which the size of the box .* needs, but points"),
    ],
)
def test_norms_that_the_data_lack(options, info, message):
    with pytest.raises(UserError, match=message):
        evaluated(LandmarkMetric(**options), *scene(), info=info)


def test_predictions_that_are_not_finite_name_the_picture():
    pred, points = scene()
    pred[4, 7] = np.nan
    pred[4, 9, 0] = np.inf
    with pytest.raises(UserError, match=r"4\.jpg: 2 of 68 predicted points are not finite"):
        evaluated(LandmarkMetric(), pred, points)


def test_annotations_that_are_not_finite_name_the_picture_unless_they_do_not_count():
    pred, points = scene()
    points[2, 7] = np.nan
    with pytest.raises(UserError, match=r"2\.jpg: an annotated point that counts is not finite"):
        evaluated(LandmarkMetric(), pred, points)
    visible = np.ones((6, 68), int)
    visible[2, 7] = 0
    assert evaluated(LandmarkMetric(), pred, points, visible)["NME"] == pytest.approx(3.5)
    with pytest.raises(UserError, match=r"2\.jpg"):
        evaluated(LandmarkMetric(missing="all"), pred, points, visible)


def test_other_numbers_of_points_and_missing_keys():
    pred, points = scene()
    with pytest.raises(UserError, match=r"0\.jpg: 5 points are predicted and 68 annotated"):
        evaluated(LandmarkMetric(), pred[:, :5], points)
    metric = LandmarkMetric()
    metric.dataset_meta = metainfo(EYES_68)
    batch = {"targets": {"points": torch.as_tensor(points)}, "meta": [{}] * 6}
    with pytest.raises(UserError, match="no 'points', but heatmaps; take a LandmarkDecoder"):
        metric.process(batch, [{"heatmaps": 0}] * 6)
    with pytest.raises(UserError, match="targets have no 'points', but label"):
        metric.process({"targets": {"label": 0}, "meta": [{}]}, [{"points": pred[0]}])


# --- the curve --------------------------------------------------------------------------------------------------------


def test_several_methods_in_one_figure(tmp_path):
    methods = {"teacher": np.array([0.01, 0.02, 0.2, np.nan]), "student": np.array([0.05, 0.09, 0.2])}
    figure = ced_figure(methods, "the inter-ocular distance", threshold=0.08)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    area = 100 * area_under_curve(methods["student"], 0.08)
    assert labels[0].startswith("teacher: NME 7.67 %, AUC@0.08 ")
    assert labels[0].endswith("FR@0.08 33.33 %")
    assert labels[1] == f"student: NME 11.33 %, AUC@0.08 {area:.2f} %, FR@0.08 66.67 %"
    assert "the inter-ocular distance" in axes.get_xlabel()
    x, y = axes.lines[1].get_data()
    assert np.interp([4.5, 7.0, 9.5], x, y) == pytest.approx([0, 100 / 3, 200 / 3])
    file = write_ced(tmp_path / "ced.svg", methods)
    assert file.read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_curves_of_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="no method"):
        ced_figure({})
    with pytest.raises(UserError, match="none of 2 errors is a number"):
        ced_figure({"a": np.full(2, np.nan)})
    with pytest.raises(UserError, match="limit is 0"):
        ced_curve(np.ones(2), limit=0)
    with pytest.raises(UserError, match="must end with"):
        write_ced(tmp_path / "ced", {"a": np.ones(2)})


# --- in the commands --------------------------------------------------------------------------------------------------

POINTS = 5
INFO = metainfo({"inter_ocular": ((0,), (1,))}, points=POINTS)


@NETWORKS.register
class FixedPoints(nn.Module):
    """The same points for every picture, as fractions."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.rand(POINTS, 2))

    def forward(self, images):
        return {"points": self.points.expand(len(images), -1, -1)}


@DATASETS.register_module()
class FewFaces:
    """Noise with points; the first picture has two faces."""

    metainfo = INFO

    def __init__(self, count=6, test_mode=True, transforms=()):
        self.count, self.test_mode = count, test_mode

    def __len__(self):
        return self.count

    def load(self, index):
        return {"image": np.random.default_rng(index).integers(0, 255, (40, 48, 3), np.uint8)}

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        points = torch.rand(POINTS, 2, generator=torch.Generator().manual_seed(index)) * torch.tensor([48.0, 40.0])
        path = f"a b/{max(index, 1)}.jpg"
        targets = {
            "points": points,
            "visible": torch.ones(POINTS, dtype=torch.bool),
            "box": torch.tensor([0, 0, 48.0, 40]),
        }
        meta = {"path": path, "index": index, "original_size": (40, 48), "input_size": (40, 48)}
        meta |= {"to_input": [[1.0, 0, 0], [0, 1.0, 0]], "subsets": ["odd"] if index % 2 else []}
        return {
            "inputs": torch.from_numpy(self.load(index)["image"]).permute(2, 0, 1),
            "targets": targets,
            "meta": meta,
        }


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A config, an untrained checkpoint, and what `kd-tasks test --out` makes of them."""
    import kd_landmarks.decoder  # noqa: F401

    from kd_tasks.engine.checkpoints import save_student
    from kd_tasks.evaluation.testing import test_checkpoint

    folder = tmp_path_factory.mktemp("faces")
    torch.manual_seed(0)
    save_student(FixedPoints(), folder / "student.pth", {})
    cfg = Config(
        {
            "task": "landmarks",
            "model": {"type": "TaskModel", "network": {"type": "FixedPoints"}, "decoder": {"type": "LandmarkDecoder"}},
            "test_dataloader": {"batch_size": 4, "dataset": {"type": "FewFaces"}},
            "test_evaluator": {"type": "LandmarkMetric", "ced": "curves/ced.png"},
        }
    )
    return cfg, folder, test_checkpoint(cfg, folder / "student.pth", folder / "out")


NOTE = "NME is normalised by the inter-ocular distance (points 0 and 1)."


def printed(table):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def words(table):
    """What is printed, in one line."""
    return " ".join(printed(table).split())


def test_test_says_the_norm_and_writes_the_curve(tested):
    from kd_tasks.evaluation.testing import result_tables

    _, folder, result = tested
    assert result.main[0] == "NME"
    classes, numbers = result_tables(result)
    assert NOTE in words(numbers)
    rows = [line.replace("│", " ").split() for line in printed(classes).splitlines() if line.startswith("│")]
    assert [(row[0], row[-1]) for row in rows] == [("full", "6"), ("odd", "3")]
    saved = json.loads((folder / "out" / "metrics.json").read_text())
    assert saved["note"] == NOTE
    assert saved["metrics"]["NME"] == pytest.approx(result.metrics["NME"])
    assert saved["per_class"]["odd"]["faces"] == 3
    assert cv2.imread(str(folder / "out" / "curves" / "ced.png")).shape[2] == 3


def test_no_curve_is_written_where_there_is_no_folder(tested, tmp_path, monkeypatch):
    from kd_tasks.evaluation.testing import test_checkpoint

    cfg, folder, result = tested
    monkeypatch.chdir(tmp_path)
    assert test_checkpoint(cfg, folder / "student.pth").metrics == result.metrics
    assert not list(tmp_path.rglob("*.png"))


def test_an_evaluated_file_says_the_norm(tested):
    from kd_tasks.evaluation.deployed import ArtefactEvaluation

    manifest = SimpleNamespace(format="onnx", precision="float32", differences={})
    evaluation = ArtefactEvaluation(Path("student.onnx"), manifest, tested[2], {"NME": 3.0})
    assert NOTE in words(evaluation.tables()[0])
    assert evaluation.to_dict()["note"] == NOTE


def test_a_comparison_and_its_card_say_the_norm(tested):
    from kd_tasks.engine.config import dump_config
    from kd_tasks.evaluation.compare import compare
    from kd_tasks.report.card import card

    cfg, folder, result = tested
    run = folder / "run"
    run.mkdir()
    (run / "student.pth").write_bytes((folder / "student.pth").read_bytes())
    dump_config(cfg, run / "config.py")
    first = compare([run], cost=False, likeness=False)
    again = compare([run], cost=False, likeness=False)  # from metrics.json
    for found in (first, again):
        assert found.metric_note == NOTE
        assert found.lower_is_better
        assert found.to_dict()["metric_note"] == NOTE
        assert NOTE in words(found.table())
        assert found.score(found.rows[0]).mean == pytest.approx(result.metrics["NME"])
    html = card(again)
    assert f"NME of each class on the test data. {NOTE}" in html
    assert html.count(NOTE) == 2


# --- predictions of others --------------------------------------------------------------------------------------------


def test_saved_predictions_give_the_numbers_of_the_test(tested):
    _, folder, result = tested
    again = evaluate_predictions(folder / "out" / "predictions.jsonl", {"type": "FewFaces"})
    assert again.metrics == pytest.approx(result.metrics, rel=1e-6)
    assert again.note == NOTE
    assert list(again.per_class) == list(result.per_class)


def test_predictions_as_arrays_and_counted_from_one(tested, tmp_path):
    data = FewFaces()
    items = [data[index] for index in reversed(range(6))]
    items[-2:] = items[:-3:-1]  # the faces of one picture in their order
    points = np.stack([item["targets"]["points"].numpy() for item in items])
    file = tmp_path / "p.npz"
    np.savez(file, path=[item["meta"]["path"] for item in items], points=points + 1)
    assert evaluate_predictions(file, data, one_based=True).metrics["NME"] == pytest.approx(0, abs=1e-4)
    shifted = evaluate_predictions(file, data, {"norm": "box", "thresholds": [0.05]})
    assert shifted.metrics["NME"] == pytest.approx(100 * np.sqrt(2) / np.sqrt(48 * 40), rel=1e-5)
    assert list(shifted.metrics) == ["NME", "FR@0.05", "AUC@0.05"]


def lines(tmp_path, *entries):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(entry if isinstance(entry, str) else json.dumps(entry) + "\n" for entry in entries))
    return file


def entry(number, points=POINTS):
    return {"path": f"a b/{number}.jpg", "points": [[1.0, 2.0]] * points}


ALL = [entry(number) for number in (1, 1, 2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (ALL[:-1], r"a b/5\.jpg has none.*Did you mean"),
        (ALL[1:], r"a b/1\.jpg has only 1 for its faces"),
        ([*ALL, entry(9)], r"1 pictures have more predictions.*a b/9\.jpg: 1 and 0.*another split"),
        ([*ALL, "no json\n"], "line 7 is not"),
        ([*ALL[:-1], {"path": "a b/5.jpg"}], "line 6 is not"),
        ([*ALL[:-1], {"path": "a b/5.jpg", "points": [1, 2]}], r"points of a b/5\.jpg are \(2,\)"),
        ([*ALL[:-1], entry(5, 4)], r"a b/5\.jpg: 4 points are predicted and 5 annotated"),
        (
            [*ALL[:-1], '{"path": "a b/5.jpg", "points": [[NaN, 1], [1, 1], [1, 1], [1, 1], [1, 1]]}\n'],
            "1 of 5 predicted",
        ),
    ],
)
def test_files_that_do_not_fit(tmp_path, entries, message):
    with pytest.raises(UserError, match=message):
        evaluate_predictions(lines(tmp_path, *entries), FewFaces())


def test_data_in_pixels_of_the_inputs_are_refused(tmp_path):
    with pytest.raises(UserError, match="test_mode=True"):
        evaluate_predictions(lines(tmp_path, *ALL), {"type": "FewFaces", "test_mode": False})


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        evaluate_predictions(tmp_path / "none.jsonl", FewFaces())
    with pytest.raises(UserError, match=r"\.jsonl or a \.npz"):
        (tmp_path / "p.csv").touch()
        evaluate_predictions(tmp_path / "p.csv", FewFaces())
    np.savez(tmp_path / "p.npz", points=np.zeros((6, 5, 2)))
    with pytest.raises(UserError, match="arrays `path` and `points`"):
        evaluate_predictions(tmp_path / "p.npz", FewFaces())
    np.savez(tmp_path / "p.npz", path=["a"], points=np.zeros((6, 5, 2)))
    with pytest.raises(UserError, match=r"path is \(1,\)"):
        evaluate_predictions(tmp_path / "p.npz", FewFaces())
