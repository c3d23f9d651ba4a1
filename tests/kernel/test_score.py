"""`kd-tasks score`: predictions in files, whoever wrote them, and what is wrong with them in one message."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from kd_landmarks.datasets import WFLW
from kd_landmarks.synthetic import write_wflw
from typer.testing import CliRunner

from kd_tasks.cli import app
from kd_tasks.errors import UserError
from kd_tasks.evaluation.scoring import score_predictions

METRICS = Path(__file__).parents[1] / "fixtures" / "metrics"
CULANE, TUSIMPLE, BDD = METRICS / "culane", METRICS / "tusimple", METRICS / "bdd_lane"
FILES = {
    "culane": (CULANE / "pred", CULANE / "CULane"),
    "tusimple": (TUSIMPLE / "pred.json", TUSIMPLE / "gt.json"),
    "bdd100k_lanes": (BDD / "pred", BDD / "gt"),
}


def run(*arguments):
    """Exit code and everything printed, with single spaces."""
    result = CliRunner().invoke(app, ["score", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, re.sub(r"\s+", " ", result.output)


# --- What the official evaluators say --------------------------------------------------------------------------------


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
def test_culane_by_category(iou):
    expected = json.loads((CULANE / "expected.json").read_text())[f"iou_{iou}"]
    result = score_predictions("culane", *FILES["culane"], {"odd": "drop", "iou": iou})
    total = expected.pop("total_calTotal")
    assert result.metrics["F1"] == pytest.approx(100 * total["F1"])
    assert result.metrics["cross_FP"] == expected["cross"]["fp"]
    for category, row in result.per_class.items():
        assert [row[name] for name in ("TP", "FP", "FN")] == [expected[category][name] for name in ("tp", "fp", "fn")]
    assert len(result.per_class) == 9


def test_culane_from_one_list():
    expected = json.loads((CULANE / "expected.json").read_text())["iou_0.5"]["all_in_one_list"]
    options = {"odd": "drop", "list_file": str(CULANE / "CULane" / "list" / "test.txt")}
    result = score_predictions("culane", *FILES["culane"], options)
    assert result.per_class["test"]["TP"] == expected["tp"]
    assert result.metrics["F1"] == pytest.approx(100 * float(expected["Fmeasure"]), abs=1e-4)


def test_tusimple(tmp_path):
    official = json.loads((TUSIMPLE / "expected.json").read_text())["official"]
    expected = {entry["name"]: entry["value"] for entry in official}
    shutil.copy(TUSIMPLE / "gt.json", tmp_path / "test_label.json")
    for annotations in (TUSIMPLE / "gt.json", tmp_path):
        metrics = score_predictions("tusimple", TUSIMPLE / "pred.json", annotations).metrics
        assert {name: metrics[name] for name in expected} == pytest.approx({n: 100 * v for n, v in expected.items()})


def test_bdd100k():
    expected = json.loads((BDD / "expected_enet_sad.json").read_text())
    result = score_predictions("bdd100k_lanes", *FILES["bdd100k_lanes"], {"thresholds": [1, 5]})
    assert result.metrics["Accuracy"] == pytest.approx(expected["accuracy"])
    assert result.metrics["IoU"] == pytest.approx(expected["lane_IoU"])
    frames = json.loads((BDD / "expected.json").read_text())["per_frame"]
    solid = 100 * np.mean([frame["style"][0] for frame in frames], axis=0)
    assert result.per_class["solid"] == pytest.approx({"F1_pix1": solid[0], "F1_pix5": solid[2]})


def test_faces(tmp_path):
    write_wflw(tmp_path / "wflw", train=1, test=4, size=64)
    faces = WFLW(tmp_path / "wflw", "test", test_mode=True)
    path = tmp_path / "predictions.jsonl"
    entries = [
        {"path": faces[i]["meta"]["path"], "points": (faces[i]["targets"]["points"] + 1).tolist()}
        for i in range(len(faces))
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert score_predictions("wflw", path, tmp_path / "wflw", {"one_based": True}).metrics["NME"] < 1e-4
    assert score_predictions("wflw", path, tmp_path / "wflw").metrics["NME"] > 1
    code, printed = run("wflw", path, tmp_path / "wflw", "--options", "one_based=True", "norm=box")
    assert code == 0 and "NME │ 0.00" in printed and "box" in printed
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries[1:]))
    code, printed = run("wflw", path, tmp_path / "wflw")
    assert code == 2 and "each face needs a prediction" in printed and entries[0]["path"] in printed


def test_tables_and_notes_are_printed():
    code, printed = run("culane", *FILES["culane"], "--options", "odd=drop", "iou=0.5")
    assert code == 0
    for part in ("cross", "F1 │ 71.27", "mF1", "1 of 100 pictures have no file of predictions", "more such notes"):
        assert part in printed, printed


# --- What can be wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["culan", *FILES["culane"]], ["'culan'", "'culane'", "tusimple"]),
        (["culane", CULANE / "nowhere", CULANE / "CULane"], ["nowhere: there is no such", "of predictions"]),
        (["culane", CULANE / "pred", CULANE / "nowhere"], ["nowhere: there is no such", "of annotations"]),
        (["culane", *FILES["culane"]], [".lines.txt, line", "odd='drop'"]),
        (["culane", CULANE, CULANE / "CULane"], ["none of the", "test_split has a prediction, such as"]),
        (["culane", *FILES["culane"], "--options", "odd=drip"], ["odd is 'drip'", "'drop'"]),
        (["culane", *FILES["culane"], "--options", "widths=3"], ["no option 'widths'", "'width'", "workers=1"]),
        (["culane", *FILES["culane"], "--options", "width=wide"], ["width is 'wide'", "30"]),
        (["culane", *FILES["culane"], "--options", "size=1640"], ["size is 1640", "(1640, 590)"]),
        (["culane", *FILES["culane"], "--options", "size=(1640,a)"], ["size is"]),
        (["culane", *FILES["culane"], "--options", "iou=50"], ["IoU 50"]),
        (["culane", *FILES["culane"], "--options", "list_file=none.txt"], ["none.txt", "no such file"]),
        (["culane", *FILES["culane"], "--options", "width"], ["'width'", "key=value"]),
        (["tusimple", *FILES["tusimple"], "--options", "width=3"], ["no option 'width'", "none"]),
        (["tusimple", TUSIMPLE / "gt.json", TUSIMPLE / "gt.json"], ["line 1", "'run_time'"]),
        (["tusimple", TUSIMPLE / "pred.json", CULANE], ["test_label.json: no such file"]),
        (["bdd100k_lanes", CULANE, BDD / "gt"], [".png", "no such file"]),
        (["bdd100k_lanes", *FILES["bdd100k_lanes"], "--options", "thresholds=[a]"], ["thresholds is ['a']"]),
        (["300w", TUSIMPLE / "pred.json", METRICS], ["Faces300W", "has no folder 'helen'"]),
    ],
)  # fmt: skip
def test_a_fault_is_one_message(arguments, parts):
    code, printed = run(*arguments)
    assert code == 2, printed
    assert printed.count("Error:") == 1
    for part in parts:
        assert part in printed, printed


def test_predictions_that_lack_pictures(tmp_path):
    lines = (TUSIMPLE / "pred.json").read_text().splitlines()
    (tmp_path / "pred.json").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match=rf"has {len(lines) - 1} predictions for {len(lines)} annotated pictures"):
        score_predictions("tusimple", tmp_path / "pred.json", TUSIMPLE / "gt.json")
    shutil.copytree(BDD / "pred", tmp_path / "masks")
    gone = sorted((tmp_path / "masks").glob("*.png"))[0]
    gone.unlink()
    with pytest.raises(UserError, match=re.escape(gone.name)):
        score_predictions("bdd100k_lanes", tmp_path / "masks", BDD / "gt")
    shutil.copytree(CULANE / "pred", tmp_path / "pred")
    gone = sorted((tmp_path / "pred").rglob("*.lines.txt"))[0]
    before = score_predictions("culane", *FILES["culane"], {"odd": "drop"})
    gone.unlink()
    after = score_predictions("culane", tmp_path / "pred", CULANE / "CULane", {"odd": "drop"})
    assert after.metrics["Recall"] <= before.metrics["Recall"]
    assert before.note.startswith("1 of 100 pictures have no file of predictions.")
    assert after.note.startswith("2 of 100 pictures have no file of predictions.")
