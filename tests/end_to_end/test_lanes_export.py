"""Lanes from pictures to a deployed file, by the command line: the file is worth what its checkpoint is."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from kd_lanes.culane import evaluate_lanes
from kd_lanes.datasets import CULane
from kd_lanes.decoder import LaneDecoder
from kd_lanes.synthetic import write_culane

from kd_tasks.cli import main
from kd_tasks.deploy.artefact import read_manifest
from kd_tasks.deploy.runtimes import build_deployed
from kd_tasks.engine.build import build_task_model
from kd_tasks.engine.config import load_config
from kd_tasks.task import TaskModel, collate_samples
from kd_tasks.vision.images import read_image

CONFIG = """
task = 'lanes'
_data = dict(type='CULane', data_root='{root}/twin', size=(40, 104), crop_top=68)
model = dict(
    type='Distiller',
    student=dict(type='ENetSAD', depth=(1, 2), dropout=0.0, input_size=(40, 104)),
    transfers=dict(
        e3=dict(student='e3', target='e4', loss=dict(type='SAD', map_norm='zscore'), weight=0.1, begin='iter 20'),
    ),
    criterion=dict(type='LaneLoss', background_weight=0.2, iou_weight=0.3),
    decoder=dict(type='LaneDecoder', smoothing=1, row_step=5.0),
)
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(split='train', **_data))
test_dataloader = dict(batch_size=8, num_workers=0, dataset=dict(split='train', test_mode=True, **_data))
test_evaluator = dict(type='CULaneMetric', width=12)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3))
train_cfg = dict(by_epoch=False, max_iters=170)
work_dir = '{root}/run'
"""
FLOATS = ("student.onnx", "student.pt2")
INT8 = "student.int8.onnx"


@dataclass(frozen=True)
class Place:
    """Where the run is."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def config(self) -> Path:
        return self.root / "config.py"

    @property
    def metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = json.loads((self.run / "metrics.json").read_text())["metrics"]
        return metrics

    def data(self) -> CULane:
        return CULane(self.root / "twin", "train", test_mode=True, size=(40, 104), crop_top=68)


def kd_tasks(*arguments: str | Path) -> None:
    """A command that must succeed."""
    with pytest.raises(SystemExit) as left:
        main([str(part) for part in arguments])
    assert not left.value.code, arguments


def shown(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command prints, with single spaces."""
    capfd.readouterr()
    kd_tasks(*arguments)
    return " ".join(capfd.readouterr().out.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A shallow ENet-SAD that has learnt a few pictures by heart, so that F1 is high; exported."""
    torch.set_num_threads(1)
    made = Place(tmp_path_factory.mktemp("lanes"))
    write_culane(made.root / "twin", train=12, val=1, test=1)
    made.config.write_text(CONFIG.format(root=made.root))
    kd_tasks("train", made.config)
    kd_tasks("export", made.config, made.run, "--int8")
    kd_tasks("export", made.config, made.run, "--format", "pt2")
    return made


def compared(text: str) -> tuple[float, float]:
    """F1 of the artefact and of the checkpoint, as `kd-tasks evaluate` prints them."""
    found = re.search(r"F1 │ (\S+) │ (\S+) │ ([+-]\S+)", text)
    assert found is not None, text
    return float(found[1]), float(found[2])


def lanes_of(model: TaskModel, dataset: CULane) -> list[Mapping[str, Any]]:
    model.eval()
    return [model.val_step(collate_samples([dataset[index]]))[0] for index in range(len(dataset))]


def test_training_learnt_enough_for_a_comparison_to_mean_something(place: Place) -> None:
    assert 40 < place.metrics["F1"] < 100


@pytest.mark.parametrize("name", FLOATS)
def test_an_artefact_is_worth_what_its_checkpoint_is(
    place: Place, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    measured, before = compared(shown(capfd, "evaluate", place.run / name))
    assert abs(measured - before) <= 0.2
    assert before == pytest.approx(place.metrics["F1"], abs=0.006)


@pytest.mark.parametrize("name", FLOATS)
def test_an_artefact_finds_the_lanes_that_its_checkpoint_finds(place: Place, name: str) -> None:
    dataset = place.data()
    checkpoint = build_task_model(load_config(place.config), str(place.run / "student.pth"))
    pairs = list(
        zip(lanes_of(checkpoint, dataset), lanes_of(build_deployed(place.run / name)[0], dataset), strict=True)
    )
    alike = total = 0
    for before, after in pairs:
        total += len(before["lanes"])
        for lane, slot in zip(before["lanes"], before["slots"], strict=True):
            again = [found for found, s in zip(after["lanes"], after["slots"], strict=True) if s == slot]
            alike += len(again) == 1 and again[0].shape == lane.shape and np.allclose(again[0], lane, atol=0.01)
    assert total > 15
    assert alike >= total - 1, f"{alike} of {total} lanes; of two columns that are as probable, either may be taken"


def test_an_int8_artefact_still_finds_lanes(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    measured, before = compared(shown(capfd, "evaluate", place.run / INT8))
    assert measured >= 0.5 * before


def test_an_artefact_gives_raw_maps_that_the_same_decoder_reads(place: Place) -> None:
    """By hand, from the file of a picture to lanes: ONNX Runtime, numpy, OpenCV and the rule of the decoder."""
    model = place.run / "student.onnx"
    outputs = [(spec.name, list(spec.shape[1:])) for spec in read_manifest(model).outputs]
    assert outputs == [("logits", [5, 40, 104]), ("exist", [4])]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    mean, std = (np.array(v, np.float32)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    decoder = LaneDecoder(smoothing=1, row_step=5.0)
    counts = []
    for line in (place.root / "twin" / "list" / "train.txt").read_text().split():
        whole = read_image(place.root / "twin" / line.lstrip("/"))
        picture = cv2.resize(whole[68:], (104, 40), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
        logits, exist = session.run(
            ["logits", "exist"], {session.get_inputs()[0].name: ((picture - mean) / std)[None].astype(np.float32)}
        )
        meta = {"original_size": whole.shape[:2], "input_size": (40, 104), "crop_top": 68}
        (found,) = decoder({"logits": torch.from_numpy(logits), "exist": torch.from_numpy(exist)}, [meta])
        rows = (place.root / "twin" / line.lstrip("/")).with_suffix(".lines.txt").read_text().splitlines()
        truth = [np.array(row.split(), np.float32).reshape(-1, 2) for row in rows]
        counts.append(evaluate_lanes(found["lanes"], truth, whole.shape[1::-1], 12))
    total = sum(counts[1:], start=counts[0])
    assert 100 * total.score == pytest.approx(place.metrics["F1"], abs=0.2)


def test_lanes_that_a_test_writes_score_what_the_test_says(
    place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Prediction files in the official format, scored as those of others."""
    options = ["--cfg-options", f"test_evaluator.write_to={tmp_path / 'lanes'}"]
    kd_tasks("test", place.config, place.run, *options)
    settings = ["size=(410,148)", "width=12", f"list_file={place.root / 'twin' / 'list' / 'train.txt'}"]
    text = shown(capfd, "score", "culane", tmp_path / "lanes", place.root / "twin", "--options", *settings)
    found = re.search(r"F1 │ (\S+)", text.partition("Test data")[2])
    assert found is not None
    assert float(found[1]) == pytest.approx(place.metrics["F1"], abs=0.006)


def test_taps_are_listed_and_every_term_pulls(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    text = shown(capfd, "taps", place.config)
    for words in ("Taps of the student", "e1", "e4", "d2", "logits", "exist"):
        assert words in text
    text = shown(capfd, "check", place.config, "--batches", "1")
    for words in ("task.ce", "task.iou", "task.exist", "kd.e3"):
        assert words in text
