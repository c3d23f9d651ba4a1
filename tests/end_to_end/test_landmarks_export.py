"""Landmarks from pictures to a deployed file, by the command line: the file is worth what its checkpoint is."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from kd_landmarks.datasets import Faces300W
from kd_landmarks.decoder import LandmarkDecoder
from kd_landmarks.synthetic import write_300w

from kd_tasks.cli import main
from kd_tasks.deploy.artefact import read_manifest
from kd_tasks.engine.config import load_config
from kd_tasks.registry import CODECS

COMMON = """
task = 'landmarks'
_codec = dict(type='DarkHeatmap', sigma=1.0)
_data = dict(type='Faces300W', data_root='{root}/twin', size=64)
_flips = [dict(type='HorizontalFlip', p=0.5), dict(type='Affine', rotate=(-15, 15), p=0.5)]
_model = dict(
    criterion=dict(type='HeatmapLoss', codec=_codec, input_size=64),
    decoder=dict(type='LandmarkDecoder', codec=_codec),
)
_student = dict(type='SmallLandmarkNet', width=8)
train_dataloader = dict(
    batch_size=12, num_workers=0, dataset=dict(split='train', transforms=_flips, labelled=0.5, **_data),
    sampler=dict(type='MixedSampler', batch_size=12, labelled=8, batches=25),
)
test_dataloader = dict(batch_size=8, num_workers=0, dataset=dict(split='full', test_mode=True, **_data))
test_evaluator = dict(type='LandmarkMetric')
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3))
train_cfg = dict(by_epoch=True, max_epochs=2)
work_dir = '{root}/{name}'
"""
TEACHER = "\nmodel = dict(type='TaskModel', network=dict(type='SmallLandmarkNet', width=16), **_model)\n"
STUDENT = """
model = dict(
    type='Distiller',
    student=_student,
    teacher=dict(type='SmallLandmarkNet', width=16, checkpoint='{root}/teacher/student.pth'),
    transfers=dict(
        heatmaps=dict(on='heatmaps', loss=dict(type='HeatmapMimicry')),
        hint=dict(on='encoder.stage3', connector='conv1x1', loss=dict(type='Hint'), weight=0.01),
    ),
    **_model,
)
"""
COORDINATES = """
model = dict(
    type='TaskModel',
    network=dict(type='CoordinateNet', backbone='resnet18', width=0.25, channels=16),
    criterion=dict(type='CoordinateLoss', input_size=64),
    decoder=dict(type='LandmarkDecoder'),
)
"""
FLIPPED = """
model = dict(type='TaskModel', network=dict(type='FlipTest', network=_student, codec=_codec, swaps={swaps}), **_model)
"""
RUNS = {"teacher": TEACHER, "student": STUDENT, "coordinates": COORDINATES}
FLOATS = ("student/student.onnx", "student/student.pt2", "coordinates/student.onnx")
INT8 = "student/student.int8.onnx"


@dataclass(frozen=True)
class Place:
    """Where the runs are."""

    root: Path

    def config(self, name: str) -> Path:
        return self.root / f"{name}.py"

    def metrics(self, name: str) -> dict[str, float]:
        metrics: dict[str, float] = json.loads((self.root / name / "metrics.json").read_text())["metrics"]
        return metrics


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
    """A teacher, a student that it taught on faces with and without labels, a coordinate network; exported."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("landmarks")
    write_300w(root / "twin", train=40, common=12, challenging=4, test=4, size=96)
    made = Place(root)
    for name, recipe in RUNS.items():
        made.config(name).write_text((COMMON + recipe).format(root=root, name=name))
        kd_tasks("train", made.config(name))
    swaps = Faces300W(root / "twin", "train", size=64).metainfo["swaps"]
    made.config("flipped").write_text((COMMON + FLIPPED).format(root=root, name="flipped", swaps=swaps))
    kd_tasks("export", made.config("student"), root / "student", "--int8")
    kd_tasks("export", made.config("student"), root / "student", "--format", "pt2")
    kd_tasks("export", made.config("coordinates"), root / "coordinates")
    kd_tasks("export", made.config("flipped"), root / "student", "--out", root / "flipped.onnx")
    return made


def compared(text: str) -> tuple[float, float]:
    """NME of the artefact and of the checkpoint, as `kd-tasks evaluate` prints them."""
    found = re.search(r"NME │ (\S+) │ (\S+) │ ([+-]\S+)", text)
    assert found is not None, text
    return float(found[1]), float(found[2])


def test_training_learnt_enough_for_a_comparison_to_mean_something(place: Place) -> None:
    for name in RUNS:
        assert 1 < place.metrics(name)["NME"] < 60


@pytest.mark.parametrize("name", FLOATS)
def test_an_artefact_is_worth_what_its_checkpoint_is(
    place: Place, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    measured, before = compared(shown(capfd, "evaluate", place.root / name))
    assert abs(measured - before) <= 0.005 * before
    assert before == pytest.approx(place.metrics(name.partition("/")[0])["NME"], abs=0.006)


def test_an_int8_artefact_still_finds_faces(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    measured, before = compared(shown(capfd, "evaluate", place.root / INT8))
    assert measured <= 1.25 * before


def test_an_artefact_gives_raw_maps_that_the_same_decoder_reads(place: Place) -> None:
    """By hand, from the file of a picture to points: ONNX Runtime, numpy and the codec of the config."""
    model = place.root / "student" / "student.onnx"
    assert [(spec.name, list(spec.shape[1:])) for spec in read_manifest(model).outputs] == [("heatmaps", [68, 16, 16])]
    config = load_config(place.config("student"))
    dataset = Faces300W(place.root / "twin", "full", test_mode=True, size=64)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    mean, std = (np.array(v, np.float32)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    decoder, errors = LandmarkDecoder(CODECS.build(config.model.decoder.codec)), []
    for sample in (dataset[i] for i in range(len(dataset))):
        picture = (sample["inputs"].numpy() - mean) / std
        (maps,) = session.run(["heatmaps"], {session.get_inputs()[0].name: picture[None].astype(np.float32)})
        (found,) = decoder({"heatmaps": torch.from_numpy(maps)}, [sample["meta"]])
        truth = sample["targets"]["points"]
        errors.append(float((found["points"] - truth).norm(dim=1).mean() / (truth[36] - truth[45]).norm()))
    assert 100 * np.mean(errors) == pytest.approx(place.metrics("student")["NME"], rel=0.005)


def test_the_flip_test_takes_a_plain_checkpoint_and_is_exported(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"NME │ (\S+)", shown(capfd, "test", place.config("flipped"), place.root / "student"))
    assert found is not None
    merged, plain = float(found[1]), place.metrics("student")["NME"]
    assert merged != pytest.approx(plain, abs=0.006)
    assert merged < 1.1 * plain
    measured, _ = compared(shown(capfd, "evaluate", place.root / "flipped.onnx"))
    assert measured == pytest.approx(merged, rel=0.005)


def test_taps_of_student_and_teacher_are_listed_and_every_term_pulls(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    text = shown(capfd, "taps", place.config("student"))
    for words in ("Taps of the student", "Taps of the teacher", "encoder.stage3", "decoder", "heatmaps"):
        assert words in text
    text = shown(capfd, "check", place.config("student"), "--batches", "1")
    for words in ("task.heatmaps", "kd.heatmaps", "kd.hint"):
        assert words in text
