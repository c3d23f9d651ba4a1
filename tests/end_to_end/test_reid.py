"""Re-identification from pictures to a deployed file, by the command line: every command on runs of seconds."""

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from kd_reid.datasets import Market1501
from kd_reid.synthetic import SOURCES, TARGET, write_market1501

from kd_tasks import demo as demonstration
from kd_tasks.cli import main
from kd_tasks.deploy.artefact import read_manifest
from kd_tasks.engine.config import load_config

SMALL = {"source_identities": 6, "target_identities": 8, "source_test_identities": 2, "test_identities": 5}
COMMON = """
task = 'reid'
_data = dict(type='Market1501', data_root='{data}')
_model = dict(criterion=dict(type='ReIDLoss'), decoder=dict(type='EmbeddingDecoder'))
_wide = dict(type='SmallReIDNet', num_classes=6, width=32)
_narrow = dict(type='SmallReIDNet', num_classes=4, width=24, width_multiplier=0.5)
test_dataloader = dict(batch_size=8, num_workers=0, dataset=dict(split='test', test_mode=True, **_data))
test_evaluator = dict(type='ReIDMetric')
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3))
train_cfg = dict(by_epoch=True, max_epochs={epochs})
work_dir = '{root}/{name}'
"""
SOURCE = (
    COMMON
    + """
model = dict(type='TaskModel', network=_wide, **_model)
train_dataloader = dict(batch_size=12, num_workers=0, dataset=dict(split='train', **_data),
                        sampler=dict(type='IdentitySampler', identities=3, pictures=4))
"""
)
FEW = (
    COMMON
    + """
train_dataloader = dict(batch_size=16, num_workers=0, dataset=dict(split='train', labelled=4, **_data),
                        sampler=dict(type='MixedIdentitySampler', unlabelled=12, identities=2, pictures=2))
"""
)
ALONE = FEW + "model = dict(type='TaskModel', network=_narrow, **_model)\n"
ADAPTIVE = (
    FEW
    + """
model = dict(
    type='AdaptiveDistiller',
    student=_narrow,
    teachers=dict(
        north=dict(checkpoint='{root}/north/student.pth', **_wide),
        old=dict(checkpoint='{root}/old/student.pth', **_wide),
    ),
    aggregate='similarity',
    adaptive={adaptive},
    interval=2,
    transfers=dict(
        similarity=dict(student='embedding', teacher=['north.embedding', 'old.embedding'],
                        loss=dict(type='LogEuclidean'), weight=0.05),
    ),
    **_model,
)
"""
)
RUNS = ("north", "old", "alone", "adaptive", "uniform")
ARTEFACTS = ("student.onnx", "student.pt2", "student.int8.onnx")


@dataclass(frozen=True)
class Place:
    """Where the runs are, and a command line whose output is read."""

    root: Path

    def run(self, name: str) -> Path:
        return self.root / name

    def config(self, name: str) -> Path:
        return self.root / f"{name}.py"

    def metrics(self, name: str) -> dict[str, float]:
        metrics: dict[str, float] = json.loads((self.run(name) / "metrics.json").read_text())["metrics"]
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
    """Two teachers, the student alone and distilled from both in two ways, the one of them exported."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("reid")
    write_market1501(root / "twin", **SMALL)
    made = Place(root)
    write = {
        "north": partial(SOURCE.format, data=root / "twin" / "north", epochs=2),
        "old": partial(SOURCE.format, data=root / "twin" / "old", epochs=2),
        "alone": partial(ALONE.format, data=root / "twin" / TARGET, epochs=2),
        "adaptive": partial(ADAPTIVE.format, data=root / "twin" / TARGET, epochs=2, adaptive=True),
        "uniform": partial(ADAPTIVE.format, data=root / "twin" / TARGET, epochs=2, adaptive=False),
    }
    for name in RUNS:
        made.config(name).write_text(write[name](root=root, name=name))
        kd_tasks("train", made.config(name))
    kd_tasks("export", made.config("adaptive"), made.run("adaptive"), "--int8")
    kd_tasks("export", made.config("adaptive"), made.run("adaptive"), "--format", "pt2")
    return made


# --- Training and testing --------------------------------------------------------------------------------------------


def test_the_weights_of_the_teachers_are_logged_and_move_only_where_they_are_adaptive(place: Place) -> None:
    alphas = {}
    for name in ("adaptive", "uniform"):
        lines = [json.loads(line) for line in (place.run(name) / "scalars.json").read_text().splitlines()]
        alphas[name] = [(line["alpha.north"], line["alpha.old"]) for line in lines if "alpha.north" in line]
        assert alphas[name]
        assert all(sum(pair) == pytest.approx(1, abs=1e-4) for pair in alphas[name])
    assert set(alphas["uniform"]) == {(0.5, 0.5)}
    assert alphas["adaptive"][-1] != (0.5, 0.5)


def test_student_and_checkpoint_name_the_labelled_identities(place: Place) -> None:
    labelled = Market1501(place.root / "twin" / TARGET, "train", labelled=4).classes
    assert len(labelled) == 4
    assert tuple(torch.load(place.run("adaptive") / "student.pth")["meta"]["classes"]) == labelled


def test_the_test_command_repeats_the_numbers_of_the_training_and_saves_embeddings(
    place: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = shown(capfd, "test", place.config("adaptive"), place.run("adaptive"), "--out", tmp_path)
    metrics = place.metrics("adaptive")
    assert list(metrics) == ["mAP", "Rank-1", "Rank-5", "Rank-10", "Rank-20", "mINP"]
    for name, value in metrics.items():
        assert f"{name} │ {value:.2f}" in text
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len(Market1501(place.root / "twin" / TARGET, "test", test_mode=True))
    assert {len(line["embedding"]) for line in lines} == {24}
    assert np.linalg.norm(lines[0]["embedding"]) == pytest.approx(1, abs=1e-5)


# --- Deployment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARTEFACTS)
def test_an_artefact_gives_one_embedding(place: Place, name: str) -> None:
    manifest = read_manifest(place.run("adaptive") / name)
    assert [(output.name, list(output.shape[1:])) for output in manifest.outputs] == [("embedding", [24])]
    if name.endswith(".onnx"):
        session = onnxruntime.InferenceSession(place.run("adaptive") / name, providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == ["embedding"]
        pictures = np.zeros((3, 3, 64, 32), np.float32)
        assert session.run(None, {session.get_inputs()[0].name: pictures})[0].shape == (3, 24)


@pytest.mark.parametrize(("name", "tolerance"), zip(ARTEFACTS, (0.1, 0.1, 5.0), strict=True))
def test_an_artefact_is_worth_what_its_checkpoint_is(
    place: Place, capfd: pytest.CaptureFixture[str], name: str, tolerance: float
) -> None:
    text = shown(capfd, "evaluate", place.run("adaptive") / name)
    found = re.search(r"mAP │ (\S+) │ (\S+) │ ([+-]\S+)", text)
    assert found is not None, text
    measured, before = float(found[1]), float(found[2])
    assert before == pytest.approx(place.metrics("adaptive")["mAP"], abs=0.005)
    assert abs(measured - before) <= tolerance
    assert "largest difference of 'embedding'" in text


def test_an_artefact_can_be_tried_on_another_site(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    elsewhere = place.root / "twin" / "north"
    text = shown(capfd, "evaluate", place.run("adaptive") / "student.onnx", "--data-root", elsewhere)
    found = re.search(r"mAP │ (\S+)", text)
    assert found is not None, text
    assert float(found[1]) != pytest.approx(place.metrics("adaptive")["mAP"], abs=0.005)


# --- Before and after ------------------------------------------------------------------------------------------------


def test_the_check_measures_every_teacher_on_people_with_their_gallery(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first batches of the test data are queries only."""
    text = shown(capfd, "check", place.config("adaptive"), "--batches", "1")
    for words in ("teacher north", "teacher old", "student as it starts", "kd.similarity", "task.id", "task.triplet"):
        assert words in text
    assert "label 16, -1 to 3" in text


def test_a_part_of_the_test_data_has_queries_with_their_matches(place: Place) -> None:
    dataset = Market1501(place.root / "twin" / TARGET, "test", test_mode=True)
    for count in (1, 40, 10_000):
        roles: dict[str, set[int]] = {"query": set(), "gallery": set()}
        for index in dataset.part(count):
            roles[dataset.items[index].role].add(dataset.items[index].identity)
        assert roles["query"] == roles["gallery"]
        assert len(roles["query"]) >= 2
    assert len(dataset.part(40)) <= 40


def test_the_taps_of_student_and_teachers_are_listed(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    text = shown(capfd, "taps", place.config("adaptive"))
    for words in (
        "Taps of the student",
        "Taps of the teacher 'north'",
        "Taps of the teacher 'old'",
        "N x 24",
        "N x 32",
    ):
        assert words in text


@pytest.mark.parametrize("of", ["data", "predictions"])
def test_pictures_to_look_at(place: Place, tmp_path: Path, of: str) -> None:
    more = ("--checkpoint", place.run("adaptive")) if of == "predictions" else ()
    kd_tasks("browse", place.config("adaptive"), "--out", tmp_path, "--count", "4", *more)
    sheet = cv2.imread(str(tmp_path / f"{of}_1.png"))
    assert sheet is not None
    strips = 11 * 64  # a query and ten of the gallery
    assert (sheet.shape[1] > strips) == (of == "predictions")


def test_a_data_set_of_the_twin_is_held_against_its_card(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    assert "train" in shown(capfd, "data", "check", "market1501", place.root / "twin" / TARGET)


# --- Side by side ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(place: Place) -> Path:
    """The comparison of everything, with its report card."""
    artefacts = (place.run("adaptive") / name for name in ARTEFACTS)
    kd_tasks("compare", *(place.run(name) for name in RUNS), *artefacts, "--out", place.root / "compared")
    return place.root / "compared"


def rows_of(folder: Path) -> dict[str, Any]:
    comparison = json.loads((folder / "comparison.json").read_text())
    return {row["label"]: row for row in comparison["rows"]}


def test_teachers_and_ways_to_weigh_them_are_told_apart(place: Place, compared: Path) -> None:
    rows = rows_of(compared)
    assert list(rows) == [
        "teacher (north)",
        "teacher (old)",
        "alone",
        "distilled (AdaptiveDistiller: similarity, adaptive True)",
        "distilled (AdaptiveDistiller: similarity, adaptive False)",
        *ARTEFACTS,
    ]
    for name, row in zip(RUNS[2:], list(rows.values())[2:5], strict=True):
        assert row["metrics"]["mAP"]["mean"] == pytest.approx(place.metrics(name)["mAP"])
        assert [Path(member["path"]).name for member in row["members"]] == [name]


def test_teachers_are_measured_where_the_student_is_to_work(place: Place, compared: Path) -> None:
    """Not on their own sites, as `metrics.json` of their runs has it."""
    comparison = json.loads((compared / "comparison.json").read_text())
    assert any("north, old" in note and "test data of the others" in note for note in comparison["notes"])
    found = rows_of(compared)["teacher (north)"]["metrics"]["mAP"]["mean"]
    assert found != pytest.approx(place.metrics("north")["mAP"], abs=1e-3)


def test_the_report_card_has_strips_of_the_worst_queries(compared: Path) -> None:
    page = (compared / "report.html").read_text()
    assert page.count("<html") == 1
    titles = re.findall(r"Worst (\d+) of (\d+) queries, camera \d", page)
    assert titles and len({total for _, total in titles}) == 1
    assert "The queries of the test data on which the first of these models does worst" in page
    for role in ("teacher", "alone", "distilled"):
        assert re.search(rf"{role}: AP \d+\.\d %", page)


# --- The demonstration -----------------------------------------------------------------------------------------------


def test_the_whole_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages with few people and one epoch each: what is trained, exported, shown, and kept for a second call."""

    def short(name: str, options: dict[str, Any] | None = None) -> Any:
        return load_config(name, {**(options or {}), "train_cfg.max_epochs": 1})

    people = {"source_identities": 8, "target_identities": 16, "source_test_identities": 2, "test_identities": 4}
    monkeypatch.setattr(demonstration, "load_config", short)
    monkeypatch.setattr(demonstration, "write_twin", lambda name, root: write_market1501(root, **people))
    first: list[str] = []
    again: list[str] = []
    result = demonstration.run_demo("reid", tmp_path, progress=first.append)
    text = "\n".join(first)
    for name in SOURCES:
        assert f"Teacher '{name}'" in text
        assert (tmp_path / f"teacher_{name}" / "student.pth").is_file()
    assert "Student distilled, adaptive, seed 0" in text and "Student distilled, uniform, seed 0" in text
    labels = [row.label for row in result.comparison.rows]
    assert labels[:4] == ["teacher (north)", "teacher (south)", "teacher (old)", "alone"]
    assert len(labels) == 4 + 2 + 3 and "adaptive False" in labels[5]
    assert [run.name for run in result.runs][-3:] == ["alone_0", "adaptive_0", "uniform_0"]
    used = load_config(tmp_path / "uniform_0" / "config.py")
    assert {str(t.checkpoint) for t in used.model.teachers.values()} == {
        str(tmp_path / f"teacher_{name}" / "student.pth") for name in SOURCES
    }
    assert used.train_dataloader.dataset.data_root == str(tmp_path / "data" / TARGET)
    assert "data:image/png" in result.card.read_text()
    demonstration.run_demo("reid", tmp_path, progress=again.append)
    stages = 1 + len(SOURCES) + 3 + 2  # data, teachers, three students, export and evaluation
    assert sum("was finished before" in line for line in again) == stages
    assert not any("was finished before" in line for line in first)
