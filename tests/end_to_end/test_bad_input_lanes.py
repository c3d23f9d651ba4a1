"""Lanes: whatever a person gets wrong is one message, exit code 2, and nothing half-written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kd_lanes.synthetic import write_culane, write_tusimple
from test_bad_input import checked, half_written

from kd_tasks.cli import main
from kd_tasks.vision.images import read_labels, write_image

CONFIG = """
task = 'lanes'
model = dict(
    type='TaskModel',
    network=dict(type='ENetSAD', num_lanes={lanes}, width=0.25, depth=(1, 1), dropout=0.0),
    criterion=dict(type='LaneLoss', iou_weight=0.1, exist_weight=0.1),
    decoder=dict(type='LaneDecoder', rule='{rule}', exist_threshold=0.0, threshold=0.1),
)
train_dataloader = dict(
    batch_size=3,
    num_workers=0,
    dataset=dict(
        type='{dataset}',
        data_root='{data}',
        split='train',
        size=(32, 64),
        crop_top={crop},
        transforms=[dict(type='HorizontalFlip', p=0.5)],
    ),
)
test_dataloader = dict(
    batch_size=3,
    num_workers=0,
    dataset=dict(type='{dataset}', data_root='{data}', split='test', size=(32, 64), crop_top={crop}, test_mode=True),
)
test_evaluator = dict(type='{dataset}Metric')
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.001))
work_dir = '{root}/run'
"""
SIZE = (64, 128)
PICTURES = {"train": 6, "val": 2, "test": 9}
NETWORK = "network=dict(type='ENetSAD', num_lanes=4, width=0.25, depth=(1, 1), dropout=0.0),"
DISTILLED = """student=dict(type='ENetSAD', num_lanes=4, width=0.25, depth=(1, 1), dropout=0.0),
    transfers=dict(e2=dict(student='e2', target='e3', loss=dict(type='SAD'), weight=0.1)),"""
LABELS = "label_data_0601.json"


class Workplace:
    """A folder with roads, a config, and a command line that is watched."""

    def __init__(self, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.root, self.capfd = root, capfd
        self.config, self.run, self.data = root / "config.py", root / "run", root / "data"
        self.reads("CULane", 4)

    def reads(self, dataset: str, lanes: int) -> None:
        """Write the config anew, for another data set."""
        self.text = CONFIG.format(
            root=self.root, data=self.data, dataset=dataset, lanes=lanes, rule=dataset.lower(), crop=24
        )
        self.config.write_text(self.text)

    def replace(self, old: str, new: str) -> None:
        assert old in self.text
        self.text = self.text.replace(old, new)
        self.config.write_text(self.text)

    def distils(self) -> None:
        """Turn the training into a self-distillation."""
        self.replace("TaskModel", "Distiller")
        self.replace(NETWORK, DISTILLED)

    def listed(self, name: str = "train_gt") -> list[list[str]]:
        """The lines of a list, word by word."""
        return [line.split() for line in (self.data / "list" / f"{name}.txt").read_text().splitlines()]

    def rewrite(self, change: Callable[[list[str]], list[str]], name: str = "train_gt", at: int | None = None) -> None:
        """Change the words of each line of a list, or of line `at`, from 0 on."""
        lines = [change(words) if at in (None, n) else words for n, words in enumerate(self.listed(name))]
        (self.data / "list" / f"{name}.txt").write_text("".join(" ".join(words) + "\n" for words in lines))

    def file(self, kind: str, at: int = 1, name: str = "train_gt") -> Path:
        """Picture, mask or lines file of a line of a list."""
        words = [word.lstrip("/") for word in self.listed(name)[at]]
        picture = self.data / words[0]
        return {"picture": picture, "lines": picture.with_suffix(".lines.txt")}.get(kind) or self.data / words[1]

    def records(self, change: Callable[[dict[str, Any]], Any], at: int = 1, name: str = LABELS) -> Path:
        """Change one line, or with a text in its place, of a label file of TuSimple."""
        path = self.data / "train_set" / name
        lines = path.read_text().splitlines()
        changed = change(json.loads(lines[at]))
        lines[at] = changed if isinstance(changed, str) else json.dumps(changed)
        path.write_text("\n".join(lines) + "\n")
        return path

    def call(self, *arguments: str | Path) -> tuple[int, str]:
        """Exit code of `kd-tasks`, and everything that it prints, with single spaces."""
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        return int(left.value.code or 0), re.sub(r"\s+", " ", " ".join(self.capfd.readouterr()))

    def complaint(self, *arguments: str | Path) -> str:
        """The one message of a training, or of another command, that cannot be; no weights are left behind."""
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments or ("train", self.config)])
        message = checked(int(left.value.code or 0), self.capfd.readouterr().err)
        assert not list(self.run.rglob("*.pth")) and not half_written(self.root)
        return message

    def surveyed(self, name: str = "culane") -> str:
        """What `kd-tasks data check` says of faulty data."""
        code, printed = self.call("data", "check", name, self.data)
        assert code == 1 and "Traceback" not in printed
        return printed

    def trained(self) -> Path:
        """The weights of a training without a fault."""
        code, printed = self.call("train", self.config)
        assert code == 0, printed
        return self.run / "student.pth"

    def tested(self, weights: Path) -> dict[str, float]:
        """The metrics of weights on the test data."""
        code, printed = self.call("test", self.config, weights, "--out", self.root / "out")
        assert code == 0, printed
        metrics: dict[str, float] = json.loads((self.root / "out" / "metrics.json").read_text())["metrics"]
        return metrics


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny twins of CULane and TuSimple."""
    root = tmp_path_factory.mktemp("twins")
    write_culane(root / "culane", size=SIZE, **PICTURES)
    write_tusimple(root / "tusimple", size=SIZE, train=8, val=2, test=3)
    return root


@pytest.fixture
def place(twins: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KD_TASKS_DATA", raising=False)
    shutil.copytree(twins / "culane", tmp_path / "data")
    return Workplace(tmp_path, capfd)


@pytest.fixture
def tusimple(place: Workplace, twins: Path) -> Workplace:
    shutil.rmtree(place.data)
    shutil.copytree(twins / "tusimple", place.data)
    place.reads("TuSimple", 6)
    return place


def has_all(message: str, parts: list[str]) -> None:
    for part in parts:
        assert part in message, message


def test_without_a_fault_it_trains(place: Workplace) -> None:
    place.distils()
    place.trained()
    assert {"student.pth", "metrics.json", "epoch_1.pth"} <= {f.name for f in place.run.iterdir()}
    text = (place.run / "metrics.json").read_text()
    assert {"F1", "mF1", "cross_FP"} <= set(json.loads(text)["metrics"])
    assert "NaN" not in text
    code, printed = place.call("data", "check", "culane", place.data)
    assert code == 0, printed


def test_tusimple_trains(tusimple: Workplace) -> None:
    tusimple.trained()
    assert {"Accuracy", "FP", "FN"} <= set(json.loads((tusimple.run / "metrics.json").read_text())["metrics"])
    code, printed = tusimple.call("data", "check", "tusimple", tusimple.data)
    assert code == 0, printed


# --- Lines files -----------------------------------------------------------------------------------------------------

LINES = [
    ("10 60 12 50 14\n", ["line 1", "5 numbers", "pairs"]),
    ("10 60 12 50\n10 60 twelve 50\n", ["line 2", "'twelve'", "no number"]),
    ("10 60 nan 50\n", ["line 1", "nan is no place"]),
    ("10 60 inf 50\n", ["line 1", "inf"]),
    ("10 60 12 50\n20 60 22 50 22 50 24 40\n", ["line 2", "(22, 50)", "twice"]),
    ("10 60 12 50\n\n20 60 22 50\n", ["line 2", "blank"]),
    ("10 600 12 500\n", ["lane 1", "y = 600", "64 rows"]),
]


@pytest.mark.parametrize(("text", "expected"), LINES)
def test_a_wrong_lines_file(place: Workplace, text: str, expected: list[str]) -> None:
    file = place.file("lines")
    file.write_text(text)
    has_all(place.surveyed(), expected)
    has_all(place.complaint(), [*expected, file.name if "rows" not in expected[-1] else file.with_suffix("").stem])


def test_wrong_lines_of_the_test_data_as_the_official_evaluator_takes_them(place: Workplace) -> None:
    weights = place.trained().rename(place.root / "student.pth")
    shutil.rmtree(place.run)
    for at, (text, _) in enumerate(LINES[i] for i in (0, 4, 5)):
        place.file("lines", at, "test").write_text(text)
    message = place.complaint("test", place.config, weights)
    has_all(message, [".lines.txt, line 1", "5 numbers", "pairs"])
    place.replace("split='test',", "split='test', faults='official',")
    assert 0 <= place.tested(weights)["F1"] <= 100


def test_an_empty_lines_file_is_a_road_without_lanes(place: Workplace) -> None:
    for at in range(PICTURES["test"]):
        place.file("lines", at, "test").write_text("")
    for at in range(PICTURES["train"]):
        place.file("lines", at).write_text("")
    assert not place.tested(place.trained())["F1"], "0 with lanes predicted, none without"


# --- Files and lists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["picture", "mask", "lines"])
def test_a_missing_file(place: Workplace, kind: str) -> None:
    file = place.file(kind)
    file.unlink()
    assert file.relative_to(place.data).as_posix() in place.surveyed()
    has_all(place.complaint(), ["'train'", kind, "of 1 is missing", file.relative_to(place.data).as_posix()])
    assert place.call("check", place.config)[0] == 2


def test_a_broken_picture_names_itself(place: Workplace) -> None:
    file = place.file("picture")
    file.write_bytes(file.read_bytes()[:300])
    assert file.name in place.surveyed()
    message = place.complaint()
    assert file.relative_to(place.data).as_posix() in message and ("truncated" in message or "corrupt" in message)


@pytest.mark.parametrize("name", ["train_gt.txt", "test.txt", "test_split/test7_cross.txt"])
def test_a_missing_list_shows_the_tree(place: Workplace, name: str) -> None:
    (place.data / "list" / name).unlink()
    assert name in place.surveyed()
    has_all(place.complaint("check", place.config), [name, "laneseg_label_w16", "kd-tasks data synth culane"])


def test_lists_with_and_without_slashes_mean_the_same(place: Workplace) -> None:
    before = place.tested(place.trained())
    shutil.rmtree(place.run)
    assert place.listed()[0][0].startswith("/") and not place.listed("test_split/test7_cross")[0][0].startswith("/")
    place.rewrite(lambda words: [words[0].lstrip("/"), words[1].lstrip("/"), *words[2:]])
    place.rewrite(lambda words: [word.lstrip("/") for word in words], "test")
    for file in (place.data / "list" / "test_split").iterdir():
        place.rewrite(lambda words: [f"/{word}" for word in words], f"test_split/{file.stem}")
    assert place.tested(place.trained()) == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda words: words[:-1], ["train_gt.txt, line 2", "3 existence bits for 4 lane slots"]),
        (lambda words: [*words, "1"], ["train_gt.txt, line 2", "5 existence bits for 4 lane slots"]),
        (lambda words: [*words[:-1], "2"], ["train_gt.txt, line 2", "'2'", "0 or 1"]),
        (lambda words: words[:1], ["train_gt.txt, line 2", "picture, mask"]),
    ],
)
def test_wrong_existence_bits(place: Workplace, change: Callable[[list[str]], list[str]], expected: list[str]) -> None:
    place.rewrite(change, at=1)
    has_all(place.surveyed(), expected)
    has_all(place.complaint(), expected)


def test_a_test_picture_of_no_category(place: Workplace) -> None:
    place.rewrite(lambda words: ["/driver_1/none.jpg"], "test_split/test0_normal", at=0)
    has_all(place.complaint("check", place.config), ["test.txt, line 1", "none of the nine lists"])


def test_masks_with_unknown_values(place: Workplace) -> None:
    file = place.file("mask")
    mask = read_labels(file)
    mask[40, 7] = 9
    write_image(file, mask)
    assert "9" in place.surveyed() and file.name in place.surveyed()
    has_all(place.complaint(), [file.name, "value 9 (row 40, column 7)", "0 to 4"])


def test_masks_of_another_size(place: Workplace) -> None:
    file = place.file("mask")
    write_image(file, read_labels(file)[::2, ::2])
    has_all(place.complaint(), [file.name, "64x128", "32x64"])


# --- TuSimple --------------------------------------------------------------------------------------------------------


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {name: value for name, value in record.items() if name != key}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: {**r, "h_samples": r["h_samples"][:-1]}, ["lane 1", "56 values", "55 h_samples"]),
        (lambda r: {**r, "lanes": [r["lanes"][0][1:]]}, ["lane 1", "55 values", "56 h_samples"]),
        (without("h_samples"), ["no 'h_samples'"]),
        (lambda r: {**without("h_samples")(r), "h_sample": r["h_samples"]}, ["no 'h_samples'", "'h_sample'"]),
        (lambda r: {**r, "h_samples": []}, ["'h_samples' must be a list"]),
        (lambda r: {**r, "h_samples": "160 to 710"}, ["'h_samples' must be a list"]),
        (lambda r: {**r, "h_samples": [100 * h for h in r["h_samples"]]}, ["h_samples go down to", "64 rows"]),
        (lambda r: {**r, "lanes": [["x"] * 56]}, ["no numbers"]),
        (lambda r: {**r, "lanes": 3}, ["'lanes' must be a list"]),
        (lambda r: json.dumps(r)[:-40], ["is not JSON"]),
        (lambda r: "[1, 2]", ["is a list", "one object"]),
        (lambda r: {**r, "raw_file": "clips/none/20.jpg"}, ["clips/none/20.jpg", "missing"]),
    ],
)  # fmt: skip
def test_a_wrong_label_of_tusimple(tusimple: Workplace, change: Callable[[Any], Any], expected: list[str]) -> None:
    tusimple.records(change)
    where = [] if "missing" in expected else [f"{LABELS}: line 2"]
    surveyed = tusimple.surveyed("tusimple")
    has_all(surveyed, [*expected[:1], *where])
    has_all(tusimple.complaint(), [*expected, *where])


def test_tusimple_without_a_label_file(tusimple: Workplace) -> None:
    (tusimple.data / "train_set" / LABELS).unlink()
    has_all(tusimple.complaint(), [LABELS, "clips", "kd-tasks data synth tusimple"])


# --- BDD100K ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", ["value 100", "0 to 63, 255", "b.png"]),
        ("split='train',", "split='train', task='styles',", ["task", "'style'"]),
        ("split='train',", "split='train', encoding='byte',", ["encoding", "'bytes'"]),
        ("split='train',", "split='train', list_file='list.txt',", ["list.txt, line 2", "one word"]),
        ("num_lanes=1", "num_lanes=3", ["1", "3", "exist"]),
    ],
)
def test_bdd100k(place: Workplace, old: str, new: str, expected: list[str]) -> None:
    for number, name in enumerate("abc"):
        mask = np.full(SIZE, 255, np.uint8)
        mask[30:, 60:70] = 100 if name == "b" and not old else number
        write_image(place.data / "images" / "100k" / "train" / f"{name}.jpg", np.zeros((*SIZE, 3), np.uint8))
        write_image(place.data / "labels" / "lane" / "masks" / "train" / f"{name}.png", mask)
    line = "images/100k/train/a.jpg labels/lane/masks/train/a.png\n"
    (place.data / "list.txt").write_text(f"{line}images/100k/train/a.jpg\n")
    place.reads("BDD100KLanes", 1)
    place.replace("rule='bdd100klanes'", "rule='mask'")
    place.replace("'BDD100KLanesMetric'", "'BDDLaneMetric'")
    place.replace("split='test'", "split='train'")
    place.replace(old or "rule='mask'", new or "rule='mask'")
    has_all(place.complaint(), expected)


# --- Config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rule='culane'", "rule='culan'", ["'culan'", "'culane'"]),
        ("threshold=0.1", "thresold=0.1", ["model.decoder.thresold", "'threshold'"]),
        ("rule='culane'", "rule='culane', smoothing=4", ["smoothing is 4", "odd"]),
        ("rule='culane'", "rule='culane', row_step=0", ["row_step 0"]),
        ("type='LaneDecoder'", "type='LanesDecoder'", ["'LaneDecoder'"]),
        ("type='CULaneMetric'", "type='CULaneMetrics'", ["'CULaneMetric'"]),
        ("type='CULaneMetric'", "type='CULaneMetric', iou=50", ["IoU 50"]),
        ("type='CULaneMetric'", "type='CULaneMetric', widths=30", ["widths", "'width'"]),
        ("type='CULaneMetric'", "type='CULaneMetric', size=1640", ["size", "1640"]),
        ("type='CULane',", "type='CuLane',", ["'CULane'"]),
        ("split='train'", "split='training'", ["'training'", "'train'"]),
        ("split='train',", "split='train', faults='oficial',", ["faults", "'official'"]),
        ("size=(32, 64)", "size=32", ["size is 32", "(height, width)"]),
        ("size=(32, 64)", "size=(32,)", ["size is", "(height, width)"]),
        ("size=(32, 64)", "size=(32, 0)", ["size is", "(height, width)"]),
        ("size=(32, 64)", "size=(30, 64)", ["multiples of 8", "30 x 64"]),
        ("crop_top=24", "crop_top=64", ["64 rows", "crop_top=64"]),
        ("crop_top=24", "crop_top=-1", ["crop_top -1"]),
        ("crop_top=24", "crop_top='24'", ["crop_top", "'24'"]),
        ("crop_top=24", "crop_top=24.5", ["crop_top", "24.5"]),
        ("num_lanes=4", "num_lanes=3", ["3", "num_lanes"]),
        ("num_lanes=4", "num_lanes=6", ["6", "4", "num_lanes"]),
        ("num_lanes=4", "num_lanes=4, exist=False, depth=(1, 9)", ["repeated"]),
        ("num_lanes=4", "num_lanes=0", ["num_lanes", "0"]),
        ("num_lanes=4", "lanes=4", ["model.network.lanes", "'num_lanes'"]),
        ("num_lanes=4", "num_lanes=4, input_size=(64, 128)", ["input_size", "(64, 128)"]),
        ("depth=(1, 1)", "depth=1", ["depth"]),
        ("depth=(1, 1)", "depth=(1, 9)", ["depth", "1 to 8"]),
        ("iou_weight=0.1", "iou_weight=-1", ["iou_weight"]),
        ("type='LaneLoss'", "type='LaneLosses'", ["'LaneLoss'"]),
        ("HorizontalFlip", "HorizontalFlop", ["HorizontalFlop", "'HorizontalFlip'"]),
        ("dict(type='HorizontalFlip', p=0.5)", "dict(type='RandomCrop', height=40, width=64)",
         ["cannot be applied", "32x64"]),
    ],
)  # fmt: skip
def test_a_fault_of_the_config(place: Workplace, old: str, new: str, expected: list[str]) -> None:
    place.replace(old, new)
    has_all(place.complaint(), expected)
    assert place.call("check", place.config)[0] == 2, "kd-tasks check says it too"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("student='e2'", "student='e7'", ["'e7'", "e2"]),
        ("target='e3'", "target='e5'", ["'e5'"]),
        ("type='SAD'", "type='SAD', map_norm='z-score'", ["map_norm", "'zscore'"]),
        ("type='SAD'", "type='LabelAttention'", ["transfers.e2", "give 'student', and no"]),
        (", target='e3', loss=dict(type='SAD'", ", loss=dict(type='LabelAttention', map_norm='non'", ["map_norm"]),
        (", target='e3', loss=dict(type='SAD')", ", loss=dict(type='LabelAttention', ignore=0)", ["'ignore_index'"]),
        ("type='ENetSAD', num_lanes", "type='ENetSaD', num_lanes", ["'ENetSAD'"]),
        ("student='e2', target='e3'", "student='e3', target='e4', begin='iter x'", ["begin", "iter x"]),
    ],
)
def test_a_fault_of_the_distillation(place: Workplace, old: str, new: str, expected: list[str]) -> None:
    place.distils()
    place.replace(old, new)
    has_all(place.complaint(), expected)


# --- The other commands ----------------------------------------------------------------------------------------------


def test_weights_of_another_number_of_lanes(place: Workplace) -> None:
    weights = place.trained().rename(place.root / "student.pth")
    shutil.rmtree(place.run)
    place.replace("num_lanes=4", "num_lanes=6")
    for command in ("export", "test"):
        assert "student.pth" in place.complaint(command, place.config, weights)
    assert not list(place.root.rglob("*.onnx"))


def test_the_browser_names_a_wrong_lines_file(place: Workplace) -> None:
    for at in range(PICTURES["train"]):
        place.file("lines", at).write_text("1 2 3\n")
    has_all(place.complaint("browse", place.config), [".lines.txt, line 1", "3 numbers"])


def test_a_frame_lower_than_the_sky_that_is_cut_off(place: Workplace) -> None:
    weights = place.trained()
    write_image(place.root / "frames" / "7.jpg", np.zeros((20, 128, 3), np.uint8))
    code, printed = place.call("predict", weights, place.root / "frames", "--out", place.root / "drawn")
    assert code == 2 and "Traceback" not in printed
    has_all(printed, ["7.jpg: has 20 rows", "crop_top=24"])
    write_image(place.root / "frames" / "7.jpg", np.zeros((25, 128, 3), np.uint8))
    code, printed = place.call("predict", weights, place.root / "frames", "--out", place.root / "drawn")
    assert code == 0, printed


def test_an_artefact_without_its_data(place: Workplace) -> None:
    code, printed = place.call("export", place.config, place.trained())
    assert code == 0, printed
    place.data.rename(place.root / "elsewhere")
    artefact = place.run / "student.onnx"
    code, printed = place.call("evaluate", artefact)
    assert code == 2 and "Traceback" not in printed
    has_all(printed, [str(place.data), "no such folder"])
    code, printed = place.call("evaluate", artefact, "--data-root", place.root / "elsewhere")
    assert code == 0, printed
